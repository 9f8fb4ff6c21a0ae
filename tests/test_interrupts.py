"""Interrupts wait for what must not be cut."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.interrupts import POLITE, waiting
from harness.store import Store


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
