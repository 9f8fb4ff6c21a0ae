"""Names that processes hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.errors import StoreError
from harness.locks import Locks, own_folder


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
