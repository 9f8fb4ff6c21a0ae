"""Processes that tests start, stop and kill: at a moment that is chosen, not hoped for."""

from __future__ import annotations

import os
import random
import signal
import socket
import sqlite3
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

GIVEN_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")  # "32768	60999": those that the kernel chooses from
SIGNALLED = """
import os
from harness import cli, recorder
epoch = recorder.Recorder.epoch
def signalled(self, stack, lane, done):
    epoch(self, stack, lane, done)
    if done.epoch == {epoch}:
        os.kill(os.getpid(), {how:d})
recorder.Recorder.epoch = signalled
cli.run()
"""


def free_port() -> int:
    """One that nobody is given by chance, so that it is still free when a server has been imported."""
    below = int(GIVEN_OUT.read_text(encoding="ascii").split()[0]) if GIVEN_OUT.exists() else 32768
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port := random.SystemRandom().randrange(10_000, below)))
            return port


def harness_that_sends_itself(how: signal.Signals, epoch: int) -> list[str]:
    """The command `harness` of a process that gets a signal once all of an epoch is in the store."""
    return [sys.executable, "-c", SIGNALLED.format(epoch=epoch, how=how)]


def stop(pid: int, store: Path, seconds: float = 60) -> None:
    """SIGSTOP a process outside of a transaction: in the middle of one it would keep the sqlite store locked.

    Raises ProcessLookupError where it has ended.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        os.kill(pid, signal.SIGSTOP)
        with suppress(sqlite3.OperationalError):
            with closing(sqlite3.connect(store, timeout=0.5, isolation_level=None)) as file:
                file.execute("BEGIN IMMEDIATE")
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)
    raise TimeoutError(f"{pid} was in a transaction whenever it was stopped")
