"""Where worker processes come from: one process imports what they need, once, and each worker is a fork of it."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from typing import Any

from harness.errors import InputError, refusal

METHOD = "forkserver" if sys.platform == "linux" else "spawn"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def begin() -> None:
    """Start that process if it is not there. Whoever starts it before its own imports has workers as soon as they are done.

    It is no copy of its caller, and so knows nothing of the threads there; code and environment are those of this moment.
    Interrupts stay blocked in it and in its forks: a terminal sends Ctrl-C to all, and what it ends is for the driver to
    see to.
    """
    if METHOD == "spawn":
        return
    multiprocessing.get_context(METHOD).set_forkserver_preload(["harness.born"])
    # one thread is read at import: a process that has started threads should not be forked;
    # the path is what is imported from here, whatever lies in the working directory
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    wanted = {**ONE_THREAD, "PYTHONSAFEPATH": "1", "PYTHONPATH": path}
    before = {name: os.environ.get(name) for name in wanted}
    resource_tracker.ensure_running()  # or else the other would start it, and it unblocks interrupts
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(wanted)
    try:
        forkserver.ensure_running()
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        allowed = "a shorter path: workers are called by a socket in it"
        raise InputError(refusal("TMPDIR", tempfile.gettempdir(), allowed)) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        for name, value in before.items():  # only these: other threads may be reading the rest
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    atexit.register(end)


def end() -> None:
    """Stop it, so that the next one is of the code and environment of its own time.

    Left alone it would hear of its caller's end only after its imports, and hold the output open until then.
    """
    server: Any = forkserver._forkserver
    if METHOD == "forkserver" and server._forkserver_pid:
        with suppress(OSError):  # dead already
            os.kill(server._forkserver_pid, signal.SIGKILL)
            server._stop()
