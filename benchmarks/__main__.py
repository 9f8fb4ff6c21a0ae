"""`python -m benchmarks`: everything side by side, in one run, on one pinned core; a table as Markdown and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import around, others
from benchmarks.contest import LIMIT, NOTEBOOK, Contender, Times, contest
from benchmarks.ours import lanes, limit, step
from benchmarks.torch_ways import in_memory, notebook
from harness.components.norms import NORMS
from harness.components.optimizers import OPTIMIZERS
from harness.config import RunConfig
from harness.data import Data, load
from harness.sparse import pays
from harness.study import Study

REGULARIZATION = ("none", "dropout", "batchnorm", "dropout_batchnorm")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--data-dir", default=RunConfig().data_dir, help="torchvision root; without MNIST there: mnist_5k")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmark"), help="writes OUTPUT.md and OUTPUT.json")
    parser.add_argument("--dataset", default="auto", choices=("auto", "mnist", "mnist_5k"))
    parser.add_argument("--only", action="append", help="only contenders whose name has this in it; again for more")
    asked = parser.parse_args()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    say = print
    data = load(asked.dataset, asked.data_dir, "unit", say)
    config = RunConfig(dataset=data.name, data_dir=asked.data_dir, optimizer="adam")
    field = [c for c in contenders(config, data, say) if not asked.only or any(part in c.name for part in asked.only)]
    times = contest(field, asked.rounds, say)
    steps = {} if asked.only else {count: step(config, data, count) for count in (1, 3)}
    os.sched_setaffinity(0, cores)
    found: dict[str, Any] = {"machine": machine(), "data": data.name, "epochs": {n: vars(t) for n, t in times.items()}}
    if not asked.only:
        found["step"] = steps
        found["around"] = around.costs(asked.rounds, asked.data_dir, data.name)
        found["matrix"] = around.matrix(Study.read("matrix"), data.name, asked.data_dir)
    asked.output.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    text = "\n".join(table(found, field, times))
    asked.output.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)


def contenders(config: RunConfig, data: Data, say: Callable[[str], None]) -> Iterator[Contender]:
    """Who takes part; names are what they are called in the table."""

    def ours(what: str, changed: RunConfig, count: int, data: Data = data, notebook: str = "", least: str = "") -> Contender:
        name = f"harness, {count} lane{'s' if count > 1 else ''}, {what}"
        return Contender(name, lanes(changed, data, count), notebook, least, count)

    if data.name == "mnist":
        yield Contender(NOTEBOOK, notebook(config), NOTEBOOK)
    yield Contender("plain PyTorch in memory", in_memory(config, data), NOTEBOOK, LIMIT)
    yield Contender("plain PyTorch in memory, fused Adam", in_memory(config, data, fused=True), NOTEBOOK, LIMIT)
    yield from others.contenders(config, data, say)
    yield Contender(LIMIT, limit(config, data))
    yield Contender("limit, adam: products alone", limit(config, data, "products"))
    yield Contender("limit, adam: update alone", limit(config, data, "update"))
    if pays(config.hidden_dim, config.batch_size):  # else the limit above is of all pixels
        yield Contender("limit, adam, all pixels: products + update", limit(config, data, dense=True))
    for count in (1, 3, 5, 6, 12):
        yield ours("adam", config, count, notebook=NOTEBOOK, least=LIMIT)
    for count in (3, 5):  # as studies have them: variants that differ in init, lr or weight_decay
        alike = lanes(config, data, count, one_seed=True)
        yield Contender(f"harness, {count} lanes of one seed, adam", alike, NOTEBOOK, LIMIT, count)
    for optimizer in sorted(set(OPTIMIZERS) - {"adam"}):
        other = config.replace(optimizer=optimizer)
        yield Contender(least := f"limit, {optimizer}: products + update", limit(other, data))
        yield ours(optimizer, other, 3, least=least)
    for norm in sorted(set(NORMS) - {"none"}):
        other = config.replace(optimizer="sgd", norm=norm)
        yield Contender(least := f"limit, sgd, {norm}: products + norm + update", limit(other, data))
        yield ours(f"sgd, {norm}", other, 3, least=least)
    yield ours("adam, dropout 0.3", config.replace(dropout=0.3), 3, least=LIMIT)
    standard = load(data.name, config.data_dir, "standard")
    for name in REGULARIZATION:
        wide = RunConfig(
            network=f"experiments/networks/{name}.json", init="torch", optimizer="adam", lr=0.001, batch_size=64,
            normalize="standard", dataset=data.name, data_dir=config.data_dir,
        ).with_layers()  # fmt: skip
        by_hand = f"notebook's loop, 784-256-128-10 {name}"
        if data.name == "mnist" and name == "none":
            yield Contender(by_hand, notebook(wide), by_hand)
        yield Contender(least := f"limit, 784-256-128-10 {name}", limit(wide, standard))
        yield ours(f"784-256-128-10 {name}", wide, 2, standard, by_hand, least)


def machine() -> dict[str, str]:
    """Where it was measured, with what, and when."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = {name: metadata.version(name) for name in ("torch", "mlflow", "distributed", "numpy")}
    kind = f"{cpu} ({torch.backends.cpu.get_cpu_capability()})"
    return {"cpu": f"{len(os.sched_getaffinity(0))} cores of {kind}", **versions, "date": date.today().isoformat()}


def table(found: Mapping[str, Any], field: Sequence[Contender], times: Mapping[str, Times]) -> Iterator[str]:
    """The measurements as Markdown."""
    where = ", ".join(f"{name} {value}" if name not in ("cpu", "date") else value for name, value in found["machine"].items())
    yield f"{found['data']}; {where}. One pinned core; seconds per epoch and run: median (least to most) of the rounds.\n"
    yield "| | s per epoch and run | before it, s | notebook's loop / this | this / limit |"
    yield "|---|---|---|---|---|"
    for contender in field:
        t, by_hand, least = times[contender.name], times.get(contender.notebook), times.get(contender.limit)
        faster, slower = (
            f"{by_hand.median / t.median:.1f}" if by_hand else "",
            f"{t.median / least.median:.2f}" if least else "",
        )
        spread = f"{t.median:.3f} ({min(t.rounds):.3f} to {max(t.rounds):.3f})"
        yield f"| {contender.name} | {spread} | {t.start:.1f} | {faster} | {slower} |"
    if "around" not in found:
        return
    yield "\n| one step, adam, µs a lane | " + " | ".join(f"{count} lanes" for count in found["step"]) + " |\n|---|---|---|"
    for part in found["step"][1]:
        yield f"| {part} | " + " | ".join(f"{parts[part]:.1f}" for parts in found["step"].values()) + " |"
    yield "| sum | " + " | ".join(f"{sum(parts.values()):.1f}" for parts in found["step"].values()) + " |"
    yield "\n| around training | s, median |\n|---|---|"
    yield from (f"| {name} | {seconds:.3f} |" for name, seconds in found["around"].items())
    whole = found["matrix"]
    yield f"\n| `harness study matrix`, {whole['runs']} runs on {whole['workers']} workers | |\n|---|---|"
    yield f"| wall time | {whole['seconds']:.0f} s |"
    if NOTEBOOK in times:
        by_hand_seconds = 10 * whole["runs"] * times[NOTEBOOK].median
        yield f"| the notebook's way, extrapolated: its epoch times {10 * whole['runs']} | {by_hand_seconds:.0f} s |"
        yield f"| that / wall time | {by_hand_seconds / whole['seconds']:.1f} |"
    yield from (f"| share of {whole['workers']} cores' time: {name} | {share:.1%} |" for name, share in whole["shares"].items())
    yield f"| memory of the largest worker | {whole['largest_worker_mib']:.0f} MiB |"


if __name__ == "__main__":
    main()
