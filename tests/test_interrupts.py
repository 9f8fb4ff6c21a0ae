"""Interrupts wait for what must not be cut."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import harness
from harness.config import RunConfig
from harness.interrupts import POLITE, waiting
from harness.search import run_search
from harness.space import Search
from harness.store import Store
from harness.study import Study


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Python's own handler, also where the tests were started with interrupts ignored, as a shell does in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_for_the_end_and_comes_then() -> None:
    before = [signal.getsignal(number) for number in POLITE]
    passed = []

    def work() -> None:
        with waiting(), waiting():
            os.kill(os.getpid(), signal.SIGINT)
            passed.append("after it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert passed == ["after it"]
    assert [signal.getsignal(number) for number in POLITE] == before


def test_an_error_inside_is_the_interrupts_context() -> None:
    def work() -> None:
        with waiting():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError("of the call")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ValueError)


def test_other_threads_are_let_through() -> None:
    done = []

    def work() -> None:
        with waiting():
            done.append(1)

    (thread := threading.Thread(target=work)).start()
    thread.join()
    assert done == [1]


def test_a_call_to_a_sqlite_store_is_not_cut(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")

    def work() -> None:
        with store.outage.noticed():
            os.kill(os.getpid(), signal.SIGINT)
            store.client.create_experiment("whole")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert store.client.get_experiment_by_name("whole") is not None


SMALL = {"dataset": "mnist_5k", "epochs": 1, "max_batches": 1}
STUDY = Study(name="cut", question="?", design="list", seeds=[0], base=SMALL, variants=[{"name": "a"}])
SEARCH = Search.of(
    name="cut", question="?", seeds=[0], metric="final/val_loss", base={**SMALL, "validation": 0.2},
    search={"trials": 2, "final_seeds": [1]}, space={"lr": {"choices": [0.01, 0.1]}},
)  # fmt: skip
MADE: Mapping[str, Callable[[], object]] = {
    "a run": lambda: harness.train(RunConfig(**SMALL), say=lambda line: None),
    "a study": lambda: harness.run_study(STUDY, workers=0, say=lambda line: None),
    "a search": lambda: run_search(SEARCH, workers=0, say=lambda line: None),
}


@pytest.mark.parametrize(("what", "run"), [("a run", 1), ("a study", 1), ("a study", 2), ("a search", 1), ("a search", 2)])
def test_an_interrupt_while_a_run_is_made_leaves_none_that_goes_on(
    what: str, run: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    make, made = MlflowClient.create_run, list[Run]()

    def cut(self: MlflowClient, *given: Any, **named: Any) -> Run:
        made.append(make(self, *given, **named))
        if len(made) == run:
            os.kill(os.getpid(), signal.SIGINT)
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", cut)
        with pytest.raises(KeyboardInterrupt):
            MADE[what]()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiments = [found.experiment_id for found in client.search_experiments()]
    assert [run.info.status for run in client.search_runs(experiments)] == ["KILLED"] * run
