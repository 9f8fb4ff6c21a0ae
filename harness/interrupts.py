"""Interrupts: which signals end a process politely, and how they wait for what must not be cut."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def waiting() -> Iterator[None]:
    """Let polite signals wait for the end of what is inside; the first of them is then handled as it would have been.

    A transaction that KeyboardInterrupt cuts keeps its lock of a sqlite file until Python has collected it: the process then
    waits for itself, 20 seconds a call. Handlers run in the main thread alone, so elsewhere there is nothing to do.
    """
    came: list[tuple[int, FrameType | None]] = []
    handlers = {number: handler for number in POLITE if callable(handler := signal.getsignal(number))}
    if threading.current_thread() is not threading.main_thread() or not handlers:
        yield
        return
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: came.append((number, frame)))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            handlers[signal.Signals(came[0][0])](*came[0])
