"""The report: one page that loads nothing, from any state of a study, with the same bytes each time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness
from harness import report
from harness.report import Report
from harness.store import Store
from harness.study import Study

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
HOSTILE = 'Which </p><script>alert(1)</script> & <img src="http://example.org/x.png"> | one?'


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    """Of a study with a variant that diverges and a run that was deleted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("report"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        study = Study(
            name="lame",
            question=HOSTILE,
            design="one_factor_at_a_time",
            seeds=[0, 1],
            base={"dataset": "mnist_5k", "epochs": 2, "max_batches": 4, "hidden_dim": 8},
            factors={"act": ["tanh", "relu"], "lr": [0.01, 1e30]},
        )
        harness.run_study(study, workers=0, say=lambda line: None)
        store = Store()
        (run,) = store.runs("lame", cell="act=relu-s1")
        store.client.delete_run(run.info.run_id)
        yield report.write("lame")


def test_written_twice_it_has_the_same_bytes(written: Report) -> None:
    again = report.write("lame")
    assert again.files == written.files
    assert {"report.html", "report.md", "contrasts.csv", "plots/curves.svg", "plots/verdicts.png"} <= set(written.files)
    assert written.lost == ()


def test_page_loads_nothing_and_runs_nothing_that_a_name_brings(written: Report) -> None:
    page = written.files["report.html"].decode()
    assert page == Path(written.place).read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|srcset|data)="(\w+:)', page)) == {"data:"}
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"url\(|@import", page)
    assert "<script" not in written.files["report.md"].decode()
    assert len(page) < 3_000_000


def test_cells_without_a_number_are_named(written: Report) -> None:
    for name in ("report.html", "report.md"):
        text = written.files[name].decode().replace("\\_", "_")
        assert re.search(r"lr=1e[+]?30-s0: diverged, in epoch \d", text), name
        assert "act=relu-s1: missing" in text, name
    assert all(sentence in written.files["report.html"].decode() for sentence in written.sentences if "'" not in sentence)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_asks_nobody(written: Report, scheme: str) -> None:
    from playwright.sync_api import sync_playwright

    said, asked = [], []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{written.place}")
        for medium, width in (("screen", 390), ("print", 718)):  # a phone; A4 less margins of 1 cm, at 96 dots an inch
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(media=medium)
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), medium
            assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)"), medium
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", f"file://{written.place}"))] == []
