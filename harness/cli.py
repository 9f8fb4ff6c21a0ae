"""The command line: arguments in, exit codes out. Nothing heavy is imported before the input is checked."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from harness import version
from harness.config import CHOICES, FIELDS, RunConfig, allowed
from harness.errors import HarnessError, InputError, refusal

if TYPE_CHECKING:
    from rich.progress import Progress

    from harness.recorder import RunResult
    from harness.results import EpochRecord

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 ran and failed, 2 bad input, 130 interrupted."""
    for polite in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(polite) != signal.SIG_IGN:  # nohup
            signal.signal(polite, _as_interrupt)
    try:
        cli(arguments, prog_name="harness", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except click.NoSuchOption as error:
        options = [name for option in error.ctx.command.params for name in option.opts] if error.ctx else []
        _fail(InputError(refusal("parameter", error.option_name, options)))
    except click.exceptions.NoArgsIsHelpError as error:
        _say(error.format_message())
        sys.exit(BAD_INPUT)
    except click.UsageError as error:
        _fail(InputError(error.format_message()))
    except HarnessError as error:
        _fail(error)
    except Exception:
        traceback.print_exc()
        sys.exit(FAILED)
    sys.exit(DONE)


def parameters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option for every field of RunConfig."""
    for name, about in reversed(FIELDS.items()):
        takes = f" ({allowed(name)})" if name in CHOICES else ""
        text = f"{about.description}{takes}  [{RunConfig().text()[name]}]"
        kind = {str: "NAME", int: "N"}.get(type(about.default), "X")
        command = click.option(f"--{_dashes(name)}", name, metavar=kind, help=text)(command)
    return command


def _dashes(name: str) -> str:
    return name.replace("_", "-")  # `mlflow run -P hidden_dim=64` passes unknown names on as they are


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "token_normalize_func": _dashes}
)
@click.version_option(version())
def cli() -> None:
    """Train small networks so that every number can be had again; all of it goes to MLflow.

    The store is MLFLOW_TRACKING_URI, else sqlite:///mlflow.db of the working directory.
    """


@cli.command()
@click.option("--resume", metavar="RUN_ID", help="Go on with a run that was killed; its config is its own.")
@click.option("--no-health", is_flag=True, help="Do not probe the hidden layers; losses and weights are the same.")
@parameters
def train(resume: str | None, no_health: bool, **given: str | None) -> None:
    """Train one combination of init, act, norm, optimizer and seed."""
    asked = {name: text for name, text in given.items() if text is not None}
    if resume is not None:
        if extra := sorted(set(asked) - {"data_dir"}):
            raise InputError(f"--{extra[0]} cannot go with --resume: the run keeps its own config")
    else:
        config = RunConfig(**asked)
        config.layers()  # a wrong layer list is found before two seconds of imports
    from harness import launch

    with EpochLines() as lines:
        common: dict[str, Any] = {"probe": not no_health, "report": lines, "say": lines.say}
        if resume is not None:
            result = launch.resume(resume, data_dir=asked.get("data_dir"), **common)
        else:
            result = launch.train(config, run_id=os.environ.pop("MLFLOW_RUN_ID", None), **common)
    _say(summary(result))


def summary(result: RunResult) -> str:
    """What a person wants to know at the end of a run."""
    final = result.final
    outcome = f"diverged in epoch {result.diverged}:" if result.diverged else "finished"
    return "\n".join(
        [
            f"{outcome:<8} {result.run_id}  {result.name}",
            f"test     loss {final['final/test_loss']:.5g} nats  accuracy {final['final/test_accuracy']:.4f}",
            f"digests  state {result.state_digest[:16]}  history {result.history_digest[:16]}",
            f"look     mlflow ui --backend-store-uri {result.store}",
            f"         {result.page}",
            f"         {result.chart}",
        ]
    )


class EpochLines:
    """Tells of each epoch in a line; on a terminal a bar below the lines shows how far it is and the seconds left."""

    def __init__(self) -> None:
        self.began: tuple[int, float] | None = None  # the first epoch told of, and when
        self.bar: Progress | None = None

    def __enter__(self) -> EpochLines:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, record: EpochRecord, epochs: int) -> None:
        """Tell of one epoch of so many."""
        terminal, now = sys.stdout.isatty(), time.monotonic()
        self.began = self.began or (record.epoch, now)
        done, seconds = record.epoch - self.began[0], now - self.began[1]
        left = f"{seconds / done * (epochs - record.epoch):.0f} s left" if done else ""
        parts = [
            f"{part} loss {record.curves[f'{part}/loss']:<7.4g} acc {record.curves[f'{part}/accuracy']:.3f}"
            for part in ("train", "val", "test")
            if f"{part}/loss" in record.curves
        ]
        line = f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}  {'  '.join(parts)}"
        self.say(line if terminal else f"{line}  {left}".rstrip())
        if terminal:
            self._draw(record.epoch, epochs)

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            _say(line)

    def _draw(self, epoch: int, epochs: int) -> None:
        if self.bar is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("epoch"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
            self.bar = Progress(*columns, transient=True)
            self.bar.add_task("epoch", total=epochs)
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], completed=epoch)


def _say(line: str, err: bool = False) -> None:
    try:
        print(line, file=sys.stderr if err else sys.stdout, flush=True)
    except BrokenPipeError:  # `| head` has seen enough; the run goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: HarnessError) -> None:
    """One line on stderr, and the exit code of the error."""
    _say(f"harness: error: {error}", err=True)
    sys.exit(error.exit_code)


def _as_interrupt(signum: int, frame: FrameType | None) -> None:
    """A polite kill, or a terminal that is closed, ends a run as Ctrl-C does: KILLED in the store, its checkpoint whole."""
    signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt
