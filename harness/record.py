"""`record.json`: all that is known of how a run came about, so that it can be had again, and a difference explained."""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from harness import numerics, seeding, version
from harness.config import RunConfig
from harness.data import Data
from harness.sources import code_digest, definitions

SCHEMA = 2
VOLATILE = "volatile"  # the section of what is another each time: moments, durations, the host
# what of the environment may move a bit; nothing else of it is recorded, for it may hold secrets
VARIABLES = (
    *numerics.CAPS, "MKL_ENABLE_INSTRUCTIONS", "MKL_DYNAMIC", "DNNL_MAX_CPU_ISA", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "KMP_AFFINITY", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG",
    "GLIBC_TUNABLES", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "PYTHONHASHSEED",
    "PYTHONOPTIMIZE", "LC_ALL", "LANG", "TZ",
)  # fmt: skip
# from the likeliest cause to the least; a section without names is compared whole
RANKED: Sequence[tuple[str, Sequence[str]]] = (
    ("data.files", ()),
    ("data", ("name",)),
    ("streams", ()),
    ("code.definitions", ()),
    ("arithmetic", ("threads", "numerics", "flush_denormal", "deterministic", "default_dtype", "gpu")),
    ("software.packages", ("torch", "numpy", "scipy")),
    ("software", ("torch", "torch_build", "python", "implementation")),
    ("arithmetic", ("capability", "processor")),
    ("environment", ()),
)


@dataclass(frozen=True)
class Clock:
    """When a run, or its resumption, began in this process."""

    wall: float = field(default_factory=time.time)
    cpu: float = field(default_factory=time.process_time)


def surroundings(config: RunConfig) -> dict[str, Any]:
    """Code, software, arithmetic and machine as they are now, under which a run with this config would run."""
    return {
        "code": {**code(), "digest": code_digest(config), "definitions": dict(definitions(config))},
        "software": software(),
        "arithmetic": arithmetic(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "streams": seeding.VERSION,
    }


@cache  # of the code that was loaded, whatever happens to its files meanwhile
def code() -> dict[str, Any]:
    """The version of harness, and commit, branch and difference from it of its git checkout; silent outside one."""
    found: dict[str, Any] = {"harness": version()}
    folder = Path(__file__).parent
    try:
        from git import GitError, Repo  # refuses to be imported where there is no git
    except ImportError:
        return found
    try:
        with Repo(folder, search_parent_directories=True) as repo:
            if not repo.git.ls_files(str(folder)):  # installed into somebody else's checkout
                return found
            branch = None if repo.head.is_detached else repo.active_branch.name
            diff = repo.git.diff("HEAD", no_ext_diff=True, no_color=True)
            return {**found, "commit": repo.head.commit.hexsha, "branch": branch, "dirty": bool(diff), "diff": diff}
    except (GitError, ValueError, OSError):
        return found


@cache
def software() -> dict[str, Any]:
    """Python, torch's build and every distribution that can be imported here, with its version."""
    found = {dist.metadata["Name"]: dist.version for dist in reversed(list(metadata.distributions()))}  # the first one counts
    build = torch.__config__.show().splitlines(keepends=True)
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "torch": torch.__version__,
        "torch_build": "".join(line for line in build if "CPU capability" not in line),  # which `arithmetic` tells
        "packages": dict(sorted(found.items(), key=lambda item: item[0].lower())),
    }


def arithmetic() -> dict[str, Any]:
    """What decides how numbers round: processor, instructions, their caps, threads and torch's flags."""
    return {
        "processor": numerics.processor("model name"),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "numerics": numerics.current(),
        "threads": torch.get_num_threads(),
        "flush_denormal": not (torch.full((8,), 1e-39) * 0.5).any().item(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default_dtype": str(torch.get_default_dtype()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def as_json(
    config: RunConfig,
    data: Data,
    under: Mapping[str, Any],
    traced: Mapping[str, Any],
    clock: Clock,
    evaluation: float | None = None,
) -> str:
    """The text of `record.json`: keys sorted, no number that JSON does not know. `evaluation`: its seconds, once it ends."""
    content = {
        "schema": SCHEMA,
        "config": config.model_dump(mode="json"),
        "config_digest": config.digest,
        "data": {"name": data.name, "digest": data.digest, "files": dict(data.files)},
        **under,
        "trace": dict(traced),
        VOLATILE: _volatile(clock) | ({} if evaluation is None else {"evaluation_seconds": round(evaluation, 3)}),
    }
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _volatile(clock: Clock) -> dict[str, Any]:
    """Of the process: lanes of a stack share its CPU time and memory."""
    now = time.time()
    return {
        "began": datetime.fromtimestamp(clock.wall, UTC).isoformat(timespec="seconds"),
        "ended": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(now - clock.wall, 3),
        "cpu_seconds": round(time.process_time() - clock.cpu, 3),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "host": platform.node(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two records, the likeliest cause of other bits first."""
    found: list[str] = []
    for section, names in RANKED:
        before, after = (_section(part, section) for part in (then, now))
        for name in names or sorted({*before, *after}):
            if before.get(name) != after.get(name):
                found.append(f"{section}: {name} {_short(before.get(name))} -> {_short(after.get(name))}")
    return found


def _section(content: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    value: Any = content
    for name in path.split("."):
        value = value.get(name, {}) if isinstance(value, Mapping) else {}
    return value if isinstance(value, Mapping) else {"version": value}


def _short(value: object) -> str:
    """Digests by twelve of their digits, texts by their length."""
    text = str(value)
    return f"text of {len(text)} characters" if "\n" in text else text[:12] if len(text) >= 40 else text
