"""Where datasets are fetched from: torchvision's mirrors, one after the other, with a limit on their silence."""

from __future__ import annotations

import hashlib
import importlib
import shutil
import socket
import sys
import types
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from harness.locks import Locks, own_folder

DEAD_SECONDS = 10  # without a byte, after which a mirror counts as dead


def fetch(dataset: str, folder: Path, missing: Collection[str]) -> None:
    """Fetch and unpack what is missing of a dataset, a class of `torchvision.datasets`: each archive from the first mirror that
    has it.

    Several processes may: a file is whole from the moment that it is there, and whoever waited takes what another has fetched.
    Raises whatever the network, the archive and the disk do.
    """
    with Locks(own_folder()).hold(hashlib.sha256(str(folder).encode()).hexdigest()[:16], -1), _socket_timeout(DEAD_SECONDS):
        missing = {file for file in missing if not (folder / file).exists()}
        torchvision = torchvision_module()
        found = getattr(torchvision, dataset)
        for archive, md5 in found.resources:
            if not {archive, archive.removesuffix(".gz")}.isdisjoint(missing):
                _fetch(torchvision, [f"{mirror}{archive}" for mirror in found.mirrors], folder, archive, md5)


def _fetch(torchvision: types.ModuleType, urls: list[str], folder: Path, archive: str, md5: str) -> None:
    """One archive, with what it holds beside it; raises the last mirror's error when all fail."""
    place = folder / ".fetching"
    for url in urls:
        try:
            shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
            place.mkdir(parents=True)
            if (folder / archive).exists():  # torchvision fetches no archive that is there
                shutil.copy(folder / archive, place)
            torchvision.utils.download_and_extract_archive(url, str(place), filename=archive, md5=md5)
            for file in place.iterdir():
                file.replace(folder / file.name)
            return
        except (OSError, RuntimeError) as error:  # no such host, no answer, or not the file
            failure: Exception = error
        finally:
            shutil.rmtree(place, ignore_errors=True)
    raise failure


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torchvision's download takes no timeout; urllib then uses the process's default, which is none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


_schemas: list[torch.library.Library] = []  # torch forgets schemas whose Library is collected


def torchvision_module() -> types.ModuleType:
    """torchvision.datasets, also beside a CPU-only torch.

    torchvision's wheel is built for CUDA. Beside a CPU-only torch its compiled operators do not load, and its Python stops at
    `operator torchvision::nms does not exist`. Only then are the schemas declared; no dataset ever calls them.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.append(library)
    for module in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[module]
    return importlib.import_module("torchvision.datasets")
