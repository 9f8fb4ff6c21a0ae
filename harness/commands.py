"""The commands: each checks its input, has it done, says what came of it, and leaves with 0 or 1."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness import nursery, options, space, storefile
from harness.config import FIELDS, RunConfig
from harness.errors import InputError, refusal
from harness.imports import uncollected
from harness.numerics import choose
from harness.screen import EpochLines, StudyLines, conclusions, ending, found, say, verdict
from harness.sequential import MOST_SEEDS, looks
from harness.space import Search
from harness.study import Study

if TYPE_CHECKING:
    from harness.cells import StudyResult
    from harness.results import EpochRecord

FORMATS = ("table", "csv", "parquet", "json", "markdown")
ROWS = ("summary", "compare", "runs", "history")
DONE, FAILED = 0, 1


@click.command()
@click.option("--resume", metavar="RUN_ID", help="Go on with a run that was killed; its config is its own.")
@click.option("--no-health", is_flag=True, help="Do not probe the hidden layers; losses and weights are the same.")
@click.option("--profile", metavar="FILE.json", help="Profile the first epoch into this file, for ui.perfetto.dev.")
@options.arithmetic
@options.parameters
def train(resume: str | None, no_health: bool, profile: str | None, numerics: str, **given: str | None) -> None:
    """Train one combination of init, act, norm, optimizer and seed."""
    choose(numerics)
    asked = {name: text for name, text in given.items() if text is not None}
    if resume is not None:
        if profile is not None:
            raise InputError("--profile cannot go with --resume: it profiles the first epoch")
        if extra := sorted(set(asked) - {"data_dir"}):
            raise InputError(f"--{extra[0]} cannot go with --resume: the run keeps its own config")
    else:
        config = RunConfig(**asked)
        config.layers()  # a wrong layer list is found before two seconds of imports
    with uncollected():
        from harness import launch, profiling

    with EpochLines() as lines:
        profiled = profiling.OneEpoch(Path(profile), lines.say) if profile is not None else lambda done: None

        def report(done: EpochRecord, epochs: int) -> None:
            lines(done, epochs)
            profiled(done)

        common: dict[str, Any] = {"probe": not no_health, "report": report, "say": lines.say}
        if resume is not None:
            result = launch.resume(resume, data_dir=asked.get("data_dir"), **common)
        else:
            result = launch.train(config, run_id=os.environ.pop("MLFLOW_RUN_ID", None), **common)
    say(ending(result))


@click.command()
@click.argument("study", metavar="NAME|FILE")
@click.option("--seeds", metavar="SEEDS", help="In place of the study's own: 0..9, both ends included, or 0,1,2.")
@click.option("--set", "assigned", metavar="KEY=VALUE", multiple=True, help="Another value in the base; again for more.")
@click.option("--dry-run", is_flag=True, help="Show the cells, what is there and the expected time; train nothing.")
@click.option("--workers", metavar="N", default="auto", help="Processes that train; 0: this one.  [one a core]")
@click.option("--scheduler", metavar="ADDRESS", help="Train on this Dask cluster, tcp://host:8786, instead.")
@click.option("--share", is_flag=True, help="Train cells of equal configs once, and copy the run.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first cell that fails.")
@click.option("--until-decided", is_flag=True, help="Add seeds to all variants until each contrast has a verdict.")
@click.option("--max-seeds", metavar="N", help="How many seeds that may take at most.  [30]")
@click.option("--log-models", is_flag=True, help="Log every trained network as an MLflow model too.")
@click.option("--no-health", is_flag=True, help="Do not probe the hidden layers; losses and weights are the same.")
@options.arithmetic
@options.overriding
def study(study: str, dry_run: bool, workers: str, scheduler: str | None, numerics: str, **given: Any) -> None:
    """Train the cells of a study that the store does not have yet.

    NAME is a study that comes with harness (matrix, factorial, regularization) or lies in ./experiments; FILE is any TOML file.
    The parameters override the study's base.
    """
    choose(numerics)
    takes = "a whole number from 0, or auto: one a core"
    processes = None if workers == "auto" else options.whole("workers", workers, takes)
    overrides = options.overrides(given)
    wanted = Study.read(study).override(**overrides)
    if given["max_seeds"] is not None and not given["until_decided"]:
        raise InputError("--max-seeds goes with --until-decided; for a fixed number say --seeds 0..9")
    most = MOST_SEEDS if given["max_seeds"] is None else options.whole("max_seeds", given["max_seeds"], "a whole number")
    planned = looks(wanted, most) if given["until_decided"] else [len(wanted.seeds)]
    launcher = None if dry_run else os.environ.pop("MLFLOW_RUN_ID", None)
    if processes != 0 and not dry_run and scheduler is None:
        nursery.begin()  # it imports while this process does
    with uncollected():
        from harness import driver, outlook

    if dry_run:
        say(outlook.preview(wanted, processes, scheduler, given["share"], say))
        if given["until_decided"]:
            say(f"then, until all contrasts are decided, {', '.join(map(str, planned[1:]))} seeds")
        return

    def launch(grown: Study, planned: int) -> StudyResult:
        nonlocal launcher
        told, launcher = launcher, None  # of the first look: it takes a run that is unused
        seeds = {"seeds": ",".join(map(str, grown.seeds))} if given["until_decided"] else {}
        return driver.run_study(
            grown,
            workers=processes,
            scheduler=scheduler,
            share=given["share"],
            fail_fast=given["fail_fast"],
            models=given["log_models"],
            probe=not given["no_health"],
            overrides={**overrides, **seeds},
            looks=planned,
            launcher=told,
            say=lines.say,
            watch=lines,
        )

    with StudyLines() as lines:
        result = driver.until_decided(wanted, planned, launch, lines.say) if given["until_decided"] else launch(wanted, 1)
    say(verdict(result))
    if result.failed or not result.agree:
        sys.exit(FAILED)


@click.command()
@click.argument("study", metavar="NAME|FILE")
@click.option("--trials", metavar="N", default="auto", help="In place of the search's own budget, for each condition.")
@click.option("--seeds", metavar="SEEDS", help="Seeds of each trial, in place of the search's own.")
@click.option("--set", "assigned", metavar="KEY=VALUE", multiple=True, help="Another value in the base; again for more.")
@click.option("--workers", metavar="N", default="auto", help="Processes that train; 0: this one.  [one a core]")
@click.option("--scheduler", metavar="ADDRESS", help="Train on this Dask cluster, tcp://host:8786, instead.")
@options.arithmetic
@options.overriding
def search(study: str, trials: str, workers: str, scheduler: str | None, numerics: str, **given: Any) -> None:
    """Find the best setting of each condition on validation data, then compare them on fresh seeds and the test set.

    NAME is a search that comes with harness (tuning, fair_optimizers) or lies in ./experiments; FILE is any TOML file. Started
    again it goes on where it stopped.
    """
    choose(numerics)
    budget = {} if trials == "auto" else {"trials": options.whole("trials", trials, "a whole number from 1, or auto")}
    processes = None if workers == "auto" else options.whole("workers", workers, "a whole number from 0, or auto")
    overrides = options.overrides(given) | budget
    wanted = Search.read(study).override(**overrides)
    launcher = os.environ.pop("MLFLOW_RUN_ID", None)
    if processes != 0 and scheduler is None:
        nursery.begin()
    with uncollected():
        from harness.search import run_search

    with StudyLines() as lines:
        result = run_search(
            wanted,
            workers=processes,
            scheduler=scheduler,
            overrides=overrides,
            launcher=launcher,
            say=lines.say,
            watch=lines,
        )
    say(found(result))
    if result.failed or result.final is None or result.final.failed:
        sys.exit(FAILED)


@click.command()
@click.argument("study", metavar="NAME|FILE")
@click.option("--seeds", metavar="SEEDS", help="As for the command study.")
@click.option("--set", "assigned", metavar="KEY=VALUE", multiple=True, help="As for the command study.")
@options.overriding
def status(study: str, **given: Any) -> None:
    """Show what a study has of each variant, and why the rest is missing, failed or stale.

    Without overrides of its own it takes those of the last launch.
    """
    overrides = options.overrides(given)
    try:
        wanted = space.read(study)
    except InputError:
        file = storefile.path_of(storefile.asked())
        if study.endswith(".toml") or (file and not file.exists()):
            raise
        from harness.launched import Launched

        wanted = Launched.last(study).asked  # one of Python, or whose file is gone
    wanted.override(**overrides)
    with uncollected():
        from harness import frames, outlook

    if isinstance(wanted, Search):
        trials, _ = frames.trials(wanted.name)
        counts = trials.groupby(["condition", "state"], sort=False).size().rename("trials").reset_index()
        say(frames.text(counts, "table").rstrip("\n"))
        return
    say(outlook.status(wanted, overrides, say))


@click.command()
@click.argument("study", metavar="NAME")
@click.option("--format", "kind", metavar="FORMAT", default="table", help=f"{', '.join(FORMATS)}.  [table]")
@click.option("--by", metavar="NAMES", default="", help="Group by parameters, as init,norm, in place of variants.")
@click.option("--rows", metavar="ROWS", default="summary", help=f"{', '.join(ROWS)}.  [summary]")
@click.option("--output", metavar="FILE", help="Write to a file; parquet needs one.")
def results(study: str, kind: str, by: str, rows: str, output: str | None) -> None:
    """Print a study's results as it was last launched: mean, std and extremes over n runs of each variant."""
    for name, given, known in (("format", kind, FORMATS), ("rows", rows, ROWS)):
        if given not in known:
            raise InputError(refusal(name, given, known))
    names = [name.strip().replace("-", "_") for name in by.split(",") if name.strip()]
    if wrong := [name for name in names if name not in FIELDS]:
        raise InputError(refusal("by", wrong[0], FIELDS))
    if names and rows != "summary":
        raise InputError(f"--by groups the summary; leave it out with --rows {rows}")
    if kind == "parquet" and output is None:
        raise InputError("format=parquet is binary; name a file: --output results.parquet")
    with uncollected():
        from harness import frames, launched

    study = _named(study)
    if rows == "summary" and not names and launched.is_search(study):
        rows = "trials"
    below: list[str] = []  # of a table
    if rows == "trials":
        frame, commands = frames.trials(study)
        below = [f"{row}: {command}" for row, command in commands.items()]
    else:
        frame = frames.summary(study, names) if rows == "summary" else getattr(frames, rows)(study)
    if rows == "compare" and len(frame):
        from harness.conclusions import basis

        below = [basis(frame)]
    outlines = {"summary": frames.outline, "compare": frames.verdicts, "runs": frames.roster}
    if rows in outlines and kind in ("table", "markdown"):
        frame = outlines[rows](frame)
    if output is None:
        say(frames.text(frame, kind).rstrip("\n"))
        for line in below if kind == "table" else ():
            say(line)
        return
    try:
        content = frame.to_parquet() if kind == "parquet" else frames.text(frame, kind).encode()
        Path(output).write_bytes(content)
    except OSError as error:
        raise InputError(f"output {output} cannot be written: {error.strerror or error}") from None


