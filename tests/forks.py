"""Processes of the command line that begin where their imports end: each is a fork of one that made them.

Importing torch, MLflow and what exports a network takes a process seven seconds of a core, several times what most tests ask
of it. `Fork` is a `subprocess.Popen` and `run` a `subprocess.run` without them, for tests that need a process of its own
rather than one that imports: a pid, signals, pipes, an environment and a working directory are its own. All have the hash
seed, the modules and the single thread of the one that forks. What is about starting, about imports or about variables that
are read then takes `subprocess`, and a program ends by `harness.cli.run`, for nothing is called at the exit of a fork.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import inspect
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Sequence
from functools import cache
from multiprocessing import process
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from harness.numerics import CAPS

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = (
    "harness.born",
    "harness.cli",
    "harness.launch",
    "harness.driver",
    "harness.outlook",
    "harness.doctor",
    "mlflow.pyfunc",
    "mlflow.pytorch",
    "torch.export._trace",
    "sympy.combinatorics",
)
# a fork has the thread that forks, and no other
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
AT_IMPORT = (*CAPS, *ONE_THREAD, "PYTHONHASHSEED", "PYTHONOPTIMIZE", "TZ")
USUAL = {"executable": None, "preexec_fn": None, "pass_fds": (), "shell": False, "umask": -1, "process_group": -1}
USUAL |= dict.fromkeys(("gid", "gids", "uid"))
LONGEST = 2**18  # bytes of a call, most of which are its environment
STARTING = threading.Lock()
NUMBER = 8  # bytes of what is told of a fork: first its pid, then -1 - status
EXECUTE = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]


class Fork(subprocess.Popen[str]):
    """`subprocess.Popen([sys.executable, "-m", "harness", ...])`, or with "-c", without the imports."""

    told: socket.socket

    def _execute_child(self, *given: Any) -> None:
        asked = EXECUTE.bind(self, *given).arguments
        python, *words = asked["args"]
        assert python == sys.executable
        assert not {name: asked[name] for name, value in USUAL.items() if asked.get(name, value) != value}, "not for a fork"
        env = dict(os.environ if asked["env"] is None else asked["env"])
        assert not [name for name in AT_IMPORT if env.get(name) != os.environ.get(name)], "an import reads it"
        assert env.get("PYTHONPATH", str(ROOT)) == str(ROOT), "it has other imports"
        cwd = os.path.abspath(asked["cwd"] or ".")
        assert os.path.isdir(cwd), cwd
        call = {"words": words, "cwd": cwd, "env": env, "session": asked["start_new_session"]}
        pipes = [asked[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        files = [number if file == -1 else file for number, file in enumerate((pipes[0], pipes[3], pipes[5]))]
        self.told, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(_server(), [json.dumps(call).encode()], [*files, theirs.fileno()])
        self.pid = self._told()
        assert self.pid > 0, f"it ended before it was itself, with status {-1 - self.pid}"
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _told(self) -> int:
        if number := self.told.recv(NUMBER):
            return int.from_bytes(number, signed=True)
        if self._child_created:  # nobody will tell when it ends
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        raise ChildProcessError("the process that forks is gone")

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        self.told.setblocking(not wait_flags & os.WNOHANG)
        try:
            status = -1 - self._told()
        except BlockingIOError:
            return 0, 0
        self.told.close()
        return self.pid, status

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None and (ended := self._try_wait(os.WNOHANG))[0]:
                    self._handle_exitstatus(ended[1])  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def run(words: Sequence[str], *, timeout: float, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run(words, capture_output=True, text=True, ...)` of a fork."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    with Fork(list(words), **options) as child:
        try:
            out, err = child.communicate(timeout=timeout)
        except BaseException:
            child.kill()
            raise
    done = subprocess.CompletedProcess(words, child.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def _server() -> socket.socket:
    """Started by the first call, ended with this process."""
    with STARTING:
        return _started()


@cache
def _started() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    with theirs:
        words = [sys.executable, "-c", f"import forks; forks.serve({theirs.fileno()})"]
        child = subprocess.Popen(
            words, env={**clean, **ONE_THREAD, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}, pass_fds=[theirs.fileno()]
        )
    atexit.register(child.wait)
    atexit.register(ours.close)
    return ours


# the one that forks


def serve(descriptor: int) -> None:
    """Fork for each call that comes over a socket, and tell over the call's own what became of it, until the socket closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to this process too
    sys.path.remove(str(ROOT / "tests"))
    for name in IMPORTED:
        with contextlib.suppress(Exception):  # what is wrong with it shows in the fork that asks for it
            __import__(name)
    assert threading.active_count() == 1, "a fork has one thread"
    gc.freeze()
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    calls, children = socket.socket(fileno=descriptor), dict[int, socket.socket]()
    while True:
        if woken in select.select([calls, woken], [], [])[0]:
            woken.recv(4096)
            _reap(children)
            continue
        call, files, *_ = socket.recv_fds(calls, LONGEST, 4)
        if not call:
            return
        pid = os.fork()
        if pid == 0:
            for other in (calls, woken, wake, *children.values()):
                other.close()
            _become(call, files)
        children[pid] = socket.socket(fileno=files.pop())
        for file in files:
            os.close(file)


def _reap(children: dict[int, socket.socket]) -> None:
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            with children.pop(pid) as caller, contextlib.suppress(OSError):  # who asked is gone
                caller.send((-1 - status).to_bytes(NUMBER, signed=True))


def _become(sent: bytes, files: Sequence[int]) -> NoReturn:
    """Be the process that was asked for, as `python -m harness` or `python -c` would."""
    code: int | str | None = None
    try:
        call = json.loads(sent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if call["session"]:
            os.setsid()
        os.write(files[3], os.getpid().to_bytes(NUMBER, signed=True))
        for number in range(3):
            os.dup2(files[number], number)
        for file in files:
            os.close(file)
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.chdir(call["cwd"])
        os.environ.clear()
        os.environ.update(call["env"])
        tempfile.tempdir, process.ORIGINAL_DIR = None, call["cwd"]  # what libraries have kept of where they were imported
        option, program, *arguments = call["words"]
        gc.enable()
        np.random.seed()  # noqa: NPY002 - no two new processes are alike; `random` sees to itself
        sys.path.insert(0, os.getcwd() if option == "-m" else "")
        if option == "-m":
            from harness.cli import run as main

            sys.argv = [program, *arguments]
            main()
        else:
            sys.argv = ["-c", *arguments]
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(program, sys.modules["__main__"].__dict__)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError, ValueError):
        if isinstance(code, str):
            print(code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
