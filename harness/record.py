"""Under what a run ran: versions, CPU, arithmetic and the commit of the code."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from harness import seeding, version
from harness.config import RunConfig
from harness.data import Data

SCHEMA = 1
PACKAGES = ("torch", "torchvision", "numpy", "mlflow", "safetensors", "pandas", "mlxtend")


def git_commit(folder: Path = Path(__file__).parent) -> tuple[str, bool] | None:
    """The commit of the code and whether files differ from it; None outside a git checkout, or where there is no git."""
    try:
        from git import GitError, Repo  # refuses to be imported where there is no git
    except ImportError:
        return None
    try:
        with Repo(folder, search_parent_directories=True) as repo:
            if not repo.git.ls_files(str(folder)):  # installed into somebody else's checkout
                return None
            return repo.head.commit.hexsha, repo.is_dirty()
    except (GitError, ValueError, OSError):
        return None


def environment() -> dict[str, Any]:
    """Code, versions, arithmetic and machine, as they are now: to be asked for when a run begins."""
    commit = git_commit()
    return {
        "code": {"harness": version(), "commit": commit and commit[0], "dirty": commit and commit[1]},
        "python": platform.python_version(),
        "packages": {name: _version_of(name) for name in PACKAGES},
        "torch": {"build": torch.__config__.show(), "cpu_capability": torch.backends.cpu.get_cpu_capability()},
        "arithmetic": {"threads": torch.get_num_threads(), "default_dtype": str(torch.get_default_dtype())},
        "streams": seeding.VERSION,
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def as_json(config: RunConfig, data: Data, under: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """`record.json`: what a run was and came to, and the environment that it ran under; `schema` is its version."""
    content = {
        "schema": SCHEMA,
        "config": config.model_dump(mode="json"),
        "digests": {"config": config.digest, "data": data.digest, **digests},
        "files": dict(data.files),
        **under,
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
