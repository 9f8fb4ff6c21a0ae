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

import psutil

GIVEN_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")  # "32768 60999": those that the kernel chooses from
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
        port = random.SystemRandom().randrange(10_000, below) if below > 20_000 else 0  # where all are given out, any
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])


def harness_that_sends_itself(how: signal.Signals, epoch: int) -> list[str]:
    """The command `harness` of a process that gets a signal once all of an epoch is in the store."""
    return [sys.executable, "-c", SIGNALLED.format(epoch=epoch, how=how)]


def stop(pid: int, store: Path, seconds: float = 60) -> None:
    """SIGSTOP a process outside of a transaction: in the middle of one it would keep the sqlite store locked."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        os.kill(pid, signal.SIGSTOP)
        with suppress(sqlite3.OperationalError):
            with closing(sqlite3.connect(store, timeout=0.5, isolation_level=None)) as file:
                file.execute("BEGIN EXCLUSIVE")
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)
    raise TimeoutError(f"{pid} was in a transaction whenever it was stopped")


def column(store: Path, query: str) -> list[str]:
    """What a sqlite store has, read beside MLflow and whoever writes; nothing before it is made.

    `rw`: what a writer that was killed has left half done, a reader takes back.
    """
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{store}?mode=rw", uri=True, timeout=10)) as file:
        return [value for (value,) in file.execute(query)]
    return []


def runs_held(pid: int) -> set[str]:
    """The runs whose locks a process has open."""
    with suppress(psutil.Error):
        names = (Path(file.path).name for file in psutil.Process(pid).open_files())
        return {name.removeprefix("harness-").removesuffix(".lock") for name in names if name.startswith("harness-")}
    return set()


def children(pid: int) -> list[psutil.Process]:
    """Of a process that may be gone."""
    with suppress(psutil.Error):
        return psutil.Process(pid).children()
    return []


def is_fork(process: psutil.Process) -> bool:
    """Whether it is the server of forks, or one of them."""
    with suppress(psutil.Error):
        return "forkserver" in " ".join(process.cmdline())
    return False
