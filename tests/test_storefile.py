"""A sqlite store's file while it is made: quickly, for it is nothing before it is whole; safely ever after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from harness import storefile
from harness.store import Store

LEFT_TO_THE_SYSTEM, SAFE = 0, 2  # of sqlite's `synchronous`: what waits for the disk


def synchronous(uri: str) -> Any:
    with create_engine(uri).connect() as connection:
        return connection.execute(text("PRAGMA synchronous")).scalar()


def test_only_the_file_that_is_being_made_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    found, other = [], f"sqlite:///{tmp_path / 'other.db'}"

    def fill(uri: str) -> None:
        found.extend([synchronous(uri), synchronous(other), synchronous("sqlite://")])

    storefile.make(tmp_path / "mlflow.db", fill)
    assert found == [LEFT_TO_THE_SYSTEM, SAFE, SAFE]
    assert synchronous(f"sqlite:///{tmp_path / 'mlflow.db'}") == SAFE


def test_a_folder_by_another_name_has_it_made_as_fast(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").symlink_to(tmp_path / "here")
    found = []
    storefile.make(tmp_path / "there" / "mlflow.db", lambda uri: found.append(synchronous(uri)))
    assert found == [LEFT_TO_THE_SYSTEM]


def test_what_was_not_made_leaves_the_rest_of_the_process_safe(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        storefile.make(tmp_path / "mlflow.db", lambda uri: 1 / 0)
    assert not (tmp_path / "mlflow.db").exists()
    assert synchronous(f"sqlite:///{tmp_path / '.mlflow.db.new'}") == SAFE


def test_runs_are_written_to_a_new_store_as_safely_as_to_an_old_one(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    engine = store.client._tracking_client.store.engine
    with engine.connect() as connection:
        assert Path(engine.url.database) == tmp_path / "mlflow.db"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == SAFE
