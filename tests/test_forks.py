"""The forks that stand for processes of the command line in other tests end as those do, and refuse what they cannot be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import forks
import pytest

PARENT = "import os; print(os.getppid())"
READ = {"OMP_NUM_THREADS": "3"}, {"PYTHONHASHSEED": "7"}, {"PYTHONPATH": "/elsewhere"}, {"TZ": "Asia/Tokyo"}


def fork(program: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return forks.run([sys.executable, "-c", program, *arguments], timeout=150, **options)


@pytest.mark.parametrize(
    "program",
    [
        "",
        "import sys; sys.exit()",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('words')",
        "import sys; print(sys.argv[1:], __name__); sys.exit(sys.stdin.read())",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os; os.abort()",
        "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
        "raise ValueError('words')",
        "raise KeyboardInterrupt",
    ],
)
def test_a_program_ends_as_it_would_in_a_new_process(program: str) -> None:
    """With the same status and output, but for a traceback, whose last line it has, and for Python's own SIGINT at its end.

    A fork hears SIGINT, also where a new process would inherit that it is ignored, as in the background of a shell.
    """
    arguments: dict[str, Any] = {"stdin": subprocess.DEVNULL}
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-c", program, "a", "b c"]
    new = subprocess.run(command, capture_output=True, text=True, preexec_fn=hears, **arguments)
    mine = fork(program, "a", "b c", **arguments)
    status = 1 if new.returncode == -signal.SIGINT else new.returncode
    assert (mine.returncode, mine.stdout) == (status, new.stdout)
    assert mine.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]


def test_folder_environment_session_and_streams_are_its_own(tmp_path: Path) -> None:
    told = "import os; print(os.getcwd(), os.environ['WORD'], os.environ.get('HOME'), os.getsid(0) == os.getpid())"
    env = {name: value for name, value in os.environ.items() if name != "HOME"} | {"WORD": "bird"}
    assert fork(told, cwd=tmp_path, env=env, start_new_session=True).stdout == f"{tmp_path} bird None True\n"
    assert fork(told, env=env).stdout == f"{os.getcwd()} bird None False\n"


@pytest.mark.parametrize("env", READ, ids=lambda env: next(iter(env)))
def test_a_variable_that_an_import_has_read_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(AssertionError):
        fork("", env={**os.environ, **env})


@pytest.mark.parametrize(
    "option",
    [{"umask": 0}, {"preexec_fn": os.getpid}, {"process_group": 0}, {"user": 0}, {"group": 0}, {"extra_groups": []}],
    ids=lambda option: next(iter(option)),
)
def test_an_option_that_a_fork_would_ignore_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="not for a fork"):
        fork("", **option)


def test_an_interrupt_of_the_terminal_leaves_the_process_that_forks() -> None:
    before = fork(PARENT).stdout
    os.kill(int(before), signal.SIGINT)
    assert fork(PARENT).stdout == before
