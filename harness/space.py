"""What a search may ask for: a space of settings, a budget, and how settings are proposed. Plain values; nothing runs here."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt

from harness import ranges
from harness.errors import InputError, refusal
from harness.ranges import SEARCHED, Levels, Number, Range
from harness.study import Study, Variant, parse_seeds
from harness.studyfile import find, is_search, tables

VALIDATED = ("final/val_loss", "final/val_accuracy")
BASE = "base"  # the variant that the best setting stands beside, where nothing is compared
EDGE = 0.05  # of a range: a best setting that is nearer to an end says that the range may be too small
LEAST_SEEDS = 4  # for Wilcoxon's test: with 3 its least p is 1/8, above the 0.1 that it prunes at
MOST_TRIALS = 10_000  # of a condition
Sampler = Literal["tpe", "random", "cmaes", "grid", "qmc"]
Pruner = Literal["none", "median", "hyperband", "wilcoxon"]
Direction = Literal["minimize", "maximize"]
ALLOWED = {
    "trials": f"a whole number from 1 to {MOST_TRIALS}",
    "seconds": "a number above 0: of training, all runs together",
    "sampler": get_args(Sampler),
    "pruner": get_args(Pruner),
    "seed": "a whole number from 0 to 4294967295",
    "batch": "a whole number from 1 to 1000",
    "direction": get_args(Direction),
    "beside": "the name of a study: small letters, digits, - and _",
    "final_seeds": "different whole numbers from 0, as [100, 101] or '100..109', none of them among seeds",
}
Seeds = Annotated[tuple[StrictInt, ...], BeforeValidator(lambda given: parse_seeds(given) if isinstance(given, str) else given)]


class Settings(BaseModel):
    """How a search goes about it: the table `[search]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: Annotated[StrictInt, Field(ge=1, le=MOST_TRIALS)] = MOST_TRIALS  # of each condition
    seconds: Annotated[Number, Field(gt=0, allow_inf_nan=False)] | None = None
    sampler: Sampler = "tpe"
    pruner: Pruner = "none"
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] = 0  # of the sampler, not of any run
    batch: Annotated[StrictInt, Field(ge=1, le=1000)] = 6  # trials asked for at a time, of each condition
    direction: Direction | None = None  # as the metric has it
    final_seeds: Annotated[Seeds, Field(min_length=1)]
    beside: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,100}$")] | None = None  # a study of fixed settings, to rank beside


class Search(BaseModel):
    """A question whose settings are to be found. Frozen; raises InputError (one line) for anything that could not be searched.

    `study` has what does not depend on the search: its rows are the conditions that are compared (`[factors]`, each tuned on
    its own with the same budget), its metric is on validation, its seeds are those of each trial.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: Study
    settings: Settings
    space: Mapping[str, Range | Levels]

    @classmethod
    def read(cls, name: str | Path) -> Self:
        """A search by its name or its file's path, as a study."""
        return cls.parse(*find(name))

    @classmethod
    def parse(cls, text: str, path: Path) -> Self:
        """A search from TOML. Raises InputError with the line of a slip."""
        values = tables(text, path)
        if not is_search(values):
            raise InputError(f"study {path} has no [search] and no [space]; `harness study` runs it")
        return cls.of(**values)

    @classmethod
    def of(cls, /, search: Any = None, space: Any = None, **study: Any) -> Self:
        """A search from the tables of its file."""
        where = f"study {str(study.get('name'))[:100]}"
        if found := [key for key in ("design", "variants") if key in study]:
            raise InputError(f"{where}: a search has no {found[0]}; allowed: [factors], of which each combination is tuned")
        if not isinstance(search, dict) or not ("trials" in search or "seconds" in search):
            raise InputError(f"{where}: [search] has no budget; allowed: trials = 60, or seconds = 600")
        if not isinstance(space, dict) or not space:
            raise InputError(f"{where}: no [space.PARAMETER]; allowed: {', '.join(SEARCHED)}")
        alone = {"design": "list", "variants": [{"name": "best"}]}
        rows = {"design": "factorial"} if study.get("factors") else alone
        study = {"metric": VALIDATED[0], **study, **rows}
        if study["metric"] not in VALIDATED:
            raise InputError(f"{where}: {refusal('metric', study['metric'], VALIDATED)}: a search chooses on validation")
        asked = {name: ranges.asked(name, table, where) for name, table in space.items()}
        found_search = cls(
            study=Study(**study), settings=ranges.made(Settings, search, ALLOWED, f"{where}, [search]"), space=asked
        )
        found_search._check(where)
        return found_search

    def _check(self, where: str) -> None:
        """What types cannot say."""
        settings, study = self.settings, self.study
        if settings.direction not in (None, self.direction):
            allowed = f"{self.direction}, which {study.metric} is better by, or leave it out"
            raise InputError(f"{where}: {refusal('direction', settings.direction, allowed)}")
        seeds = settings.final_seeds
        if min(seeds) < 0 or len(set(seeds)) < len(seeds) or set(seeds) & set(study.seeds):
            raise InputError(f"{where}: {refusal('final_seeds', list(seeds), str(ALLOWED['final_seeds']))}")
        if settings.beside is not None and (settings.beside == study.name or not study.factors):
            allowed = "another study, where [factors] name what both compare"
            raise InputError(f"{where}: {refusal('beside', settings.beside, allowed)}")
        if len(study.name) > 95:
            raise InputError(f"{where}: {refusal('name', study.name, 'at most 95 characters')}")
        if settings.pruner == "wilcoxon" and (count := len(study.seeds)) < LEAST_SEEDS:
            others = ", ".join(name for name in get_args(Pruner) if name != "wilcoxon")
            raise InputError(
                f"{where}: pruner wilcoxon needs {LEAST_SEEDS} seeds; with {count} its least p is {0.5**count:g}, and it "
                f"prunes below 0.1; allowed: more seeds, or {others}"
            )
        for name, asked in self.space.items():
            if name in study.factors:
                raise InputError(f"{where}: {name} is a factor, to be compared, and so cannot be searched")
            self._check_condition(f"{where}, [space.{name}]", asked)
            if settings.sampler == "grid" and (asked.levels is None or asked.when):
                what = "range without a step" if asked.levels is None else "condition"
                raise InputError(f"{where}, [space.{name}]: sampler grid takes no {what}; allowed: a step, or choices")
        tuple(self.order)
        for row, (name, asked) in itertools.product(study.rows, self.space.items()):
            for value in asked.levels or (asked.low, asked.high):  # type: ignore[union-attr]
                try:
                    row.config.replace(**{name: value})
                except InputError as error:
                    raise InputError(f"{where}, [space.{name}]: {error}") from None

    def _check_condition(self, where: str, asked: Range | Levels) -> None:
        for parent, levels in asked.when.items():
            given = self.space.get(parent)
            known = given.choices if isinstance(given, Levels) else self.study.factors.get(parent)
            if known is None:
                parents = [name for name, of in self.space.items() if isinstance(of, Levels)]
                raise InputError(f"{where}: {refusal('when', parent, [*parents, *self.study.factors])}")
            if wrong := [level for level in levels if level not in known] or ([] if levels else [()]):
                raise InputError(f"{where}: {refusal(f'when {parent}', wrong[0], [str(level) for level in known])}")

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def direction(self) -> Direction:
        """Which way the metric is better."""
        return "minimize" if self.study.metric.endswith("_loss") else "maximize"

    @property
    def curve(self) -> str:
        """The metric of each epoch whose last value is the study's metric: `val/loss`."""
        return self.study.metric.removeprefix("final/").replace("_", "/")

    @property
    def order(self) -> Iterator[tuple[str, Range | Levels]]:
        """The parameters of the space, each after those that its condition names."""
        left = {name: self.space[name] for name in SEARCHED if name in self.space}
        while left:
            ready = [name for name, asked in left.items() if not set(asked.when) & set(left)]
            if not ready:
                raise InputError(f"study {self.name}: the conditions of {', '.join(left)} go round in a circle")
            for name in ready:
                yield name, left.pop(name)

    @property
    def budget(self) -> int:
        """How many trials each condition has at most: a grid has no more than its points."""
        return min(self.settings.trials, self.size) if self.settings.sampler == "grid" else self.settings.trials

    @property
    def size(self) -> int:
        """How many settings a space of steps and choices has."""
        return math.prod(len(asked.levels or ()) for asked in self.space.values())

    def grid(self, number: int) -> dict[str, Any]:
        """A point of the grid, the last parameter fastest."""
        setting = {}
        for name, asked in reversed(list(self.order)):
            assert asked.levels is not None
            number, at = divmod(number, len(asked.levels))
            setting[name] = asked.levels[at]
        return dict(reversed(setting.items()))

    def start(self, row: Variant) -> dict[str, Any] | None:
        """The base's own setting, where the space holds it: the first trial of each condition, which the others must beat."""
        setting: dict[str, Any] = {}
        for name, asked in self.order:
            if self.applies(asked, row, setting):
                setting[name] = getattr(row.config, name)
                if not asked.holds(setting[name]):
                    return None
        return setting

    def applies(self, asked: Range | Levels, row: Variant, setting: Mapping[str, Any]) -> bool:
        """Whether a parameter is asked for beside what a setting has so far; where it is not, it is the base's."""
        known = {**{factor: getattr(row.config, factor) for factor in self.study.factors}, **setting}
        return all(parent in known and known[parent] in levels for parent, levels in asked.when.items())

    def edges(self, setting: Mapping[str, Any]) -> list[str]:
        """What says that the best setting may lie outside: a number at an end of its range beyond which there is more."""
        found = []
        for name, asked in self.order:
            if name not in setting or isinstance(asked, Levels):
                continue
            place = asked.place(setting[name])
            end, beyond = ("low", -EDGE) if place <= EDGE else ("high", 1 + EDGE)
            if EDGE < place < 1 - EDGE or not ranges.allows(name, asked, beyond):
                continue
            found.append(f"{name}={setting[name]:g} lies at the {end} end of {asked.low:g} to {asked.high:g}")
        return found

    def unfolded(self, rows: Sequence[Mapping[str, Any]]) -> Study:
        """The trials that are known as a study of their own: each row has a name and what differs from the base."""
        return self._study(self.name, rows, self.study.seeds, self.study.metric)

    def final(self, best: Mapping[str, Mapping[str, Any]]) -> Study:
        """The comparison at the end: the best setting of each condition, on seeds and data that chose nothing.

        Where nothing is compared, the best setting stands beside the base.
        """
        rows = [{"name": row.name, **self.levels(row), **best[row.name]} for row in self.study.rows if row.name in best]
        if not self.study.factors:
            rows = [{"name": BASE}, *rows]
        return self._study(f"{self.name}-best", rows, self.settings.final_seeds, self.study.metric.replace("val", "test"))

    def command(self, row: Variant, setting: Mapping[str, Any]) -> str:
        """The command that trains a setting of a condition once, with a seed of the comparison at the end."""
        config = row.config.replace(**setting, seed=self.settings.final_seeds[0])
        parts = [part for name, text in config.changed().items() for part in ("-P", f"{name}={text}")]
        return shlex.join(["mlflow", "run", ".", "--env-manager", "local", *parts])

    def levels(self, row: Variant) -> dict[str, Any]:
        """What a condition sets."""
        return {factor: getattr(row.config, factor) for factor in self.study.factors}

    def _study(self, name: str, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int], metric: str) -> Study:
        study = self.study
        shared = {"question": study.question, "matters": study.matters, "base": study.base}
        return Study(name=name, design="list", seeds=tuple(seeds), metric=metric, variants=tuple(rows), **shared)

    def override(self, /, seeds: Sequence[int] | str | None = None, trials: int | None = None, **base: Any) -> Self:
        """A checked copy with other seeds, another budget or other values in the base."""
        values = self.model_dump()
        study = {key: value for key, value in values["study"].items() if key not in ("design", "variants")}
        study["base"] = self.study.override(**base).base if base else self.study.base
        study["seeds"] = self.study.seeds if seeds is None else seeds
        settings = {key: value for key, value in values["settings"].items() if value is not None}
        settings["trials"] = settings["trials"] if trials is None else trials
        space = {name: {k: v for k, v in table.items() if v is not None} for name, table in values["space"].items()}
        return self.of(search=settings, space=space, **study)

    @property
    def digest(self) -> str:
        """SHA-256 of what its trials depend on besides their own configs, data and code."""
        values = self.model_dump(mode="json")
        for key in ("question", "expect", "matters"):
            del values["study"][key]
        for key in ("trials", "seconds", "final_seeds", "beside"):  # a larger budget goes on with the same trials
            del values["settings"][key]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read(name: str | Path) -> Study | Search:
    """What a name or path stands for: a study, or a search."""
    text, path = find(name)
    return Search.parse(text, path) if is_search(tables(text, path)) else Study.parse(text, path)
