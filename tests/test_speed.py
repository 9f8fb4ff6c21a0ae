"""A loss of speed is noticed, noise is not: ratios of ways that take turns, with floors at half of what they are."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLAIN, ONE, THREE, LIMIT = (
    "plain PyTorch in memory",
    "harness, 1 lane, adam",
    "harness, 3 lanes, adam",
    "limit, adam: products + update",
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ratios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """How many times as long as three lanes' an epoch is, per run and in the same round: the median."""
    output = tmp_path_factory.mktemp("speed") / "found"
    asked = ("--dataset", "mnist_5k", "--rounds", "15", "--output", str(output))
    only = (word for name in (PLAIN, ONE, THREE, LIMIT) for word in ("--only", name))
    subprocess.run([sys.executable, "-m", "benchmarks", *asked, *only], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    rounds = {name: found["rounds"] for name, found in json.loads(output.with_suffix(".json").read_text())["epochs"].items()}
    return {
        name: statistics.median(other / ours for other, ours in zip(times, rounds[THREE], strict=True))
        for name, times in rounds.items()
    }


def test_three_lanes_are_much_faster_than_plain_pytorch_in_memory(ratios: dict[str, float]) -> None:
    assert ratios[PLAIN] > 1.7  # 3.4 when written


def test_three_lanes_take_less_than_twice_the_time_of_their_arithmetic(ratios: dict[str, float]) -> None:
    assert ratios[LIMIT] > 0.5  # 0.8


def test_a_run_beside_others_is_no_slower_than_alone(ratios: dict[str, float]) -> None:
    assert ratios[ONE] > 0.9  # 1.3 when written, on AMD; 1.06 to 1.1 on Intel with AVX-512
