"""A profile names what took the time, and moves nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import harness
from harness import RunConfig
from harness.errors import InputError
from harness.profiling import OneEpoch

CONFIG = RunConfig(dataset="mnist_5k", epochs=2, max_batches=7, optimizer="adam")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def test_profile_has_the_calls_of_one_epoch_and_leaves_every_bit(tmp_path: Path) -> None:
    said: list[str] = []
    profiled = OneEpoch(tmp_path / "trace.json", said.append)
    run = harness.train(CONFIG, report=lambda done, epochs: profiled(done), say=lambda line: None)
    plain = harness.train(CONFIG, say=lambda line: None)
    assert (run.state_digest, run.history_digest) == (plain.state_digest, plain.history_digest)
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert sum(event.get("name") == "aten::_fused_adam_" for event in events) == 7
    shares = [float(share) for line in said for share in re.findall(r"([\d.]+)%", line)]
    assert shares == sorted(shares, reverse=True)
    assert 50 < sum(shares) <= 100.5  # seven steps: many small calls share the rest
    assert any("aten::bmm" in line for line in said)


@pytest.mark.parametrize("name", ["missing/trace.json", "trace.txt", "", "folder.json"])
def test_file_that_cannot_be_written_is_refused_before_the_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"profile=.*allowed: FILE\.json in a folder that is there and can be written"):
        OneEpoch(tmp_path / name, print)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.json"]
