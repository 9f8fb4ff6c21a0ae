"""`python -m benchmarks`: everything side by side, in one run, on one pinned core; a table as Markdown and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import around, others
from benchmarks.contest import Contender, Times, contest
from benchmarks.ours import lanes, limit
from benchmarks.torch_ways import in_memory, notebook
from harness.config import RunConfig
from harness.data import Data, load
from harness.study import Study

REGULARIZATION = ("none", "dropout", "batchnorm", "dropout_batchnorm")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--data-dir", default=RunConfig().data_dir, help="torchvision root; without MNIST there: mnist_5k")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmark"), help="writes OUTPUT.md and OUTPUT.json")
    parser.add_argument("--only", default="", help="contenders whose name has this in it")
    parser.add_argument("--no-study", action="store_true", help="leave out the whole matrix")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    say = print
    data = load("auto", asked.data_dir, "unit", say)
    config = RunConfig(dataset=data.name, data_dir=asked.data_dir, optimizer="adam")
    field = [c for c in contenders(config, data, say) if asked.only in c.name]
    times = contest(field, asked.rounds, say)
    os.sched_setaffinity(0, cores)
    found: dict[str, Any] = {"machine": machine(), "data": data.name, "epochs": {n: vars(t) for n, t in times.items()}}
    if not asked.only:
        found["around"] = around.costs(asked.rounds, asked.data_dir, data.name)
    if not (asked.no_study or asked.only):
        found["matrix"] = around.matrix(Study.read("matrix"), data.name, asked.data_dir)
    asked.output.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    text = "\n".join(table(found, times))
    asked.output.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)


def contenders(config: RunConfig, data: Data, say: Any) -> Iterator[Contender]:
    """Who takes part; names are what they are called in the table."""
    if data.name == "mnist":
        yield Contender("notebook's loop", notebook(config))
    yield Contender("plain PyTorch in memory", in_memory(config, data))
    yield Contender("plain PyTorch in memory, fused Adam", in_memory(config, data, fused=True))
    yield from others.contenders(config, data, say)
    for count in (1, 3, 6, 12):
        yield Contender(f"harness, {count} lane{'s' if count > 1 else ''}", lanes(config, data, count))
    yield Contender("limit: products + Adam", limit(config, data))
    yield Contender("limit: products alone", limit(config, data, "products"))
    yield Contender("limit: Adam alone", limit(config, data, "update"))
    for optimizer in ("sgd", "rmsprop"):
        other = config.replace(optimizer=optimizer)
        yield Contender(f"harness, 3 lanes, {optimizer}", lanes(other, data, 3))
        yield Contender(f"limit: products + {optimizer}", limit(other, data))
    for norm in ("batchnorm", "layernorm"):
        yield Contender(f"harness, 3 lanes, sgd, {norm}", lanes(config.replace(optimizer="sgd", norm=norm), data, 3))
    standard = load(data.name, config.data_dir, "standard")
    for name in REGULARIZATION:
        path = str(Path("experiments/networks") / f"{name}.json")
        wide = RunConfig(
            network=path, init="torch", optimizer="adam", lr=0.001, batch_size=64, normalize="standard",
            dataset=data.name, data_dir=config.data_dir,
        ).with_layers()  # fmt: skip
        if name == "none":
            if data.name == "mnist":
                yield Contender("notebook's loop, regularization network", notebook(wide))
            yield Contender("limit: regularization network", limit(wide, standard))
        yield Contender(f"harness, 3 lanes, regularization {name}", lanes(wide, standard, 3))


def machine() -> dict[str, str]:
    """Where it was measured, with what, and when."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = {name: metadata.version(name) for name in ("torch", "mlflow", "distributed", "numpy")}
    return {"cpu": f"{len(os.sched_getaffinity(0))} cores of {cpu}", **versions, "date": date.today().isoformat()}


def table(found: Mapping[str, Any], times: Mapping[str, Times]) -> Iterator[str]:
    """The measurements as Markdown."""
    where = ", ".join(f"{name} {value}" if name not in ("cpu", "date") else value for name, value in found["machine"].items())
    yield f"{found['data']}, one pinned core; {where}. Seconds per epoch and run: median (least to most) of the rounds.\n"
    yield "| | s per epoch and run | before the first epoch, s | times the notebook's loop | times the limit |"
    yield "|---|---|---|---|---|"
    notebook_, least = times.get("notebook's loop"), times.get("limit: products + Adam")
    for name, t in times.items():
        base = notebook_ if "regularization" not in name else times.get("notebook's loop, regularization network")
        floor = times.get("limit: regularization network") if "regularization" in name else least
        if "rmsprop" in name or "sgd" in name:
            floor = times.get(f"limit: products + {'rmsprop' if 'rmsprop' in name else 'sgd'}")
        faster = f"{base.median / t.median:.1f}x" if base else ""
        slower = f"{t.median / floor.median:.2f}x" if floor else ""
        yield f"| {name} | {t.median:.3f} ({min(t.rounds):.3f} to {max(t.rounds):.3f}) | {t.start:.1f} | {faster} | {slower} |"
    if "around" in found:
        yield "\n| around training | s, median |\n|---|---|"
        yield from (f"| {name} | {seconds:.3f} |" for name, seconds in found["around"].items())
    if "matrix" in found:
        m = found["matrix"]
        yield f"\nThe whole matrix, 30 runs of 10 epochs, by `harness study`: {m['seconds']:.0f} s, {m['workers']} workers"
        if notebook_:
            by_hand = 300 * notebook_.median
            yield f"(the notebook's loop, extrapolated from its epochs: {by_hand / 60:.0f} min, {by_hand / m['seconds']:.0f}x)."


if __name__ == "__main__":
    main()
