"""`python -m benchmarks.numerics`: what `--numerics portable` costs, beside native and each library's cap alone."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from harness.config import RunConfig
from harness.numerics import CAPS

WAYS = {"native": {}, "portable": CAPS} | {f"{name}={cap} alone": {name: cap} for name, cap in CAPS.items()}


def main() -> None:
    """Have a process for each way train epochs of three lanes with Adam, in turns, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numerics", description=__doc__)
    parser.add_argument("--data-dir", default=RunConfig().data_dir)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)  # one of the processes
    asked = parser.parse_args()
    if asked.train:
        return _train(asked.data_dir)
    command = [sys.executable, "-m", "benchmarks.numerics", "--train", "--data-dir", asked.data_dir]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = {way: subprocess.Popen(command, env={**os.environ, **caps}, **pipe) for way, caps in WAYS.items()}  # type: ignore[call-overload]
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(asked.rounds):
        for way, process in processes.items():
            print(file=process.stdin, flush=True)
            times[way].append(float(process.stdout.readline()))
    print("| numerics | s per epoch and run: median (least to most) | / native |\n|---|---|---|")
    for way, process in processes.items():
        process.stdin.close()
        median, native = statistics.median(times[way]), statistics.median(times["native"])
        print(f"| {way} | {median:.3f} ({min(times[way]):.3f} to {max(times[way]):.3f}) | {median / native:.2f} |")


def _train(data_dir: str) -> None:
    """Train an epoch for each line that comes, and answer with its seconds."""
    import torch

    from benchmarks.ours import lanes
    from harness.data import load

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    data = load("auto", data_dir, "unit", lambda line: None)
    epoch = lanes(RunConfig(dataset=data.name, data_dir=data_dir, optimizer="adam"), data, 3)()
    epoch()
    for _ in sys.stdin:
        print(epoch(), flush=True)


if __name__ == "__main__":
    main()
