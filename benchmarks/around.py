"""What is not training: imports, command line, store, checkpoints, figures; and the whole matrix as people launch it."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dask.system import CPU_COUNT

from benchmarks.contest import timed
from harness.config import RunConfig
from harness.frames import history
from harness.plan import prepare
from harness.recorder import Recorder
from harness.study import Study
from harness.tracking import Store
from harness.training import Stack, exact_arithmetic, train


@contextmanager
def store() -> Iterator[Path]:
    """A fresh sqlite store in a folder of its own."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        try:
            yield Path(folder)
        finally:
            os.environ.pop("MLFLOW_TRACKING_URI")
            os.environ.update({"MLFLOW_TRACKING_URI": before} if before else {})


def costs(rounds: int, data_dir: str, dataset: str) -> Mapping[str, float]:
    """Median seconds of each."""
    harness = (sys.executable, "-m", "harness")
    asked = ("--dataset", dataset, "--data-dir", data_dir)

    def command(*words: str) -> Callable[[], object]:
        return lambda: subprocess.run(words, check=True, capture_output=True)

    outside = {
        "harness --help": command(*harness, "--help"),
        "import torch": command(sys.executable, "-c", "import torch"),
        "import mlflow": command(sys.executable, "-c", "import mlflow"),
        "import harness.driver": command(sys.executable, "-c", "import harness.driver"),
        "harness train, one minibatch": command(*harness, "train", *asked, "--epochs", "1", "--max-batches", "1"),
    }
    with store():
        found = {name: statistics.median(timed(work) for _ in range(rounds)) for name, work in outside.items()}
        inside = [_run(RunConfig(dataset=dataset, data_dir=data_dir, epochs=2, max_batches=1)) for _ in range(rounds + 1)]
    return found | {name: statistics.median(times[name] for times in inside[1:]) for name in inside[0]}


def _run(config: RunConfig) -> dict[str, float]:
    """What a run writes, part by part."""
    plan = prepare(config)
    log = Store().create("benchmark", plan.cell.name)
    recorder, times = Recorder(log, plan), {}
    with exact_arithmetic():
        times["a run: begin (params, tags, inputs)"] = timed(recorder.begin)
        stack = Stack.of(plan.arch, [plan.config], plan.data)
        records = list(train_and_record(stack, recorder))
        times["an epoch: metrics and checkpoints"] = records[-1]
        recorder.models = False
        times["a run: end without model (figures, digests, tags)"] = timed(lambda: recorder.finish(stack, 0))
        model = Recorder(log, plan, history=recorder.history)
        times["a run: end with model"] = timed(lambda: model.finish(stack, 0))
    return times


def train_and_record(stack: Stack, recorder: Recorder) -> Iterator[float]:
    """Seconds to write each epoch."""
    for done in train(stack, probe=True):
        yield timed(lambda done=done: recorder.epoch(stack, 0, done))  # type: ignore[misc]


def matrix(study: Study, dataset: str, data_dir: str) -> dict[str, Any]:
    """The study from its command line on all cores: wall seconds, and how many of a core's were training."""
    with store():
        command = (sys.executable, "-m", "harness", "study", study.name, "--dataset", dataset, "--data-dir", data_dir)
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        trained = float(history(study.name)["time/epoch_seconds"].sum())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"seconds": seconds, "workers": CPU_COUNT, "core_seconds_of_training": trained, "largest_process_mib": peak}