@click.command()
@click.argument("study", metavar="NAME")
@click.option("--output", metavar="FOLDER", help="Write the report's files into this folder too.")
def report(study: str, output: str | None) -> None:
    """Write what a study's runs support, as last launched: verdicts, figures and a page, into its report run.

    A study does so at its end by itself; this is for later, and for studies of which cells are missing.
    """
    folder = Path(output) if output is not None else None
    if taken := [place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()] if folder else []:
        raise InputError(f"output {output}: {taken[0]} is a file; allowed: a folder, which is made where there is none")
    launcher = os.environ.pop("MLFLOW_RUN_ID", None)  # `mlflow run -e report` has made one
    study = _named(study)
    with uncollected():
        from harness import launched
        from harness.store import in_one_line, store_uri

    if launched.is_search(study):
        from harness import findings as reports
    else:
        from harness import report as reports  # type: ignore[no-redef]

    with in_one_line(store_uri()):
        came = reports.write(study, launcher)
    for name, content in came.files.items() if folder is not None else ():
        try:
            (path := Path(output or "") / name).parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise InputError(f"output {output} cannot be written: {error.strerror or error}") from None
    say("\n".join([*conclusions(came.sentences), *(f"lost     {lost}" for lost in came.lost), f"report   {came.place}"]))


