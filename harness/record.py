"""Under what a run ran: versions, CPU, arithmetic and the commit of the code."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path

import torch
from git import InvalidGitRepositoryError, NoSuchPathError, Repo
from git.exc import GitError

from harness import seeding
from harness.config import RunConfig
from harness.data import Data

SCHEMA = 1
PACKAGES = ("torch", "torchvision", "numpy", "mlflow", "safetensors", "pandas", "mlxtend")


def git_commit(folder: Path = Path(__file__).parent) -> tuple[str, bool] | None:
    """The commit of the code and whether files differ from it; None outside a git checkout."""
    try:
        with Repo(folder, search_parent_directories=True) as repo:
            if not repo.git.ls_files(str(folder)):  # installed into somebody else's checkout
                return None
            return repo.head.commit.hexsha, repo.is_dirty()
    except (InvalidGitRepositoryError, NoSuchPathError, GitError, ValueError, OSError):
        return None


def as_json(config: RunConfig, data: Data, state_digest: str, history_digest: str) -> str:
    """`record.json`: what a run was and came to, and under what it ran; the layout has a version, `schema`."""
    commit = git_commit()
    content = {
        "schema": SCHEMA,
        "config": config.model_dump(mode="json"),
        "digests": {"config": config.digest, "data": data.digest, "state": state_digest, "history": history_digest},
        "files": dict(data.files),
        "streams": seeding.VERSION,
        "code": {"harness": version(), "commit": commit and commit[0], "dirty": commit and commit[1]},
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "torch": {"build": torch.__config__.show(), "cpu_capability": torch.backends.cpu.get_cpu_capability()},
        "arithmetic": {"threads": torch.get_num_threads(), "flush_denormal": True, "float": "float32"},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def version() -> str:
    """The installed version of harness; `0+source` where it is run from its source without being installed."""
    try:
        return metadata.version("harness")
    except metadata.PackageNotFoundError:
        return "0+source"
