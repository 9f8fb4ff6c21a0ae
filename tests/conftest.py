"""What the tests share: empty folders and stores, a browser, and Hypothesis without clock or memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from mlflow import MlflowClient
from playwright.sync_api import Browser, Page, sync_playwright

from harness.store import Store

# no sandbox, since root has none; nothing that asks the network of its own accord
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update")

# servers of tests are reached by no proxy, and what a shell asks of Python is no part of them
os.environ.update(dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost"))
for asked in ("PYTHONWARNINGS", "PYTHONDEVMODE"):
    os.environ.pop(asked, None)

settings.register_profile("harness", deadline=None, derandomize=True)
settings.load_profile("harness")


@pytest.fixture
def liked() -> dict[str, Any]:
    """How somebody may like figures, in a `matplotlibrc`."""
    return {"font.size": 21, "axes.facecolor": "black", "lines.linewidth": 7, "axes.grid": True, "figure.facecolor": "red"}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty folder, for `data_dir=`."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a sqlite store without runs, to be copied: to make one takes seconds."""
    folder = tmp_path_factory.mktemp("empty")
    Store(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def own_store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a store without runs in `tmp_path`, which is the one that this process means."""
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Path]:
    """A folder with the store that this process means, which is also the working directory."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copy(empty_store, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def client(place: Path) -> MlflowClient:
    """Of the store in `place`."""
    return MlflowClient(f"sqlite:///{place}/mlflow.db")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, headless, with a profile of its own; for tests marked `browser`."""
    found = shutil.which("chromium")
    assert found, "tests marked `browser` need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[*CHROMIUM, "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page without cookies, 1600 x 1000 pixels, that looks for things for two minutes."""
    context = chromium.new_context(viewport={"width": 1600, "height": 1000})
    context.set_default_timeout(120_000)
    yield context.new_page()
    context.close()