@click.command()
@click.argument("run_id", metavar="RUN_ID", required=False)
@click.option("--study", metavar="NAME", help="Verify runs of this study, drawn at random, in place of one run.")
@click.option("--sample", metavar="N", default="20", help="How many of them.  [20]")
@click.option("--tolerance", is_flag=True, help="For another machine: go on after a difference, and say what is the same.")
@click.option("--data-dir", metavar="NAME", help="Where the data lies here; else where it lay for the run.")
@options.arithmetic
def verify(run_id: str | None, study: str | None, sample: str, tolerance: bool, data_dir: str | None, numerics: str) -> None:
    """Train a run again from its record: BIT-EXACT, or the first thing that differs and what may be why.

    RUN_ID `latest` is the run begun last of those that finished. The verdict becomes the run's tag `verified`; nothing else is
    written. Exit code 1 when anything differs.
    """
    choose(numerics)
    if (run_id is None) == (study is None):
        raise InputError("verify takes a RUN_ID or --study NAME, one of the two")
    count = options.whole("sample", sample, "a whole number from 1", least=1)
    if study is not None and tolerance:
        raise InputError("--tolerance goes with a RUN_ID: a sample counts runs of the same bits")
    os.environ.pop("MLFLOW_RUN_ID", None)  # `mlflow run -e verify` has made one; MLflow would read it as the run to work on
    with uncollected():
        from harness import verification

    if study is not None:
        verdicts = verification.sample(_named(study), count, data_dir=data_dir, say=say)
        sys.exit(DONE if all(verdict is not None and verdict.exact for verdict in verdicts) else FAILED)
    assert run_id is not None
    found = verification.verify(run_id, data_dir=data_dir, tolerance=tolerance, say=say)
    say("\n".join(found.lines()))
    sys.exit(DONE if found.exact or (tolerance and found.level != verification.LEVELS[-1]) else FAILED)


@click.command()
@click.option("--data-dir", metavar="DIR", help=f"Where the data files are.  [{RunConfig().data_dir}]")
@click.option("--reap", is_flag=True, help="End runs that are RUNNING in the store, but whose process is gone.")
@click.option(
    "--older-than", metavar="MINUTES", default="1440", help="How long `mlflow run` may take to build an environment.  [1440]"
)
def doctor(data_dir: str | None, reap: bool, older_than: str) -> None:
    """Check all that a run needs, a line each: ok, warn, or bad and what to do. Exit code 1 when anything is bad."""
    minutes = options.whole("older_than", older_than, "a whole number of minutes from 0")
    from harness.doctor import examine

    states = []
    for finding in examine(data_dir or RunConfig().data_dir, reap, minutes):
        say(str(finding))
        states.append(finding.state)
    if "bad" in states:
        sys.exit(FAILED)


def _named(study: str) -> str:
    """The name of a study, given that, its file or its file's stem; one whose file is gone may still be in the store."""
    with suppress(*() if study.endswith(".toml") else (InputError,)):
        return space.read(study).name
    return study
