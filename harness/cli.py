"""The command line: arguments in, exit codes out. Nothing heavy is imported before the input is checked."""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import click

from harness import version
from harness.commands import DONE, FAILED, doctor, report, results, search, status, study, train, verify
from harness.errors import HOMELESS, HarnessError, InputError, WriteError, refusal
from harness.interrupts import POLITE
from harness.options import dashes
from harness.screen import say

BAD_INPUT, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 ran and failed, 2 bad input, 130 interrupted."""
    before = {polite: signal.getsignal(polite) for polite in POLITE}
    for polite in POLITE:
        if before[polite] != signal.SIG_IGN:  # nohup
            signal.signal(polite, _as_interrupt)
    try:
        cli(arguments, prog_name="harness", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        say("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except click.NoSuchOption as error:
        options = [name for option in error.ctx.command.params for name in option.opts] if error.ctx else []
        _fail(InputError(refusal("parameter", error.option_name, options)))
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        sys.exit(BAD_INPUT)
    except click.UsageError as error:
        _fail(InputError(error.format_message()))
    except HarnessError as error:
        _fail(error)
    except OSError as error:  # a disk, in the middle of it
        _fail(WriteError(str(error)))
    except Exception as error:
        if any(signal.getsignal(polite) == signal.SIG_IGN != before[polite] for polite in POLITE):
            say("interrupted", err=True)  # in the middle of an import, say, which made another error of it
            sys.exit(INTERRUPTED)
        if isinstance(error, RuntimeError) and "home directory" in str(error):
            _fail(InputError(HOMELESS))
        traceback.print_exc()
        sys.exit(FAILED)
    sys.exit(DONE)


def run() -> None:
    """`main` as a process of its own: it cleans up and leaves; for Python to end its libraries takes a second or two."""
    _lead_nowhere()
    gc.set_threshold(10_000)  # a new store, and what is imported later, are objects that stay
    try:
        main()
    except SystemExit as end:
        atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):  # whoever read it is gone
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else FAILED)


@click.group(
    commands=[train, study, search, status, results, report, verify, doctor],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "token_normalize_func": dashes},
)
@click.version_option(version())
def cli() -> None:
    """Train small networks so that every number can be had again; all of it goes to MLflow.

    The store is MLFLOW_TRACKING_URI, else sqlite:///mlflow.db of the working directory.
    """


def _lead_nowhere() -> None:
    """Give a process that was started with its input or outputs closed some: the next file would take their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a sign that it cannot show is no reason to fail
        elif stream is None:
            os.set_inheritable(number := os.open(os.devnull, os.O_RDWR), True)  # by workers
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


def _fail(error: HarnessError) -> None:
    """One line on stderr, and the exit code of the error."""
    say(f"harness: error: {error}", err=True)
    sys.exit(error.exit_code)


def _as_interrupt(signum: int, frame: FrameType | None) -> None:
    """A polite kill, or a terminal that is closed, ends a run as Ctrl-C does: KILLED in the store, its checkpoint whole."""
    signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt
