"""A study: a question as data. TOML -> Study -> variants -> cells; nothing is trained or written here."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, StrictFloat, StrictInt, ValidationError

from harness import studyfile
from harness.config import FIELDS, RunConfig
from harness.errors import InputError, refusal, short
from harness.limits import LONGEST_NAME, MOST_BYTES, MOST_CELLS, MOST_VARIANTS

Design = Literal["one_factor_at_a_time", "factorial", "list"]
METRICS = tuple(f"final/{part}_{what}" for part in ("test", "val", "train") for what in ("loss", "accuracy"))
SINGLE = "harness"  # what single runs have in place of a study's name, and the experiment that they lie in
ALLOWED = {
    "name": "small letters, digits, - and _",
    "question": "a sentence",
    "expect": "a sentence",
    "design": ", ".join(get_args(Design)),
    "seeds": "different whole numbers from 0, as [0, 1, 2] or '0..9' or '0..4,7'",
    "metric": ", ".join(METRICS),
    "matters": "a finite number above 0, in the unit of the metric",
    "base": "a table of parameters",
    "factors": "a table of parameters, each with a list of levels",
    "variants": "tables with a name and what differs from the base",
}


@dataclass(frozen=True)
class Variant:
    """A row of a study: a condition under a name."""

    name: str
    config: RunConfig  # as asked; its seed says nothing
    condition: str  # the setting of all that the study varies
    factor: str = ""  # where it is one factor's level
    level: str = ""
    trial: int | None = None  # of a search: its number,
    search: str = ""  # and the digest of the search


@dataclass(frozen=True)
class Cell:
    """A variant with a seed: one run to be."""

    study: str
    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """The run's name, `<variant>-s<seed>`."""
        return f"{self.variant.name}-s{self.seed}"

    @cached_property
    def config(self) -> RunConfig:
        """What it trains, as asked."""
        return self.variant.config.replace(seed=self.seed)

    @classmethod
    def single(cls, asked: RunConfig, differs: Mapping[str, str]) -> Cell:
        """The cell of a run of its own, named by what differs from the defaults."""
        condition = " ".join(f"{name}={text}" for name, text in differs.items()) or "base"
        factor, level = next(iter(differs.items())) if len(differs) == 1 else ("", "")
        return cls(SINGLE, Variant(condition, asked, condition, factor, level), asked.seed)


