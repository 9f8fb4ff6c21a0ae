"""A cell checked against its data: all that must hold before the store hears of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from harness import data as datasets
from harness.architecture import Architecture, architecture
from harness.config import RunConfig
from harness.data import Data
from harness.errors import InputError, refusal
from harness.layerlist import LayerList
from harness.sources import code_digest
from harness.study import Cell
from harness.training import check

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a run will be."""

    cell: Cell
    config: RunConfig  # resolved: what `auto` became, and the layer list itself in place of its path
    arch: Architecture
    data: Data

    @property
    def tags(self) -> dict[str, object]:
        """What tells this run from others in the store, in the store's names."""
        cell, row = self.cell, self.cell.variant
        return {
            "dataset": self.data.name,
            "study": cell.study,
            "variant": row.name,
            "condition": row.condition,
            **({"factor": row.factor, "level": row.level} if row.factor else {}),
            **({"trial": row.trial, "search_digest": row.search} if row.search else {}),
            "seed": cell.seed,
            "cell": cell.name,
            "config_digest": self.config.digest,
            "data_digest": self.data.digest,
            "code_digest": code_digest(self.config),
            "parameters": self.arch.parameters,
        }


def prepare(
    asked: RunConfig, say: Say = print, cell: Cell | None = None, loaded: dict[tuple[str, ...], Data] | None = None
) -> Plan:
    """Load a config's data and check the two together, for a cell of a study or a run of its own.

    Plans that are made with the same `loaded` share their data. Raises InputError; writes nothing but a dataset that it
    downloads.
    """
    config = asked.with_layers()
    arch = architecture(config)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError(refusal("device", "cuda", "cpu, auto: torch finds no CUDA device on this machine"))
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    key, loaded = (config.dataset, config.data_dir, config.normalize, device), {} if loaded is None else loaded
    if key not in loaded:
        loaded[key] = datasets.load(config.dataset, config.data_dir, config.normalize, say).to(device)
    data = loaded[key]
    config = config.replace(dataset=data.name, device=device)
    check(arch, config, data)
    return Plan(cell or _single(asked, config), config, arch, data)


def prepare_all(cells: Iterable[Cell], say: Say = print) -> list[Plan]:
    """The plans of a study's cells. What `auto` becomes is found out once: looking for a mirror takes its time."""
    plans: list[Plan] = []
    became: dict[tuple[str, str], str] = {}
    loaded: dict[tuple[str, ...], Data] = {}
    for cell in cells:
        asked = cell.config
        where = (asked.dataset, asked.data_dir)
        try:
            plan = prepare(asked.replace(dataset=became.get(where, asked.dataset)), say, cell, loaded)
        except InputError as error:
            raise type(error)(f"study {cell.study}, {cell.name}: {error}") from None
        became[where] = plan.data.name
        plans.append(plan)
    return plans


def _single(asked: RunConfig, config: RunConfig) -> Cell:
    """A run of its own, named by what differs from the defaults; a layer list by its file and eight digits of what it says."""
    differs = asked.differs()
    if isinstance(asked.network, str) and isinstance(config.network, LayerList):
        differs["network"] += f"-{config.network.digest[:8]}"
    return Cell.single(asked, differs)
