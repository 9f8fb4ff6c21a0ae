"""What people see on a terminal: lines, a bar above which they go by, and what they want to know at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from harness.errors import short

if TYPE_CHECKING:
    from rich.progress import Progress

    from harness.cells import StudyResult
    from harness.progress import Progress as StudyProgress
    from harness.recorder import RunResult
    from harness.results import EpochRecord
    from harness.search import SearchResult

MOST_LINES = 12  # of conclusions on a screen


def say(line: str, err: bool = False) -> None:
    """Print a line at once; whoever read and has gone does not end what runs."""
    try:
        print(line, file=sys.stderr if err else sys.stdout, flush=True)
    except BrokenPipeError:  # `| head` has seen enough; the run goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def conclusions(sentences: Sequence[str]) -> list[str]:
    """The first conclusions, a line each; the page has all."""
    more = [f"... and {len(sentences) - MOST_LINES} more in the report"] if len(sentences) > MOST_LINES else []
    return [*sentences[:MOST_LINES], *more]


def found(result: SearchResult) -> str:
    """What a person wants to know at the end of a search."""
    from harness import frames

    lines = [""]
    for row, trial in result.best.items():
        setting = "  ".join(f"{name}={short(value)}" for name, value in trial.setting.items())
        lines.append(f"best     {f'{row}: ' if result.search.study.factors else ''}{trial.name}  {setting}")
        lines.append(f"         {result.search.command(trial.condition, trial.setting)}")
    lines += [f"edge     {line}; the space may be too small" for line in result.warnings]
    lines += [f"failed   {name}: {why}; the same command tries again" for name, why in result.failed.items()]
    if result.final is not None:
        lines += ["", frames.text(frames.outline(result.final.table), "table").rstrip("\n"), ""]
        lines.append(f"compare  {result.final.study.name}, on fresh seeds: harness results {result.final.study.name}")
    done = sum(trial.state not in ("asked", "failed") for trial in result.trials)
    lines += [
        f"done     {done} trials, {result.trained} runs now, in {result.seconds:.0f} s",
        f"report   {result.page}",
        f"look     mlflow ui --backend-store-uri {result.store}",
        f"         {result.chart}",
    ]
    return "\n".join(lines)


def verdict(result: StudyResult) -> str:
    """What a person wants to know at the end of a study."""
    from harness import frames

    lines = ["", frames.text(frames.outline(result.table), "table")]
    lines += [*conclusions(result.sentences), ""]
    lines += [f"failed   {name}: {why}" for name, why in result.failed.items()]
    if result.copies:
        lines.append(f"copies   {result.copies}")
    lines += [
        f"done     {result.settled} of {len(result.study.cells)} cells, {result.trained} now, in {result.seconds:.0f} s",
        f"report   {result.page}",
        f"look     mlflow ui --backend-store-uri {result.store}",
        f"         {result.chart}",
        "         it draws the mean curve of each variant and the band of all its seeds in the store, from lowest to highest",
    ]
    return "\n".join(lines)


def ending(result: RunResult) -> str:
    """What a person wants to know at the end of a run."""
    final = result.final
    outcome = f"diverged in epoch {result.diverged}:" if result.diverged else "finished"
    return "\n".join(
        [
            f"{outcome:<8} {result.run_id}  {result.name}",
            f"test     loss {final['final/test_loss']:.5g} nats  accuracy {final['final/test_accuracy']:.4f}",
            f"digests  state {result.state_digest[:16]}  history {result.history_digest[:16]}",
            *(f"lost     {figure}" for figure in result.lost),
            f"look     mlflow ui --backend-store-uri {result.store}",
            f"         {result.page}",
            f"         {result.chart}",
        ]
    )


class Lines:
    """Prints lines; on a terminal above a bar that shows how far it is and, once that is known, the time left."""

    def __init__(self) -> None:
        self.bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            say(line)

    def draw(self, text: str, done: int, total: int, left: str) -> None:
        """Move the bar."""
        if self.bar is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
            self.bar = Progress(*columns, transient=True)
            self.bar.add_task(text, total=total, left=left)
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], description=text, completed=done, total=total, left=left)


class EpochLines(Lines):
    """Tells of each epoch of a run in a line."""

    began: tuple[int, float] | None = None  # the first epoch told of, and when

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
            self.draw("epoch", record.epoch, epochs, left)


class StudyLines(Lines):
    """On a terminal, how many cells (trials) are done, how many runs train and with what losses; else nothing more."""

    def __call__(self, now: StudyProgress) -> None:
        """Show how far a study is."""
        if sys.stdout.isatty():
            losses = sorted(now.running.values())
            of = f", {now.part} loss {losses[0]:.3g} to {losses[-1]:.3g}" if losses else ""
            failed = f", {now.failed} failed" if now.failed else ""
            text = f"{now.settled}/{now.cells} {now.what}, {len(now.running)} training{of}{failed}; epoch"
            self.draw(text, now.epoch, now.epochs, "" if now.seconds_left is None else f"{now.seconds_left:.0f} s left")
