"""`python -m benchmarks.search`: the harness beside plain Optuna over the notebook's loop, and the matrix's best cell.

Both searches have the space, sampler, sampler's seed, pruner, seeds and number of trials of experiments/tuning.toml, on
`mnist_5k`. They do not try the same settings: the harness asks for six at a time, plain Optuna for one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, random_split

from benchmarks.__main__ import machine
from benchmarks.around import store
from benchmarks.torch_ways import OPTIMIZERS, network
from harness.config import RunConfig
from harness.data import load
from harness.frames import runs
from harness.mirrors import torchvision_module
from harness.ranges import WHOLE, Levels, Range
from harness.space import Search
from harness.trials import Trials

DATASET = "mnist_5k"


def main() -> None:
    """Search twice, train the matrix, print and write what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("search"), help="writes OUTPUT.md and OUTPUT.json")
    asked = parser.parse_args()
    search = Search.read("tuning").override(trials=asked.trials, dataset=DATASET)
    found: dict[str, Any] = {"machine": machine(), "trials": asked.trials, **harness(search), "plain": plain(search)}
    asked.output.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    text = "\n".join(table(found))
    asked.output.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)


def harness(search: Search) -> dict[str, Any]:
    """The search and the matrix by their commands, in a fresh store: wall seconds, and the best of each on validation."""
    with store():
        began = time.perf_counter()
        _run("search", search.name, "--set", f"dataset={DATASET}", "--trials", str(search.budget))
        seconds = time.perf_counter() - began
        _run("study", "matrix", "--dataset", DATASET, "--validation", str(search.study.base["validation"]))
        trials = Trials.last(search.name)
        (best,) = trials.best.values()
        mine = trials.runs[trials.runs.variant == best.variant]
        cells = runs("matrix")
    means = cells.groupby("variant")["final/val_loss"].mean()
    first = cells[cells.variant == means.idxmin()]
    ours = {"seconds": seconds, "setting": dict(trials.settings[best.variant]), **_values(mine)}
    return {"harness": ours, "matrix": {"setting": str(means.idxmin()), **_values(first)}}


def _run(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "harness", *command], check=True)


def _values(rows: Any) -> dict[str, Any]:
    values = rows.sort_values("seed")["final/val_loss"].tolist()
    return {"values": values, "mean": statistics.mean(values)}


# plain Optuna, as one writes it


class Digits(Dataset[Any]):
    """Images made and turned into tensors one by one, as torchvision's MNIST with ToTensor does."""

    def __init__(self) -> None:
        torchvision_module()
        from torchvision.transforms import ToTensor

        train = load(DATASET, RunConfig().data_dir, "unit", lambda line: None).train
        self.images, self.labels, self.transform = train.pixels.view(-1, 28, 28).numpy(), train.labels.tolist(), ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[row])), self.labels[row]


def plain(search: Search) -> dict[str, Any]:
    """`study.optimize` over the notebook's loop, a trial after the other: wall seconds and the best value."""
    (row,), digits = search.study.rows, Digits()

    def objective(trial: optuna.Trial) -> float:
        setting = {name: _suggest(trial, name, asked) for name, asked in search.order}
        trained = [_epochs(row.config.replace(**setting, seed=seed), digits) for seed in search.study.seeds]
        for epoch, losses in enumerate(zip(*trained, strict=True), 1):
            trial.report(value := statistics.mean(losses), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=search.settings.seed)
    study = optuna.create_study(sampler=sampler, pruner=optuna.pruners.MedianPruner())
    study.enqueue_trial(search.start(row) or {})
    began = time.perf_counter()
    with torch.enable_grad():
        study.optimize(objective, n_trials=search.budget)
    seconds = time.perf_counter() - began
    pruned = sum(trial.state is optuna.trial.TrialState.PRUNED for trial in study.trials)
    return {"seconds": seconds, "setting": study.best_params, "mean": study.best_value, "pruned": pruned}


def _suggest(trial: optuna.Trial, name: str, asked: Range | Levels) -> Any:
    if isinstance(asked, Levels):
        return trial.suggest_categorical(name, asked.choices)
    if name in WHOLE:
        return trial.suggest_int(name, int(asked.low), int(asked.high), log=asked.log)
    return trial.suggest_float(name, asked.low, asked.high, log=asked.log)


def _epochs(config: RunConfig, digits: Digits) -> Iterator[float]:
    """Train by the notebook's loop; after each epoch the mean loss of what was held out."""
    held_out = round(len(digits) * config.validation)
    generator = torch.Generator().manual_seed(config.seed)
    train, rest = random_split(digits, [len(digits) - held_out, held_out], generator)
    loader, model = DataLoader(train, config.batch_size, shuffle=True, generator=generator), network(config)
    optimizer = OPTIMIZERS[config.optimizer](model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    for _ in range(config.epochs):
        model.train()
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        model.eval()
        with torch.no_grad():
            losses = [
                F.cross_entropy(model(inputs), labels, reduction="sum").item() for inputs, labels in DataLoader(rest, 1000)
            ]
        yield sum(losses) / held_out


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """What came of it, as Markdown."""
    where = ", ".join(f"{name} {value}" if name not in ("cpu", "date") else value for name, value in found["machine"].items())
    ours, theirs, cell = found["harness"], found["plain"], found["matrix"]
    yield f"{DATASET}, {found['trials']} trials x 3 seeds x 10 epochs; {where}.\n"
    yield "| | wall time, s | best validation loss | of its seeds | setting |\n|---|---|---|---|---|"
    yield f"| `harness search tuning`, with the comparison at its end | {ours['seconds']:.0f} | {_numbers(ours)} |"
    pruned = f"{theirs['pruned']} pruned"
    yield f"| plain Optuna over the notebook's loop, {pruned} | {theirs['seconds']:.0f} | {_numbers(theirs)} |"
    yield f"| the matrix's best cell | | {_numbers(cell)} |"
    yield f"\nPlain Optuna takes {theirs['seconds'] / ours['seconds']:.1f} times as long."


def _numbers(of: Mapping[str, Any]) -> str:
    values: Sequence[float] = of.get("values", ())
    setting = of["setting"]
    named = setting if isinstance(setting, str) else ", ".join(f"{k}={_short(v)}" for k, v in setting.items())
    return f"{of['mean']:.4f} | {', '.join(f'{value:.4f}' for value in values)} | {named}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
