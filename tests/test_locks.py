"""Names that processes hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import Timeout

from harness.errors import StoreError
from harness.locks import TABLE, Locks, own_folder


def test_a_lock_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with (
        pytest.raises(StoreError, match=r"harness-run\.lock cannot be locked: "),
        Locks(tmp_path / "file").hold("run"),
    ):
        pass


def test_what_lies_on_no_shared_disk_has_a_folder_for_each_user(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = own_folder()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert own_folder() != mine


HOLDER = """
import sys
from pathlib import Path
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_name_is_held_as_long_as_its_process_lives_and_who_holds_it_is_told(tmp_path: Path) -> None:
    locks = Locks(tmp_path / "new" / "folder")
    said = "process {}" if TABLE.exists() else "another process"
    assert not locks.held("run")
    assert not locks.folder.exists(), "looking makes nothing"
    with locks.hold("run"):
        assert locks.held("run")
    assert not locks.held("run")
    assert locks.ever_held("run")
    assert not locks.ever_held("other")
    command = [sys.executable, "-c", HOLDER, str(locks.folder / "harness-run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other, locks.hold("mine"):
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        assert locks.held("run")
        assert locks.holder("run") == said.format(other.pid)
        assert locks.holder("mine") == said.format(os.getpid())
        with pytest.raises(Timeout), locks.hold("run", 0.05):
            pass
        other.kill()
        other.wait(timeout=30)
        assert not locks.held("run")
        with locks.hold("run"):
            assert locks.holder("run") == said.format(os.getpid())
    assert locks.holder("run") == "another process", "where nobody holds it any more"
