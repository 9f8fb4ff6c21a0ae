"""What a search asks for one parameter: a range of numbers, or some of its levels. Plain values, checked by themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, ValidationError

from harness.config import CHOICES, FIELDS, RunConfig
from harness.errors import InputError, refusal

NUMBERS = ("lr", "weight_decay", "dropout")
WHOLE = ("batch_size", "hidden_dim")
NAMES = ("init", "act", "norm", "optimizer", "normalize")
SEARCHED = tuple(name for name in FIELDS if name in (*NUMBERS, *WHOLE, *NAMES))
MOST_LEVELS = 10_000  # of a stepped range
ALLOWED = {
    "low": "a finite number",
    "high": "a finite number above low",
    "log": "true or false",
    "step": f"a number above 0 that divides high - low, into {MOST_LEVELS:,} parts at most",
    "choices": "a list of at least one level",
    "when": "a table of parameters, each with a list of levels, as {optimizer = ['sgd', 'momentum']}",
}
Number = StrictInt | StrictFloat
Made = TypeVar("Made", bound=BaseModel)


class Range(BaseModel):
    """Numbers from `low` to `high`, both included; evenly on a logarithmic scale with `log`, in steps with `step`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: Number
    high: Number
    log: StrictBool = False
    step: Annotated[Number, Field(gt=0)] | None = None
    when: Mapping[str, tuple[Any, ...]] = {}

    @property
    def levels(self) -> tuple[Number, ...] | None:
        """All numbers of a stepped range; None where there is no step."""
        if self.step is None:
            return None
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        count = int((Decimal(str(self.high)) - low) / step) + 1
        return tuple(type(self.low + self.step)(low + step * k) for k in range(count))

    def holds(self, value: Any) -> bool:
        """Whether a value may be asked for."""
        return bool(self.low <= value <= self.high) and (self.levels is None or value in self.levels)

    def place(self, value: float) -> float:
        """Where a value lies, from 0 at `low` to 1 at `high`."""
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return (at - low) / (high - low)


class Levels(BaseModel):
    """Some of the levels of a parameter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: Annotated[tuple[StrictBool | StrictInt | StrictFloat | str, ...], Field(min_length=1)]
    when: Mapping[str, tuple[Any, ...]] = {}

    @property
    def levels(self) -> tuple[Any, ...]:
        return self.choices

    def holds(self, value: Any) -> bool:
        """Whether a value may be asked for."""
        return value in self.choices


def asked(name: str, table: Any, where: str) -> Range | Levels:
    """One table `[space.NAME]`. Raises InputError (one line) for what could not be asked for."""
    if name not in SEARCHED:
        raise InputError(f"{where}: {refusal('space', name, SEARCHED)}")
    where = f"{where}, [space.{name}]"
    if not isinstance(table, dict):
        raise InputError(f"{where}: {refusal('space', table, 'a table with low and high, or with choices')}")
    if name in NAMES or "choices" in table:
        if "choices" not in table:
            raise InputError(f"{where}: {refusal('keys', ', '.join(table) or 'none', 'choices, for it takes names')}")
        levels = made(Levels, table, ALLOWED, where)
        if len(set(levels.choices)) < len(levels.choices):
            raise InputError(f"{where}: {refusal('choices', list(levels.choices), 'different levels')}")
        for level in levels.choices:
            if name in CHOICES:
                _level(name, level, where)
        return levels
    given = made(Range, table, ALLOWED, where)
    if not given.low < given.high:
        raise InputError(f"{where}: low={given.low!r} and high={given.high!r}; allowed: low below high")
    if given.log and given.low <= 0:
        raise InputError(f"{where}: {refusal('low', given.low, 'a number above 0, for log')}")
    if given.log and given.step is not None:
        raise InputError(f"{where}: log and step exclude each other; allowed: one of the two, or choices")
    if name in WHOLE and not all(isinstance(x, int) for x in (given.low, given.high, given.step or 1)):
        raise InputError(f"{where}: {refusal('low, high or step', [given.low, given.high, given.step], 'whole numbers')}")
    if given.step is not None:
        low, high, step = (Decimal(str(x)) for x in (given.low, given.high, given.step))
        if (high - low) % step or (high - low) / step > MOST_LEVELS:
            raise InputError(f"{where}: {refusal('step', given.step, ALLOWED['step'])}")
    return given


def _level(name: str, level: Any, where: str) -> None:
    try:
        RunConfig(**{name: level})
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def made(kind: type[Made], values: Any, allowed: Mapping[str, Any], where: str) -> Made:
    """A model from a table; its first fault in one line."""
    for key in values:
        if key not in kind.model_fields:
            raise InputError(f"{where}: {refusal('key', key, kind.model_fields)}")
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        if key not in values:
            raise InputError(f"{where}: {key} is missing; allowed: {allowed[key]}") from None
        raise InputError(f"{where}: {refusal(key, values[key], allowed[key])}") from None


def allows(name: str, asked: Range, place: float) -> bool:
    """Whether a parameter may take the value at a place of its range, also outside: dropout goes no lower than 0."""
    low, high = (math.log(x) if asked.log else x for x in (asked.low, asked.high))
    value = low + place * (high - low)
    value = math.exp(value) if asked.log else value
    try:
        RunConfig(**{name: round(value) if name in WHOLE else value})
    except InputError:
        return False
    return True
