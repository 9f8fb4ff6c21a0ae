"""What the tests share: an empty folder for data, and Hypothesis without clock or memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("harness", deadline=None, derandomize=True)
settings.load_profile("harness")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty folder, for `data_dir=`."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder
