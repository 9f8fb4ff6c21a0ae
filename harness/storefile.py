"""The file of a sqlite store: where it lies, how it is made and looked at without the database's patience."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from glob import escape
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

from filelock import FileLock

from harness.errors import StoreError, first_line

SQLITE = "sqlite:///"
BESIDE = ("-journal", "-wal", "-shm")  # how the names of the files end that sqlite keeps beside one


def asked() -> str:
    """The URI of the store that is asked for, as it is given."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"


def path_of(uri: str) -> Path | None:
    """The file that a URI names; None for a server."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def uri_of(path: Path) -> str:
    """The one URI of a file, made absolute, since a store by two names would have two locks.

    Raises StoreError for a path that would mean something else in a URI.
    """
    place = str(path.resolve())
    if found := sorted(set("?%") & set(place)):
        raise StoreError(f"store {place}: a sqlite store cannot lie in a folder with {found[0]} in its name; use another")
    return f"{SQLITE}{place}"


def check(path: Path, wanted: str) -> None:
    """Look at a store without MLflow, which would fill an empty file and migrate an old one.

    Raises StoreError for one that is damaged, is no store, or is not at the schema `wanted`.
    """
    uri = f"{SQLITE}{path}"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=10)) as file:
            whole = file.execute("PRAGMA quick_check(1)").fetchone()[0]
            tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master")}
            rows = file.execute("SELECT version_num FROM alembic_version").fetchall() if "alembic_version" in tables else []
    except sqlite3.Error as error:
        remedy = "end what writes it" if "locked" in str(error) else "restore a copy of it, or name another"
        raise StoreError(f"store {uri} cannot be read: {first_line(error)}; {remedy}") from None
    if whole != "ok":
        raise StoreError(f"store {uri} is damaged: {whole}; restore a copy of it, or name another")
    if (found := rows[0][0] if rows else "none") != wanted:
        remedy = f"copy it, then: mlflow db upgrade {uri}" if rows else "name another"
        raise StoreError(f"store {uri} has schema {found}, mlflow {version('mlflow')} wants {wanted}; {remedy}")


@contextmanager
def alone(path: Path | None) -> Iterator[None]:
    """One process at a time: a fresh file that three open at once is destroyed. A server sees to itself."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=60):
        yield


def make(path: Path, fill: Callable[[str], object]) -> None:
    """Have `fill` make a file that is not there, by another URI beside its place: one half made can never be used again.

    That URI is used once: MLflow remembers the stores that it has made by theirs. The file is on the disk before it has its
    name, so `fill` need not wait for that at each step.
    Raises sqlite3.Error at once where it cannot be written; MLflow would try for two minutes.
    """
    for left in path.parent.glob(f".{escape(path.name)}.new*"):  # by a process that was killed
        left.unlink()
    if not path.exists():
        (new := path.with_name(f".{path.name}.new-{uuid4().hex[:8]}")).touch()
        fill(f"{SQLITE}{new}")
        with new.open("rb+") as file:
            os.fsync(file)
        for kept in BESIDE:  # of a store that was deleted: sqlite would write back into the new one what they hold
            path.with_name(path.name + kept).unlink(missing_ok=True)
        new.replace(path)
    knock(path, 30)


def knock(path: Path, seconds: float) -> None:
    """Raise sqlite3.Error where the file cannot be written, for it is held longer than so."""
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=seconds)) as file:
        file.execute("BEGIN IMMEDIATE")
