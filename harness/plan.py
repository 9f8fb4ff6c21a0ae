"""A config checked against its data: all that must hold before the store hears of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from harness import data as datasets
from harness.architecture import Architecture, architecture
from harness.config import RunConfig
from harness.data import Data
from harness.errors import InputError, refusal
from harness.layerlist import LayerList
from harness.training import check


@dataclass(frozen=True)
class Plan:
    """What a run will be."""

    asked: RunConfig
    config: RunConfig  # resolved: what `auto` became, and the layer list itself in place of its path
    arch: Architecture
    data: Data

    @property
    def differs(self) -> dict[str, str]:
        """What differs from the defaults; a layer list goes by its file's name and eight digits of what it says."""
        names = self.asked.differs()
        if isinstance(self.asked.network, str) and isinstance(self.config.network, LayerList):
            names["network"] += f"-{self.config.network.digest[:8]}"
        return names

    @property
    def condition(self) -> str:
        """`differs` as text, `act=relu norm=layernorm`; `base` where nothing does."""
        return " ".join(f"{name}={text}" for name, text in self.differs.items()) or "base"

    @property
    def name(self) -> str:
        """The run's name, `<variant>-s<seed>`."""
        return f"{self.condition}-s{self.asked.seed}"


def prepare(asked: RunConfig, say: Callable[[str], None] = print) -> Plan:
    """Load a config's data and check the two together. Raises InputError; writes nothing but a dataset that it downloads."""
    config = asked.with_layers()
    arch = architecture(config)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError(refusal("device", "cuda", "cpu, auto: torch finds no CUDA device on this machine"))
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    data = datasets.load(config.dataset, config.data_dir, config.normalize, say).to(device)
    config = config.replace(dataset=data.name, device=device)
    check(arch, config, data)
    return Plan(asked, config, arch, data)
