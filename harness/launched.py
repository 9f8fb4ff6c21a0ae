"""A study as it was last launched, and what the store has of it since."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from harness import space
from harness.errors import InputError, MissingArtifact
from harness.numerics import NATIVE, option
from harness.outage import IMPATIENT, told
from harness.space import Search
from harness.store import Store, store_uri
from harness.study import Study
from harness.studyfile import shipped
from harness.survey import Standing, survey
from harness.tracking import RunLog

Kept = TypeVar("Kept")
STUDY_FILE = "study.json"  # of the report run: the study as it was launched, and the digests of its cells


@dataclass(frozen=True)
class Launched:
    """A study as it was last launched, and what the store has of it."""

    study: Study
    digests: Mapping[str, Mapping[str, str]]  # cell -> the tags that tell its run from others
    standings: Sequence[Standing]
    store: Store
    report: RunLog  # the run that keeps it
    looks: int  # at how many sizes of it conclusions are drawn: its intervals hold for all of them together
    kept: Mapping[str, Any]  # all that was written down of the launch

    @classmethod
    def last(cls, study: str | Study | Launched) -> Launched:
        """The last launch of the study of this name. Raises InputError when this store has seen none."""
        if isinstance(study, Launched):  # looked up already
            return study
        name = study if isinstance(study, str) else study.name
        store = Store.there()
        found = newest(store, name) if store else None
        if store is None or found is None:
            where = store_uri() if store else f"{store_uri()}, which does not exist"
            try:
                remedy = f"launch it: harness {'search' if isinstance(space.read(name), Search) else 'study'} {name}"
            except InputError as unknown:
                remedy = str(unknown)
            raise InputError(f"study {name} was never launched in the store {where}; {remedy}")
        report, content = found
        launched = Study(**content["study"])
        if isinstance(study, Study) and study.json_text() != launched.json_text():
            raise InputError(
                f"study {name} was last launched with other seeds, variants or values; launch this one, or ask by name"
            )
        wanted = [(cell, content["cells"][cell.name]) for cell in launched.cells]
        standings = survey(wanted, store.runs(name, study=name), store.locks.held)
        return cls(launched, content["cells"], standings, store, report, content.get("looks", 1), content)

    @property
    def asked(self) -> Study | Search:
        """What was launched."""
        return Search(**self.kept["search"]) if "search" in self.kept else self.study

    def again(self, command: str) -> str:
        """The command, `study` or `search`, that launches it again; empty where its name and options do not say what it was.

        They say it of what comes with harness, looked at once. By its name `harness study` need not find what was a file, a
        value in Python or the comparison of a search; and of a study that grew, options give the seeds, not the looks.
        """
        given, asked = self.kept["overrides"], self.asked
        try:
            found = space.read(shipped() / f"{asked.name}.toml").override(**given)
        except InputError:  # none has this name, or it takes no such options
            return ""
        if self.looks > 1 or found.model_dump_json() != asked.model_dump_json():
            return ""
        said = {name: value for name, value in given.items() if name != "data_dir"}  # where data lies is no part of a study
        if isinstance(asked, Study) and asked.at_base.dataset == "auto" and "dataset" not in asked.varied:
            said["dataset"] = next(iter(self.digests.values()))["dataset"]  # elsewhere it might become another
        return f"harness {command} {asked.name}{options(said)}{option(self.numerics)}"

    @property
    def seen(self) -> list[int]:
        """With how many seeds it was launched before, of launches with fewer that share a cell with it."""
        return [count for count in self.kept.get("seen", []) if count < len(self.study.seeds)]

    @property
    def numerics(self) -> str:
        """By which it was trained."""
        return str(self.kept.get("numerics", NATIVE))

    def parsed(self, artifact: str, run_ids: Iterable[str], parse: Callable[[str], Kept]) -> dict[str, Kept]:
        """Run id -> what `parse` makes of a text file of it; left out is a run without it, or where it raises ValueError."""
        wanted = set(run_ids)
        runs = [standing.run for standing in self.standings if standing.run is not None and standing.run.info.run_id in wanted]

        def read(run: Any) -> list[tuple[str, Kept]]:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    text = RunLog(self.store, run).fetch(artifact, folder).read_text(encoding="utf-8")
                return [(run.info.run_id, parse(text))]
            except (MissingArtifact, ValueError):
                return []

        with told(IMPATIENT), ThreadPoolExecutor(8) as pool:
            return dict(found for some in pool.map(read, runs) for found in some)


def newest(store: Store, name: str) -> tuple[RunLog, Any] | None:
    """The report run of a study's last launch, and what it keeps of it; None where there was none."""
    reports = [run for run in store.runs(name, report=name) if "launched" in run.data.tags]
    if not reports:
        return None
    report = RunLog(store, max(reports, key=lambda run: int(run.data.tags["launched"])))
    if (content := kept(report)) is None:
        raise InputError(f"run {report.id}: {STUDY_FILE} is gone or is no JSON of a launch; launch {name} again")
    return report, content


def kept(report: RunLog) -> Any | None:
    """What a report run keeps of its last launch; None where that cannot be read."""
    with suppress(MissingArtifact, ValueError), tempfile.TemporaryDirectory() as folder:
        content = json.loads(report.fetch(STUDY_FILE, folder).read_bytes())
        return content if isinstance(content, dict) and isinstance(content.get("cells"), dict) else None
    return None


def last_study(store: Store, name: str) -> Study | None:
    """A study as it was last launched; None where it never was."""
    found = newest(store, name)
    return Study(**found[1]["study"]) if found else None


def last_overrides(store: Store, name: str) -> dict[str, Any]:
    """With which overrides a study was last launched."""
    found = newest(store, name)
    return dict(found[1]["overrides"]) if found else {}


def options(overrides: Mapping[str, Any]) -> str:
    """Overrides as a command line has them, each after a space."""
    return "".join(f" --{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in overrides.items())


def is_search(name: str) -> bool:
    """Whether what was last launched under this name is a search."""
    store = Store.there()
    found = newest(store, name) if store else None
    return found is not None and "trials" in found[1]
