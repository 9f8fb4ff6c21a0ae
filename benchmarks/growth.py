"""`python -m benchmarks.growth`: time and memory against lanes, width, samples and runs; charts and JSON."""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.around import store
from benchmarks.ours import lanes
from harness.config import RunConfig
from harness.data import Data, load
from harness.driver import run_study
from harness.frames import history, runs
from harness.study import Study

STEPS = 200
Points = Mapping[int, Mapping[str, float]]  # x -> what was measured there


def stacks(config: RunConfig, data: Data, count: int, rounds: int) -> Mapping[str, float]:
    """Microseconds of a step for each lane, and MiB of the tensors that a stack holds."""
    before = held()
    epoch = lanes(config.replace(max_batches=STEPS), data, count)()
    epoch()
    steps = min(STEPS, -(-len(data.train) // config.batch_size))
    times = [epoch() for _ in range(rounds)]
    return {"us": statistics.median(times) / steps * 1e6, "mib": (held() - before) / 2**20}


def held() -> int:
    """Bytes of all tensors in this process."""
    gc.collect()
    storages = [value.untyped_storage() for value in gc.get_objects() if type(value) is torch.Tensor]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def samples(config: RunConfig, data: Data, count: int, rounds: int) -> Mapping[str, float]:
    """Seconds of an epoch on so many samples."""
    few = data.train[:count]
    part = Data(data.name, few, data.test, data.files, data.num_classes)
    epoch = lanes(config, part, 3)()
    epoch()
    return {"s": statistics.median(epoch() for _ in range(rounds))}


def stored(count: int, data_dir: str) -> Mapping[str, float]:
    """Milliseconds a run for a study of `count` runs of one minibatch: to train, to start again, to read back."""
    study = Study.read("matrix").override(
        seeds=range(count // 10), dataset="mnist_5k", data_dir=data_dir, epochs=1, max_batches=1
    )

    def timed(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) / count * 1e3

    with store():
        return {
            "train": timed(lambda: run_study(study, workers=0, probe=False, say=lambda line: None)),
            "start again": timed(lambda: run_study(study, workers=0, say=lambda line: None)),
            "harness.runs": timed(lambda: runs("matrix")),
            "harness.history": timed(lambda: history("matrix")),
        }


def chart(path: Path, title: str, x: str, panels: Sequence[tuple[str, Mapping[str, Points], str]]) -> None:
    """One panel for each (unit, curves by name, key of the points), both axes logarithmic."""
    figure = Figure(figsize=(4.6 * len(panels), 3.4), dpi=120, layout="constrained")
    for ax, (unit, curves, key) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (name, points), (colour, marker) in zip(
            curves.items(), (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")), strict=False
        ):
            ax.plot(list(points), [p[key] for p in points.values()], color=colour, marker=marker, markersize=4, label=name)
        ax.set(xlabel=x, ylabel=unit, xscale="log", yscale="log")
        ticks = sorted({n for points in curves.values() for n in points})
        ax.set_xticks(ticks, [f"{n:,}" for n in ticks], rotation=45)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:,g}")
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path)


def main() -> None:
    """Measure, draw and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--data-dir", default=RunConfig().data_dir)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("docs/performance"))
    asked = parser.parse_args()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    data = load("auto", asked.data_dir, "unit", print)
    config = RunConfig(dataset=data.name, data_dir=asked.data_dir, optimizer="adam", init="kaiming")
    found: dict[str, Any] = {}

    def measure(name: str, where: Sequence[int], how: Callable[[int], Mapping[str, float]]) -> Points:
        found[name] = {}
        for x in where:
            found[name][x] = how(x)
            print(f"{name:<40} {x:>6}  " + "  ".join(f"{key} {value:.4g}" for key, value in found[name][x].items()), flush=True)
        return found[name]

    asked.output.mkdir(parents=True, exist_ok=True)
    by_lanes = {
        f"hidden_dim {h}": measure(
            f"lanes, hidden_dim={h}", most, lambda k, h=h: stacks(config.replace(hidden_dim=h), data, k, asked.rounds)
        )  # type: ignore[misc]
        for h, most in ((16, (1, 2, 3, 6, 12, 25, 50, 100)), (128, (1, 2, 3, 5, 6, 12, 25, 50, 100)), (512, (1, 2, 3, 6, 12)))
    }
    chart(
        asked.output / "lanes.png",
        "Lanes of one stack, Adam",
        "lanes",
        [("µs a step and lane", by_lanes, "us"), ("MiB", by_lanes, "mib")],
    )
    by_width = {
        f"{k} lane{'s' if k > 1 else ''}": measure(
            f"hidden_dim, {k} lanes",
            (64, 128, 256, 512, 1024, 2048),
            lambda h, k=k: stacks(config.replace(hidden_dim=h), data, k, asked.rounds),
        )  # type: ignore[misc]
        for k in (1, 3)
    }
    chart(
        asked.output / "width.png",
        "Width of the hidden layer, Adam",
        "hidden_dim",
        [("µs a step and lane", by_width, "us"), ("MiB", by_width, "mib")],
    )
    sizes = [n for n in (1000, 2000, 4000, 8000, 15000, 30000, 60000) if n <= len(data.train)]
    by_size = {"3 lanes": measure("samples", sizes, lambda n: samples(config, data, n, asked.rounds))}
    chart(
        asked.output / "samples.png",
        "Training samples, Adam, 3 lanes",
        "samples",
        [("s an epoch and run", by_size, "s")],
    )
    os.sched_setaffinity(0, cores)
    counts = measure("runs", (10, 30, 100), lambda n: stored(n, asked.data_dir))
    chart(
        asked.output / "runs.png",
        "Runs of a study, each of one minibatch, in one process",
        "runs",
        [("ms a run", {key: {n: {"ms": p[key]} for n, p in counts.items()} for key in counts[10]}, "ms")],
    )
    (asked.output / "growth.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
