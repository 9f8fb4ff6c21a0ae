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


def name_of(connection: Connection) -> str:
    """The file of a database; each that is made has a name of its own until it is done."""
    name = Path(str(connection.engine.url.database)).name
    return ".mlflow.db.new" if name.startswith(".mlflow.db.new-") else name


@pytest.fixture
def commits() -> Any:
    """Of each commit of this process, from here on: the file, and what it waits for."""
    found = []

    def seen(connection: Connection) -> None:
        file = name_of(connection)
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
            found.add((name_of(connection), other.execute(text("PRAGMA synchronous")).scalar()))

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


def test_a_store_that_was_deleted_is_made_anew_in_the_same_process(tmp_path: Path) -> None:
    """As in a notebook, whose kernel goes on."""
    uri, ids = f"sqlite:///{tmp_path / 'mlflow.db'}", list[str]()
    for _ in range(3):
        store = Store(uri)
        assert store.runs("somewhere") == []
        ids.append(store.create("somewhere", "a run").info.run_id)
        assert [run.info.run_id for run in Store(uri).runs("somewhere")] == ids[-1:]
        store.end(ids[-1], "FINISHED")
        (tmp_path / "mlflow.db").unlink()
    assert not list(tmp_path.glob(".mlflow.db.new*"))


def test_what_is_half_made_is_cleared_away_whatever_the_store_is_called(tmp_path: Path) -> None:
    (left := tmp_path / ".runs [1].db.new-0123abcd").write_bytes(b"half")
    assert Store(f"sqlite:///{tmp_path / 'runs [1].db'}").runs("somewhere") == []
    assert not left.exists()