class Study(BaseModel):
    """A question, a design, seeds. Frozen; raises InputError (one line) for anything that could not be trained as it stands.

    >>> study = Study(name="norms", question="Which?", design="factorial", seeds="0..1", factors={"norm": ["none", "rmsnorm"]})
    >>> [cell.name for cell in study.cells]
    ['norm=none-s0', 'norm=none-s1', 'norm=rmsnorm-s0', 'norm=rmsnorm-s1']
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    question: str
    design: Design
    seeds: tuple[StrictInt, ...]
    expect: str = ""  # result, minutes, machine, date
    metric: str = METRICS[0]  # what conclusions compare
    matters: StrictFloat | None = None  # the smallest difference that matters, in the metric's unit
    base: Mapping[str, Any] = {}
    factors: Mapping[str, tuple[Any, ...]] = {}
    variants: tuple[Mapping[str, Any], ...] = ()

    def __init__(self, /, **values: Any) -> None:
        where = f"study {values['name'][:100]}" if isinstance(values.get("name"), str) else "study"
        for key in values:
            if key not in type(self).model_fields:
                raise InputError(f"{where}: {refusal('key', key, type(self).model_fields)}")
        for key in ("name", "question", "design", "seeds"):
            if key not in values:
                raise InputError(f"{where}: {key} is missing; allowed: {ALLOWED[key]}")
        if isinstance(values["seeds"], str):
            values["seeds"] = parse_seeds(values["seeds"])
        try:
            super().__init__(**values)
        except ValidationError as error:
            key = str(error.errors()[0]["loc"][0])
            known = get_args(Design) if key == "design" else ALLOWED[key]
            raise InputError(f"{where}: {refusal(key, values[key], known)}") from None
        self._check(where)

    def _check(self, where: str) -> None:
        """What types cannot say. The rows are built, so that a wrong level in the last of them is found now."""

        def refuse(key: str, given: object, allowed: Iterable[str] | str = "") -> InputError:
            return InputError(f"{where}: {refusal(key, given, allowed or ALLOWED[key])}")

        if not re.fullmatch(r"[a-z0-9_-]{1,100}", self.name) or self.name == SINGLE:
            raise refuse("name", self.name, f"{ALLOWED['name']}; not {SINGLE}, where single runs are")
        if not self.seeds or min(self.seeds) < 0 or max(self.seeds) >= 2**63 or len(set(self.seeds)) < len(self.seeds):
            raise refuse("seeds", list(self.seeds))
        if self.metric not in METRICS:
            raise refuse("metric", self.metric, METRICS)
        if self.matters is not None and not 0 < self.matters < float("inf"):
            raise refuse("matters", self.matters)
        given, other = ("variants", "factors") if self.design == "list" else ("factors", "variants")
        if getattr(self, other):
            raise InputError(f"{where}: design {self.design} takes {given}, not {other}")
        if not getattr(self, given):
            raise InputError(f"{where}: no {given}, so no cells; allowed: {ALLOWED[given]}")
        for factor, levels in self.factors.items():
            if factor not in FIELDS:
                raise InputError(f"{where}: {refusal('factor', factor, FIELDS)}")
            if not levels:
                raise refuse(f"factor {factor}", [], "at least one level")
        sizes = [len(levels) for levels in self.factors.values()]
        size = {"factorial": math.prod(sizes), "list": len(self.variants)}.get(self.design, sum(sizes))
        if size > MOST_VARIANTS or size * len(self.seeds) > MOST_CELLS:
            allowed = f"at most {MOST_VARIANTS} variants and {MOST_CELLS} cells"
            raise InputError(f"{where}: {size} variants x {len(self.seeds)} seeds; allowed: {allowed}")
        for name in (row.get("name") for row in self.variants):
            if not isinstance(name, str) or not name.strip() or not re.fullmatch(r"[a-z0-9 ._=-]+", name):
                raise refuse("variant name", name, "small letters, digits, spaces and ._=-")
        if long := [row.name for row in self.rows if len(row.name) > LONGEST_NAME]:
            raise refuse("variant name", long[0], f"at most {LONGEST_NAME} characters; design list takes names of your own")
        if repeated := [name for name, count in Counter(row.name for row in self.rows).items() if count > 1]:
            raise InputError(f"{where}: two variants are named {repeated[0]!r}; allowed: different names")
        if self.shown == "val" and not all(row.config.validation for row in self.rows):
            raise InputError(f"{where}: metric {self.metric} needs validation above 0 in every variant")

    @cached_property
    def rows(self) -> tuple[Variant, ...]:
        """The variants, in the order of the file."""
        base = self._config("base", self.base)
        if self.design == "list":
            given = [(row["name"], {k: v for k, v in row.items() if k != "name"}) for row in self.variants]
        elif self.design == "factorial":
            fields = [field for field in FIELDS if field in self.factors]  # the order of the file moves no name
            levels = map(self._levels, fields)
            given = [("", dict(zip(fields, setting, strict=True))) for setting in itertools.product(*levels)]
        else:
            given = [("", {factor: level}) for factor in self.factors for level in self._levels(factor)]
        return tuple(self._row(name, values, base) for name, values in given)

    def _levels(self, factor: str) -> list[Any]:
        """The levels of a factor; a layer list is checked once, not in each combination anew."""
        levels = list(self.factors[factor])
        return [self._config("factor network", {factor: level}).network for level in levels] if factor == "network" else levels

    def _row(self, name: str, values: Mapping[str, Any], base: RunConfig) -> Variant:
        based = {field: getattr(base, field) for field in self.base}
        config = self._config(f"variant {name[:LONGEST_NAME]}", {**based, **values}, {} if name else values)
        named = name or " ".join(f"{field}={config.label(field)}" for field in values)
        condition = " ".join(f"{field}={config.label(field)}" for field in self.varied)
        factor = next(iter(values)) if self.design == "one_factor_at_a_time" else ""
        return Variant(named, config, condition, factor, config.label(factor) if factor else "")

    def _config(self, where: str, values: Mapping[str, Any], spelled: Mapping[str, Any] = {}) -> RunConfig:
        try:
            if "seed" in values:
                raise InputError("seed belongs to the study: seeds = [0, 1, 2], or --seeds 0..2")
            return RunConfig(**values)
        except InputError as error:
            where += " ".join(
                f"{field}={value if isinstance(value, str) else short(value)}" for field, value in spelled.items()
            )
            raise InputError(f"study {self.name}, {where[:LONGEST_NAME]}: {error}") from None

    @cached_property
    def varied(self) -> tuple[str, ...]:
        """The parameters in which variants differ, in the order of the parameter table."""
        named = {*self.factors, *(field for row in self.variants for field in row)}
        return tuple(field for field in FIELDS if field in named)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every variant with every seed, each once."""
        return tuple(Cell(self.name, row, seed) for row in self.rows for seed in self.seeds)

    @property
    def reference(self) -> str:
        """The variant that others are compared with: the first that is the base itself, else the first."""
        return next((row.name for row in self.rows if row.config == self.at_base), self.rows[0].name)

    @property
    def shown(self) -> str:
        """Whose curves are shown beside training's: `val` in a study of it, which is to see nothing of the test set."""
        return "val" if self.metric.startswith("final/val") else "test"

    @cached_property
    def at_base(self) -> RunConfig:
        """What is asked for where a variant sets nothing."""
        return RunConfig(**self.base)

    def override(self, /, seeds: Sequence[int] | str | None = None, **base: Any) -> Self:
        """A checked copy with other seeds or other values in the base. Raises InputError for one that would change nothing."""
        for field in base:
            if field not in FIELDS:
                raise InputError(refusal("parameter", field, FIELDS))
            fixed = field in self.factors if self.design == "factorial" else [*self.factors] == [field]
            if all(field in row for row in self.variants) if self.design == "list" else fixed:
                raise InputError(f"study {self.name}: every variant sets {field} itself; change it in the study's file")
        values = {key: getattr(self, key) for key in type(self).model_fields}
        return type(self)(**{**values, "base": {**self.base, **base}, "seeds": self.seeds if seeds is None else seeds})

    @classmethod
    def read(cls, name: str | Path) -> Self:
        """A study by its name (`experiments/` of the working directory, then the ones shipped) or its file's path."""
        return cls.parse(*studyfile.find(name))

    @classmethod
    def parse(cls, text: str, path: Path) -> Self:
        """A study from TOML; networks named in it lie relative to `path`. Raises InputError with the line of a slip."""
        values = studyfile.tables(text, path)
        if studyfile.is_search(values):
            raise InputError(f"study {path} is a search, which `harness search` runs")
        return cls(**values)

    def toml_text(self) -> str:
        """A study of design list as a file; `Study.parse` reads it back."""
        values = self.model_dump(mode="json")
        heads = {key: values[key] for key in ("name", "question", "expect", "design", "seeds", "metric", "matters")}
        tables = [("", heads), ("[base]", values["base"]), *(("[[variants]]", row) for row in values["variants"])]
        lines = [
            line
            for title, table in tables
            for line in ("", title, *(f"{key} = {json.dumps(value)}" for key, value in table.items() if value is not None))
        ]
        return "\n".join(lines).strip() + "\n"

    def json_text(self) -> str:
        """The study as JSON; `Study(**json.loads(text))` reads it back."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def parse_seeds(text: str) -> list[int]:
    """Seeds from text: `0..9` (both ends included), `0,1,2`, `0..4,7`. Raises InputError for anything else."""
    seeds: list[int] = []
    if len(text) > MOST_BYTES:
        raise InputError(refusal("seeds", text, ALLOWED["seeds"]))
    for part in text.split(","):
        if not (match := re.fullmatch(r"\s*(\d{1,19})(?:\.\.(\d{1,19}))?\s*", part, re.ASCII)):
            raise InputError(refusal("seeds", text, ALLOWED["seeds"]))
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + MOST_CELLS - len(seeds):
            raise InputError(refusal("seeds", text, ALLOWED["seeds"]))
        seeds += range(first, last + 1)
    return seeds
