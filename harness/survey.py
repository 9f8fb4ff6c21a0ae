"""What a study wants beside what the store has: the state of every cell, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.config import FIELDS
from harness.study import Cell

STATES = ("finished", "diverged", "pruned", "running", "failed", "missing", "stale")
SETTLED = ("finished", "diverged", "pruned")
DIGESTS = ("config_digest", "data_digest", "code_digest")  # with the cell's name they say which run is the cell's
IDENTITY = (*DIGESTS, "search_digest")  # the last one has a trial of a search, and nothing else


@dataclass(frozen=True)
class Standing:
    """A cell and the run that it has, if any."""

    cell: Cell
    state: str  # of STATES
    reason: str = ""
    run: Any = None  # the mlflow Run: finished, or to be gone on with

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be trained."""
        return self.state in SETTLED


def survey(
    wanted: Iterable[tuple[Cell, Mapping[str, object]]], runs: Iterable[Any], held: Callable[[str], bool]
) -> list[Standing]:
    """Where each cell stands, given the tags that its run should have, the study's runs (newest first) in the store, and
    whether a live process holds a run."""
    of: dict[str, list[Any]] = {}
    for run in runs:
        of.setdefault(run.data.tags.get("cell", ""), []).append(run)
    return [_stand(cell, tags, of.get(cell.name, []), held) for cell, tags in wanted]


def leaders(standings: Iterable[Standing], digests: Mapping[str, str]) -> dict[str, str]:
    """Of the cells that share a config, by its digest, the one whose run the others may copy: the first that is settled, else
    the first. `digests` has the digest of each cell's config."""
    found: dict[str, str] = {}
    for standing in sorted(standings, key=lambda standing: not standing.settled):
        found.setdefault(digests[standing.cell.name], standing.cell.name)
    return found


def _stand(cell: Cell, tags: Mapping[str, object], runs: list[Any], held: Callable[[str], bool]) -> Standing:
    same = [run for run in runs if all(run.data.tags.get(name) == tags.get(name) for name in IDENTITY)]
    for run in same:
        if run.info.status == "FINISHED":
            for state, when in (("diverged", "in"), ("pruned", "after")):
                if epoch := run.data.tags.get(state):
                    return Standing(cell, state, f"{when} {epoch}", run)
            return Standing(cell, "finished", "", run)
    for run in sorted(same, key=lambda run: run.info.status != "RUNNING" or not held(run.info.run_id)):
        return Standing(cell, *_unfinished(run, held), run)
    for run in runs:
        if run.info.status == "FINISHED":
            return Standing(cell, "stale", _difference(cell, tags, run.data))
    return Standing(cell, "missing")


def _unfinished(run: Any, held: Callable[[str], bool]) -> tuple[str, str]:
    status, tags = run.info.status, run.data.tags
    if status == "SCHEDULED":
        return "missing", "scheduled"
    if status == "FAILED":
        return "failed", tags.get("error", "no reason recorded")
    if status == "KILLED" and "attempt" not in tags:
        return "missing", "never begun"
    if status == "KILLED":
        return "failed", "killed; goes on from its checkpoint"
    return ("running", "") if held(run.info.run_id) else ("failed", "its process is gone; goes on from its checkpoint")


def _difference(cell: Cell, tags: Mapping[str, object], found: Any) -> str:
    """Why a finished run of a cell is not what the study wants now."""
    asked, params = cell.config.text(), found.params
    if found.tags.get("config_digest") == tags["config_digest"]:
        params = {name: text[:6000] for name, text in asked.items()}  # a file that was moved, say: what it holds is the same
    changed = [name for name in FIELDS if name not in ("dataset", "data_dir") and params.get(name) != asked[name][:6000]]
    reasons = [f"{name} was {params.get(name)}, is {asked[name]}" for name in changed]
    if (dataset := found.tags.get("dataset")) != tags["dataset"]:
        reasons.append(f"dataset was {dataset}, is {tags['dataset']}")
    names = {name: name.removesuffix("_digest") for name in IDENTITY}
    return ", ".join(reasons) or next(
        f"the {name} changed" for tag, name in names.items() if found.tags.get(tag) != tags.get(tag)
    )
