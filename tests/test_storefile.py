"""A sqlite store's file while it is made: quickly, for it is nothing before it is whole; safely ever after."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.engine import Engine

from harness import storefile
from harness.store import Store, schema

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


ANOTHER = """
import sys
from harness.store import Store
print(Store(sys.argv[1]).create("somewhere", "theirs").info.run_id)
"""


def test_a_store_that_another_process_made_anew_is_that_one_here_too(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    Store(uri).create("somewhere", "mine")
    (tmp_path / "mlflow.db").unlink()
    theirs = subprocess.run([sys.executable, "-c", ANOTHER, uri], capture_output=True, text=True, check=True).stdout.strip()
    store = Store(uri)
    assert [run.info.run_id for run in store.runs("somewhere")] == [theirs]
    assert store.get(theirs).info.run_name == "theirs"
    store.end(theirs, "FINISHED")


INTERRUPTED = """
import os, sqlite3, sys
file = sqlite3.connect(sys.argv[1], isolation_level=None)
file.execute("PRAGMA cache_size = 1")  # what does not fit goes to the file, and what was there to the journal
file.execute("BEGIN")
file.execute("UPDATE tags SET value = value || hex(randomblob(200))")
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_writer_left_of_a_deleted_store_does_not_come_into_the_new_one(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    store = Store(uri)
    for number in range(20):
        store.create("somewhere", "old", tags={f"tag{place}": "x" * 500 for place in range(number)})
    subprocess.run([sys.executable, "-c", INTERRUPTED, str(tmp_path / "mlflow.db")], check=False)
    assert (tmp_path / "mlflow.db-journal").stat().st_size > 0
    (tmp_path / "mlflow.db").unlink()
    store = Store(uri)
    assert store.runs("somewhere") == []
    run_id = store.create("somewhere", "new").info.run_id
    assert [run.info.run_id for run in store.runs("somewhere")] == [run_id]
    storefile.check(tmp_path / "mlflow.db", schema())


def test_what_is_half_made_is_cleared_away_whatever_the_store_is_called(tmp_path: Path) -> None:
    (left := tmp_path / ".runs [1].db.new-0123abcd").write_bytes(b"half")
    assert Store(f"sqlite:///{tmp_path / 'runs [1].db'}").runs("somewhere") == []
    assert not left.exists()
