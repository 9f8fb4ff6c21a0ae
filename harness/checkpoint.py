"""Checkpoints: all that a run needs to go on, in one safetensors file that vouches for itself.

A file is written beside its place, flushed to disk and renamed, so that there is the old one or the new one and never half.
The old one may be kept under another name, for when a disk gives back something else than was written.
Its metadata holds a SHA-256 over every tensor and the rest of the metadata. Nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from harness import layerlist
from harness.architecture import State, architecture, as_module, empty_module
from harness.config import RunConfig
from harness.errors import CheckpointError, InputError, refusal
from harness.layerlist import LayerList
from harness.results import EpochRecord

FORMAT = 1
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A run after `epoch`: weights and buffers in torch.nn's names and layout, and what training needs beside them."""

    config: RunConfig  # resolved
    data_digest: str
    epoch: int
    steps: int
    state: State
    moments: Mapping[str, State] = field(default_factory=dict)  # "square" -> "linear1.weight" -> tensor
    history: Sequence[EpochRecord] = ()
    chosen_by: str = ""  # the metric that made this the best one; empty for the last one

    def save(self, path: Path, keep: str = "") -> None:
        """Write the file at once or not at all; what stood there takes the name `keep`. Raises OSError when the disk does."""
        tensors = {f"model.{name}": tensor for name, tensor in self.state.items()}
        tensors |= {f"{moment}.{name}": t for moment, state in self.moments.items() for name, t in state.items()}
        meta = {
            "format": FORMAT,
            "config": self.config.model_dump(mode="json"),
            "config_digest": self.config.digest,
            "data_digest": self.data_digest,
            "epoch": self.epoch,
            "steps": self.steps,
            "moments": list(self.moments),
            "history": [record.to_json() for record in self.history],
            "chosen_by": self.chosen_by,
        }
        _write(path, _pack(tensors, meta), keep)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a file and check it against its own digest. Raises CheckpointError for anything else."""
        tensors, meta = _unpack(path)
        try:
            config = RunConfig(**meta["config"])
            parts: dict[str, State] = {name: {} for name in ("model", *meta["moments"])}
            for name, tensor in tensors.items():
                part, _, rest = name.partition(".")
                parts[part][rest] = tensor
            history = [EpochRecord(**record) for record in meta["history"]]
            state = parts.pop("model")
            return cls(config, meta["data_digest"], meta["epoch"], meta["steps"], state, parts, history, meta["chosen_by"])
        except (KeyError, TypeError, InputError) as error:
            raise CheckpointError(f"{path} is no checkpoint of a run that this version can read: {error}") from None

    def module(self) -> nn.Module:
        """The network as a torch module in eval mode."""
        return as_module(architecture(self.config), self.state, self.steps)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights and buffers: name, type, shape and bytes of each, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_model(model: nn.Module, path: str | Path, network: RunConfig | LayerList | Mapping[str, Any]) -> None:
    """Write a torch module's weights with the network that `build_network` made it from; `load_model(path)` reads them back.

    Raises InputError when weights and network do not fit, or the path does not end in .safetensors.
    """
    if Path(path).suffix != SUFFIX:
        raise InputError(refusal("path", str(path), f"one that ends in {SUFFIX}"))
    spec = layerlist.parse(dict(network)) if isinstance(network, Mapping) else network
    config = (spec if isinstance(spec, RunConfig) else RunConfig(network=spec)).with_layers()
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    expected = empty_module(architecture(config)).state_dict()
    if {name: t.shape for name, t in expected.items()} != {name: t.shape for name, t in state.items()}:
        raise InputError("the module's weights are not those of this network; give the one that build_network made it from")
    Checkpoint(config, "", 0, 0, state).save(Path(path))


def _pack(tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> bytes:
    text = json.dumps(meta, separators=(",", ":"))
    return save(dict(tensors), {"harness": text, "sha256": _digest(tensors, text)})


def _unpack(path: Path) -> tuple[State, dict[str, Any]]:
    """Tensors and metadata of one reading of the file: it may be replaced at any time."""
    try:
        content = path.read_bytes()
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is torn or no safetensors file: {error}") from None
    written = header.get("__metadata__") or {}
    text = written.get("harness", "")
    found, wanted = _digest(tensors, text), written.get("sha256", "none")
    if found != wanted:
        raise CheckpointError(f"{path} has SHA-256 {found}, but says {wanted}: it was damaged or altered")
    try:
        meta: dict[str, Any] = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} says nothing of a run: {error}") from None
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {meta.get('format')!r}; this version of harness reads {FORMAT}")
    return tensors, meta


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    return hashlib.sha256(f"{state_digest(tensors)} {text}".encode()).hexdigest()


def _write(path: Path, content: bytes, keep: str) -> None:
    """Write beside, flush, rename, and flush the folder: a crash at any point leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep:
            _keep(path, path.with_name(keep))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _keep(path: Path, previous: Path) -> None:
    """Give what stands at `path`, if anything does, a second name in place of whatever had it."""
    beside = previous.with_name(f".{previous.name}.{os.getpid()}.tmp")
    try:
        os.link(path, beside)  # so that nobody ever finds nothing at `path`
        beside.replace(previous)
    except FileNotFoundError:
        return
    except OSError:  # a disk that has no hard links
        path.replace(previous)
    finally:
        beside.unlink(missing_ok=True)
