"""What is not training: imports, command line, store, checkpoints, figures; and the whole matrix as people launch it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from dask.system import CPU_COUNT

from benchmarks.contest import timed
from harness.architecture import as_module
from harness.config import RunConfig
from harness.frames import history
from harness.launched import Launched
from harness.plan import prepare
from harness.record import VOLATILE
from harness.recorder import Recorder
from harness.store import Store
from harness.study import Study
from harness.tracking import RunLog
from harness.training import Stack, evaluate, exact_arithmetic, train

LOOK = 15  # seconds between looks at the memory of workers: each takes 55 ms of a core, nearly 3% of two if taken every second


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
    """Median seconds of each: commands and imports as processes of their own, what a run writes in this one."""
    found = defaultdict[str, list[float]](list)
    for _ in range(rounds):
        with store():
            for name, words in COMMANDS.items():
                data = () if words[0] == "-c" or "--help" in words else ("--dataset", dataset, "--data-dir", data_dir)
                work = partial(subprocess.run, (sys.executable, *words, *data), check=True, capture_output=True)
                found[name].append(timed(work))
    with store():
        for turn in range(rounds + 1):
            for name, seconds in _run(RunConfig(dataset=dataset, data_dir=data_dir, epochs=2, max_batches=1)).items():
                if turn:  # the first one imports, and finds its fonts
                    found[name].append(seconds)
        evaluated = _evaluations(RunConfig(dataset=dataset, data_dir=data_dir), rounds)
    return {name: statistics.median(times) for name, times in found.items()} | evaluated


ONE = ("--epochs", "1", "--max-batches", "1")
COMMANDS = {  # each in the same store as those before it
    "`harness --help`": ("-m", "harness", "--help"),
    "`import torch`": ("-c", "import torch"),
    "`import mlflow`": ("-c", "import mlflow"),
    "`import harness.launch`": ("-c", "import harness.launch"),
    "`harness train`, one minibatch": ("-m", "harness", "train", *ONE),
    "`harness study matrix`, 30 runs of one minibatch": ("-m", "harness", "study", "matrix", *ONE),
    "the same again: nothing to train": ("-m", "harness", "study", "matrix", *ONE),
}
BEGIN, EPOCH, END = "a run: params, tags, inputs", "an epoch: metrics and checkpoints", "a run: figures, digests, tags"
TEST, TRAIN = "an epoch: test loss and accuracy", "a run: final training loss and accuracy"


def _run(config: RunConfig) -> dict[str, float]:
    """What a run writes, part by part. Imports are done."""
    whole, times = time.perf_counter(), {}
    plan = prepare(config)
    store = Store()
    log = RunLog(store, store.create("benchmark", plan.cell.name))
    recorder = Recorder(log, plan, models=False)
    with exact_arithmetic():
        times[BEGIN] = timed(recorder.begin)
        stack = Stack.of(plan.arch, [plan.config], plan.data)
        for done in train(stack, probe=True):
            times[EPOCH] = timed(lambda done=done: recorder.epoch(stack, 0, done))  # type: ignore[misc]
        times[END] = timed(lambda: recorder.finish(stack, 0))
        end = time.perf_counter()
        model = as_module(plan.arch, stack.network.state(0), 1)
        times["a run: the network as an MLflow model"] = timed(lambda: log.model(model, plan.data.test[:4].images, 1))
    return times | {"a run of two minibatches, all of it but the model": end - whole}


def _evaluations(config: RunConfig, rounds: int) -> dict[str, float]:
    plan = prepare(config)
    with exact_arithmetic():
        stack = Stack.of(plan.arch, [plan.config], plan.data)
        parts = {TEST: "test", TRAIN: "train"}
        return {
            name: statistics.median(timed(partial(evaluate, stack, 0, part)) for _ in range(rounds))
            for name, part in parts.items()
        }


def matrix(study: Study, dataset: str, data_dir: str) -> dict[str, Any]:
    """The study from its command line on all cores: wall seconds, what share of them trained, the memory of a worker.

    Steps and evaluation are as each run has timed them, in the company of the other worker and of what lies between them.
    Workers are forks and share the libraries that they were born with: their memory is counted proportionally (PSS), and
    seldom, so that a peak between two looks is missed.
    """
    with store():
        command = (sys.executable, "-m", "harness", "study", study.name, "--dataset", dataset, "--data-dir", data_dir)
        began, largest = time.perf_counter(), 0
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while driver.poll() is None:
            with suppress(psutil.Error):
                workers = [w for child in psutil.Process(driver.pid).children() for w in child.children()]
                largest = max([largest, *(worker.memory_full_info().pss for worker in workers)])
            with suppress(subprocess.TimeoutExpired):
                driver.wait(LOOK)
        seconds = time.perf_counter() - began
        if driver.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {driver.returncode}")
        launched = Launched.last(study.name)
        epochs = history(launched)
        records = launched.parsed("record.json", epochs["run_id"], json.loads)
        if missing := set(epochs["run_id"]) - set(records):
            raise RuntimeError(f"no record of {sorted(missing)}")
    core_seconds = {
        "training steps": float(epochs["time/epoch_seconds"].sum()),
        "evaluation and health probes": sum(record[VOLATILE]["evaluation_seconds"] for record in records.values()),
    }
    shares = {name: spent / (seconds * CPU_COUNT) for name, spent in core_seconds.items()}
    shares["all else: imports, store, logging, checkpoints, figures, scheduling, idle cores"] = 1 - sum(shares.values())
    mib = largest / 2**20
    return {"seconds": seconds, "workers": CPU_COUNT, "runs": len(records), "shares": shares, "largest_worker_mib": mib}
