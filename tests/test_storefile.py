"""A sqlite store's file while it is made: quickly, for it is nothing before it is whole; safely ever after."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.engine import Engine

from harness import storefile
from harness.store import Store

LEFT_TO_THE_SYSTEM, SAFE = 0, 2  # of sqlite's `synchronous`: what waits for the disk


@pytest.fixture
def commits() -> Any:
    """Of each commit of this process, from here on: the file, and what it waits for."""
    found = []

    def seen(connection: Connection) -> None:
        file = Path(str(connection.engine.url.database)).name
        found.append((file, connection.exec_driver_sql("PRAGMA synchronous").scalar()))

    event.listen(Engine, "commit", seen)
    yield found
    event.remove(Engine, "commit", seen)


def test_no_step_of_making_a_store_waits_for_the_disk_and_all_later_ones_do(
    commits: list[tuple[str, int]], tmp_path: Path
) -> None:
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    made = len(commits)
    assert made > 50, "MLflow's migrations"
    assert set(commits) <= {(".mlflow.db.new", LEFT_TO_THE_SYSTEM), ("mlflow.db", SAFE)}
    store.create("somewhere", "a run")
    assert set(commits[made:]) == {("mlflow.db", SAFE)}


def test_databases_of_others_are_as_safe_meanwhile_as_ever(tmp_path: Path) -> None:
    found = set()

    def meanwhile(connection: Connection) -> None:
        with create_engine(f"sqlite:///{tmp_path / 'other.db'}").connect() as other:
            found.add((Path(str(connection.engine.url.database)).name, other.execute(text("PRAGMA synchronous")).scalar()))

    event.listen(Engine, "commit", meanwhile)
    try:
        Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    finally:
        event.remove(Engine, "commit", meanwhile)
    assert (".mlflow.db.new", SAFE) in found
    assert {safe for _, safe in found} == {SAFE}


def test_a_store_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened, sync, replace = [], os.fsync, Path.replace

    def fsync(file: Any) -> None:
        happened.append(("synced", os.fstat(file if isinstance(file, int) else file.fileno()).st_ino))
        sync(file)

    def renamed(path: Path, to: Path) -> Path:
        happened.append(("renamed", path.stat().st_ino))
        return replace(path, to)

    def fill(uri: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"")
        happened.append(("filled", 0))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    storefile.make(tmp_path / "mlflow.db", fill)
    file = (tmp_path / "mlflow.db").stat().st_ino
    assert happened == [("filled", 0), ("synced", file), ("renamed", file)]
