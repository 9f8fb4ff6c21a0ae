"""Train small networks so that every number can be had again.

>>> import harness
>>> run = harness.train(harness.RunConfig(norm="layernorm"))      # doctest: +SKIP
>>> run.final["final/test_accuracy"], run.run_id                  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.architecture import build_network as build_network
    from harness.architecture import count_parameters as count_parameters
    from harness.cells import StudyResult as StudyResult
    from harness.checkpoint import save_model as save_model
    from harness.config import RunConfig as RunConfig
    from harness.driver import run_study as run_study
    from harness.errors import HarnessError as HarnessError
    from harness.frames import compare as compare
    from harness.frames import history as history
    from harness.frames import runs as runs
    from harness.frames import summary as summary
    from harness.launch import load_model as load_model
    from harness.launch import train as train
    from harness.modules import BatchNorm1d as BatchNorm1d
    from harness.modules import LayerNorm1d as LayerNorm1d
    from harness.study import Study as Study
    from harness.verification import Verdict as Verdict
    from harness.verification import verify as verify

_HOMES = {
    "RunConfig": "config",
    "HarnessError": "errors",
    "Study": "study",
    "StudyResult": "cells",
    "train": "launch",
    "run_study": "driver",
    "runs": "frames",
    "history": "frames",
    "summary": "frames",
    "compare": "frames",
    "load_model": "launch",
    "save_model": "checkpoint",
    "build_network": "architecture",
    "count_parameters": "architecture",
    "BatchNorm1d": "modules",
    "LayerNorm1d": "modules",
    "verify": "verification",
    "Verdict": "verification",
}
__all__ = sorted(_HOMES)


def version() -> str:
    """The installed version; `0+source` where harness runs from its source without being installed."""
    try:
        return metadata.version("harness")
    except metadata.PackageNotFoundError:
        return "0+source"


def __getattr__(name: str) -> Any:
    """A public name, imported when first asked for: `import harness` loads neither torch nor mlflow."""
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module(f"harness.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
