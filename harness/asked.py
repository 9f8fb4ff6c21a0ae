"""A trial of a search: what was asked for, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.plan import Plan
from harness.pruning import Rule, Trial
from harness.study import Variant


@dataclass
class Asked:
    """A trial: what was asked for and, once it has ended, what it came to."""

    condition: Variant
    number: int
    setting: Mapping[str, Any]
    name: str
    plans: list[Plan] = field(default_factory=list)  # of its runs; none where the data refuses the setting
    rule: Rule | None = None
    came: Trial | None = None
    why: str = ""  # it was refused or failed

    @property
    def state(self) -> str:
        """`complete`, `pruned`, `diverged`, `refused`, `failed`, or `asked`."""
        if self.came is None:
            return "asked" if not self.why else "failed" if self.plans else "refused"
        return "pruned" if self.came.pruned is not None else "complete" if math.isfinite(self.came.cost) else "diverged"

    @property
    def kept(self) -> dict[str, Any]:
        """What the report run keeps of it, for `results` to read."""
        return {
            "variant": self.name,
            "condition": self.condition.name,
            "trial": self.number,
            "state": self.state,
            "value": abs(self.came.cost) if self.came and math.isfinite(self.came.cost) else None,
            "epochs": self.came.last if self.came else None,
            "why": self.why,
            "setting": dict(self.setting),
        }
