"""Checkpoints: what is read is what was written, or an error; what stood there survives every crash; nothing is executed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import harness
from harness import checkpoint
from harness.architecture import architecture, initial_state
from harness.checkpoint import Checkpoint, save_model, state_digest
from harness.components.optimizers import OPTIMIZERS
from harness.config import RunConfig
from harness.errors import CheckpointError, InputError
from harness.results import EpochRecord, history_digest

LISTED = {"layers": [{"type": "linear", "size": 6}, {"type": "batch_norm"}, {"type": "dropout", "rate": 0.3}, {"type": "relu"}]}
CONFIGS = {
    "base": RunConfig(hidden_dim=4, dataset="mnist_5k"),
    "batchnorm adam": RunConfig(hidden_dim=4, norm="batchnorm", optimizer="adam", dropout=0.5, validation=0.1, lr=1e-5),
    "layer list": RunConfig(network=LISTED, optimizer="momentum", seed=2**62, weight_decay=0.1),
}
SMALL = RunConfig(network={"input_size": 5, "num_classes": 3, **LISTED}, optimizer="adam")


def a_checkpoint(config: RunConfig, epochs: int = 2, seed: int = 0) -> Checkpoint:
    """A checkpoint with all its parts, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    arch = architecture(config)
    state = initial_state(arch, config.init, config.seed)
    state = {name: torch.randn(t.shape, generator=generator) for name, t in state.items()}
    moments = {
        moment: {name: torch.randn(t.shape, generator=generator) for name, t in state.items() if "running" not in name}
        for moment in OPTIMIZERS[config.optimizer].moments
    }
    history = [
        EpochRecord(n, {"test/loss": 0.1 + n, "test/accuracy": 1 / 3}, 0, {"hidden1/mean": -0.0}, 0.25 * n or None)
        for n in range(epochs + 1)
    ]
    return Checkpoint(config, "d" * 64, epochs, 7 * epochs, state, moments, history, "val/loss")


def assert_same_bits(one: Any, other: Any) -> None:
    assert list(one) == list(other) or sorted(one) == sorted(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert one[name].shape == other[name].shape
        assert one[name].numpy().tobytes() == other[name].numpy().tobytes(), name


def bits(record: EpochRecord) -> tuple[Any, ...]:
    """A record as text, so that nan equals nan and -0.0 is not 0.0; the order of its names is nobody's."""
    parts = (sorted(record.curves.items()), sorted(record.health.items()))
    return (record.epoch, *map(repr, parts), repr(record.seconds), record.lane)


def assert_equal(one: Checkpoint, other: Checkpoint) -> None:
    assert one.config == other.config
    assert one.config.digest == other.config.digest
    assert (one.data_digest, one.epoch, one.steps) == (other.data_digest, other.epoch, other.steps)
    assert one.chosen_by == other.chosen_by
    assert_same_bits(one.state, other.state)
    assert sorted(one.moments) == sorted(other.moments)
    for moment in one.moments:
        assert_same_bits(one.moments[moment], other.moments[moment])
    assert [bits(record) for record in one.history] == [bits(record) for record in other.history]
    assert history_digest(one.history) == history_digest(other.history)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small checkpoint file."""
    path = tmp_path_factory.mktemp("written") / "last.safetensors"
    a_checkpoint(SMALL).save(path)
    return path.read_bytes()


# round trips


@pytest.mark.parametrize("name", CONFIGS)
def test_checkpoint_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    before = a_checkpoint(CONFIGS[name])
    before.save(tmp_path / "deep" / "er" / "last.safetensors")
    assert_equal(Checkpoint.load(tmp_path / "deep" / "er" / "last.safetensors"), before)
    assert os.listdir(tmp_path / "deep" / "er") == ["last.safetensors"]


numbers = st.floats(allow_nan=True, allow_infinity=True)
records = st.builds(
    EpochRecord,
    st.integers(0, 10**6),
    st.dictionaries(st.sampled_from(["train/loss", "test/loss", "val/accuracy"]), numbers),
    st.just(0),
    st.dictionaries(st.text(max_size=8), numbers, max_size=3),
    st.none() | numbers,
)


@settings(max_examples=60)
@given(
    st.lists(records, max_size=4),
    st.integers(0, 2**53),
    st.integers(0, 2**53),
    st.text(max_size=20),
    st.integers(0, 9),
)
def test_any_history_comes_back_to_the_bit(
    history: list[EpochRecord], epoch: int, steps: int, chosen_by: str, seed: int
) -> None:
    before = replace(a_checkpoint(SMALL, 0, seed), history=history, epoch=epoch, steps=steps, chosen_by=chosen_by)
    with tempfile.TemporaryDirectory() as folder:
        before.save(Path(folder) / "last.safetensors")
        assert_equal(Checkpoint.load(Path(folder) / "last.safetensors"), before)


def test_weights_that_are_no_numbers_survive(tmp_path: Path) -> None:
    before = a_checkpoint(CONFIGS["base"])
    before.state["linear1.bias"][:] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    before.save(tmp_path / "x.safetensors")
    assert_equal(Checkpoint.load(tmp_path / "x.safetensors"), before)


def test_file_is_plain_safetensors_with_json_beside(written: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(written)
    with safe_open(tmp_path / "x", "pt") as file:
        meta = json.loads(file.metadata()["harness"])
        assert meta["epoch"] == 2
        assert RunConfig(**meta["config"]) == SMALL
        assert {"model.linear1.weight", "model.linear2.bias"} <= set(file.keys())


# damage


def refused(content: bytes, folder: Path) -> str:
    path = folder / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_any_flipped_bit_is_noticed(written: bytes, tmp_path: Path) -> None:
    rng, header = random.Random(0), 8 + int.from_bytes(written[:8], "little")
    assert header < len(written)
    positions = {*range(8), *rng.sample(range(8, header), 250), *rng.sample(range(header, len(written)), 150)}
    for position in sorted(positions):
        damaged = bytearray(written)
        damaged[position] ^= 1 << rng.randrange(8)
        refused(bytes(damaged), tmp_path)


def says_the_same(one: bytes, other: bytes) -> bool:
    """Whether two files have equal JSON headers and equal bytes after them: white space is nobody's loss."""
    try:
        headers = [json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]) for content in (one, other)]
    except ValueError:
        return False
    return headers[0] == headers[1]


def test_any_byte_replaced_by_any_other_is_noticed(written: bytes, tmp_path: Path) -> None:
    rng = random.Random(1)
    for position in rng.sample(range(8, len(written)), 200):
        damaged = bytearray(written)
        damaged[position] = rng.choice([b for b in range(256) if b != damaged[position]])
        if not says_the_same(bytes(damaged), written):
            refused(bytes(damaged), tmp_path)


def test_file_cut_short_anywhere_is_noticed(written: bytes, tmp_path: Path) -> None:
    rng = random.Random(0)
    for length in [*range(12), len(written) - 1, *rng.sample(range(len(written)), 60)]:
        refused(written[:length], tmp_path)


def test_file_with_something_after_it_is_noticed(written: bytes, tmp_path: Path) -> None:
    refused(written + b"\0", tmp_path)
    refused(written + written, tmp_path)


def rewritten(written: bytes, folder: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> bytes:
    """The file as a well-formed safetensors file whose tensors or metadata somebody changed."""
    (folder / "whole").write_bytes(written)
    with safe_open(folder / "whole", "pt") as file:
        tensors, meta = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors, meta)
    save_file(tensors, folder / "changed", meta)
    return (folder / "changed").read_bytes()


ALTERATIONS: dict[str, Callable[[dict[str, Tensor], dict[str, str]], object]] = {
    "epoch": lambda tensors, meta: meta.update(harness=meta["harness"].replace('"epoch":2', '"epoch":1')),
    "swapped weights": lambda tensors, meta: tensors.update(
        {"model.linear1.bias": tensors["model.batch_norm1.bias"], "model.batch_norm1.bias": tensors["model.linear1.bias"]}
        if "model.batch_norm1.bias" in tensors
        else {"model.linear1.bias": tensors["model.linear1.bias"] + 1}
    ),
    "tensor left out": lambda tensors, meta: tensors.pop("model.linear1.bias"),
    "tensor added": lambda tensors, meta: tensors.update({"model.extra": torch.zeros(1)}),
    "tensor reshaped": lambda tensors, meta: tensors.update({"model.linear1.bias": tensors["model.linear1.bias"][None]}),
    "no digest": lambda tensors, meta: meta.pop("sha256"),
    "no facts": lambda tensors, meta: meta.pop("harness"),
    "half precision": lambda tensors, meta: tensors.update({"model.linear1.bias": tensors["model.linear1.bias"].bfloat16()}),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_altered_file_that_is_well_formed_is_refused(alteration: str, written: bytes, tmp_path: Path) -> None:
    assert rewritten(written, tmp_path, lambda tensors, meta: None)
    message = refused(rewritten(written, tmp_path, ALTERATIONS[alteration]), tmp_path)
    assert str(tmp_path) in message


def test_message_about_damage_has_both_digests(written: bytes, tmp_path: Path) -> None:
    damaged = written[:-1] + bytes([written[-1] ^ 1])
    message = refused(damaged, tmp_path)
    assert len(set(re.findall(r"\b[0-9a-f]{64}\b", message))) == 2


FORGERIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "not an object": lambda meta: [1, 2],
    "no config": lambda meta: {key: value for key, value in meta.items() if key != "config"},
    "config of another time": lambda meta: meta | {"config": meta["config"] | {"warmup": 3}},
    "a level that is gone": lambda meta: meta | {"config": meta["config"] | {"act": "cosine"}},
    "config that is none": lambda meta: meta | {"config": 3},
    "network that is none": lambda meta: meta | {"config": meta["config"] | {"network": 3}},
    "history of numbers": lambda meta: meta | {"history": [1]},
    "history with a stranger": lambda meta: meta | {"history": [{"epoch": 1, "curves": {}, "lies": 2}]},
    "moments that are missing": lambda meta: meta | {"moments": []},
    "moments that are no names": lambda meta: meta | {"moments": [["square"]]},
    "another format": lambda meta: meta | {"format": 2},
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_file_with_a_right_digest_that_says_nonsense_is_refused(forgery: str, written: bytes, tmp_path: Path) -> None:
    def forge(tensors: dict[str, Tensor], meta: dict[str, str]) -> None:
        meta["harness"] = json.dumps(FORGERIES[forgery](json.loads(meta["harness"])))
        meta["sha256"] = hashlib.sha256(f"{state_digest(tensors)} {meta['harness']}".encode()).hexdigest()

    refused(rewritten(written, tmp_path, forge), tmp_path)


@pytest.mark.parametrize("text", ["", "{", "null"])
def test_file_with_a_right_digest_over_no_facts_is_refused(text: str, written: bytes, tmp_path: Path) -> None:
    def forge(tensors: dict[str, Tensor], meta: dict[str, str]) -> None:
        meta.update(harness=text, sha256=hashlib.sha256(f"{state_digest(tensors)} {text}".encode()).hexdigest())

    refused(rewritten(written, tmp_path, forge), tmp_path)


# what is not a checkpoint


class Trap:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "executed"))


def strangers(folder: Path) -> dict[str, bytes]:
    trap, as_torch, as_zip = pickle.dumps(Trap(folder / "sprung")), io.BytesIO(), io.BytesIO()
    torch.save({"model": torch.ones(2)}, as_torch)
    with zipfile.ZipFile(as_zip, "w") as archive:
        archive.writestr("archive/data.pkl", trap)
    other = folder / "other.safetensors"
    save_file({"weight": torch.ones(2)}, other)
    half = folder / "half.safetensors"
    save_file({"weight": torch.ones(2, dtype=torch.bfloat16)}, half)
    return {
        "empty": b"",
        "text": b"epoch,loss\n1,0.5\n",
        "pickle": trap,
        "torch.save": as_torch.getvalue(),
        "zip of a pickle": as_zip.getvalue(),
        "zeros": bytes(4096),
        "huge header": (2**63 - 1).to_bytes(8, "little") + b"{}",
        "somebody's safetensors": other.read_bytes(),
        "somebody's bfloat16": half.read_bytes(),
    }


@pytest.mark.parametrize("kind", list(strangers(Path(tempfile.mkdtemp()))))
def test_file_that_is_no_checkpoint_is_refused_and_not_executed(kind: str, tmp_path: Path) -> None:
    refused(strangers(tmp_path)[kind], tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_trap_would_have_been_sprung(tmp_path: Path) -> None:
    pickle.loads(strangers(tmp_path)["pickle"])
    assert (tmp_path / "sprung").exists()


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.safetensors", tmp_path, tmp_path / "a\nb" / "c"):
        with pytest.raises(CheckpointError, match=r"no such checkpoint|torn or no safetensors file"):
            Checkpoint.load(path)


# crashes

OPERATIONS = ("os.fsync 1", "os.fsync 2", "Path.replace 1", "file.write 1", "os.open 1", "json.dumps 1")


class PowerCut(BaseException):
    """Nothing that a program may handle."""


def break_at(monkeypatch: pytest.MonkeyPatch, operation: str, error: BaseException) -> list[str]:
    """Let the nth call of an operation fail; returns the list of calls made so far."""
    what, number = operation.split()
    calls: list[str] = []

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(what)
            if calls.count(what) == int(number):
                raise error
            return real(*args, **kwargs)

        return call

    if what == "os.fsync":
        monkeypatch.setattr(checkpoint.os, "fsync", failing(os.fsync))
    elif what == "os.open":
        monkeypatch.setattr(checkpoint.os, "open", failing(os.open))
    elif what == "Path.replace":
        monkeypatch.setattr(Path, "replace", failing(Path.replace))
    elif what == "json.dumps":
        monkeypatch.setattr(checkpoint.json, "dumps", failing(json.dumps))
    else:
        real_open = Path.open

        class HalfFile(io.FileIO):
            def write(self, content: Any) -> int:
                calls.append(what)
                super().write(content[: len(content) // 2])
                raise error

        def open_half(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            return HalfFile(path, "w") if mode == "wb" else real_open(path, mode, *args, **kwargs)

        monkeypatch.setattr(Path, "open", open_half)
    return calls


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), PowerCut()], ids=repr)
def test_crash_at_any_step_of_a_write_leaves_a_whole_file_and_no_leftovers(
    operation: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = a_checkpoint(CONFIGS["base"], 1, seed=1), a_checkpoint(CONFIGS["base"], 2, seed=2)
    path = tmp_path / "last.safetensors"
    old.save(path)
    with monkeypatch.context() as patch:
        calls = break_at(patch, operation, error)
        with pytest.raises(type(error)):
            new.save(path)
    assert calls
    after_the_rename = operation in ("os.open 1", "os.fsync 2")
    assert_equal(Checkpoint.load(path), new if after_the_rename else old)
    assert os.listdir(tmp_path) == ["last.safetensors"]
    new.save(path)
    assert_equal(Checkpoint.load(path), new)


class Operations:
    """What a write asks of the disk: the nth of it fails, or takes the process with it, in the midst of what it writes."""

    def __init__(self, patch: pytest.MonkeyPatch, nth: int, fail: Callable[[], None], share: float, links: bool) -> None:
        self.done, self.nth, self.fail, self.share = 0, nth, fail, share
        for owner, name in [(os, "fsync"), (os, "open"), (os, "link"), *((Path, n) for n in ("mkdir", "replace", "unlink"))]:
            patch.setattr(owner, name, self.counted(getattr(owner, name)))
        if not links:
            patch.setattr(os, "link", self.counted(self.refuse))
        patch.setattr(Path, "open", self.counted(lambda path, mode: File(path, self)))

    def counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count()
            return real(*args, **kwargs)

        return call

    def count(self) -> None:
        self.done += 1
        if self.done == self.nth:
            self.fail()

    @staticmethod
    def refuse(*paths: Path) -> None:
        raise PermissionError(1, "Operation not permitted")  # as FAT and some network disks say


class File(io.FileIO):
    """A file of which a share is written when the disk fails."""

    def __init__(self, path: Path, operations: Operations) -> None:
        super().__init__(path, "w")
        self.operations = operations

    def write(self, content: Any) -> int:
        super().write(content[: int(len(content) * self.operations.share)])
        self.operations.count()
        self.seek(0)
        return super().write(content)


def fail() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("share", [0, 0.5, 1], ids=["empty", "torn", "whole"])
@pytest.mark.parametrize("die", [False, True], ids=["fails", "dies"])
def test_write_that_stops_before_any_operation_leaves_the_old_state_or_the_new(
    die: bool, share: float, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a whole checkpoint to go on from after every one of them, and the next write finds nothing in its way."""
    first, old, new = (a_checkpoint(SMALL, n, seed=n) for n in (1, 2, 3))
    outcomes = []
    for nth in range(1, 40):
        folder = tmp_path / str(nth)
        last, previous = folder / "last.safetensors", folder / "previous.safetensors"
        first.save(last, keep=previous.name)
        old.save(last, keep=previous.name)
        assert_equal(Checkpoint.load(previous), first)

        def save(nth: int = nth, last: Path = last) -> int:
            with monkeypatch.context() as patch:
                operations = Operations(patch, nth, partial(os._exit, 9) if die else fail, share, links)
                with suppress(OSError):
                    new.save(last, keep="previous.safetensors")
                return operations.done

        if die:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: the child computes nothing
                child = os.fork()
            if child == 0:
                save()
                os._exit(0)
            reached = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        else:
            reached = save() >= nth
        at = {path.name: Checkpoint.load(path).epoch for path in (last, previous) if path.exists()}
        outcomes.append((at.get(last.name), at.get(previous.name)))
        new.save(last, keep=previous.name)
        assert_equal(Checkpoint.load(last), new)
        assert Checkpoint.load(previous).epoch in (2, 3)
        if not reached:
            break
    assert {(2, 1), (3, 2)} < set(outcomes) <= {(2, 1), (2, 2) if links else (None, 2), (3, 2)}
    assert outcomes[-1] == (3, 2)
    assert len(outcomes) > 8


def test_file_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, Path.replace
    monkeypatch.setattr(checkpoint.os, "fsync", lambda handle: (order.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda path, to: (order.append("rename"), rename(path, to))[1])
    a_checkpoint(CONFIGS["base"]).save(tmp_path / "x")
    assert order == ["fsync", "rename", "fsync"]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    """Another process writes as fast as it can; each of our reads is one of its two checkpoints."""
    path, parent = tmp_path / "last.safetensors", os.getpid()
    two = [a_checkpoint(CONFIGS["base"], n, seed=n) for n in (1, 2)]
    two[0].save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: the child computes nothing
        child = os.fork()
    if child == 0:
        for n in range(2000):
            if os.getppid() != parent:
                break
            two[n % 2].save(path)
        os._exit(0)
    try:
        for _ in range(150):
            found = Checkpoint.load(path)
            assert_equal(found, two[found.epoch - 1])
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


# for people


@pytest.mark.parametrize("name", CONFIGS)
def test_module_saved_by_a_person_is_loaded_with_the_same_logits(name: str, tmp_path: Path) -> None:
    model = harness.build_network(CONFIGS[name], seed=3)
    inputs = torch.randn(9, 784, generator=torch.Generator().manual_seed(0))
    model(inputs)  # moves running statistics
    path = tmp_path / "mine.safetensors"
    harness.save_model(model, path, CONFIGS[name])
    loaded = harness.load_model(path)
    assert not loaded.training
    assert torch.equal(loaded(inputs), model.eval()(inputs))
    assert_same_bits(loaded.state_dict(), model.state_dict())


def test_layer_list_may_be_given_as_a_mapping_or_a_path_in_a_config(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(json.dumps(LISTED), encoding="utf-8")
    model = harness.build_network(LISTED)
    for number, spec in enumerate((LISTED, RunConfig(network=str(tmp_path / "net.json")))):
        save_model(model, str(tmp_path / f"{number}.safetensors"), spec)
        loaded = harness.load_model(str(tmp_path / f"{number}.safetensors"))
        assert torch.equal(loaded(torch.ones(2, 784)), model.eval()(torch.ones(2, 784)))
    (tmp_path / "net.json").unlink()
    assert harness.load_model(tmp_path / "1.safetensors")  # the file holds the list itself


def test_loaded_module_can_be_trained_on(tmp_path: Path) -> None:
    save_model(harness.build_network(LISTED), tmp_path / "m.safetensors", LISTED)
    model = harness.load_model(tmp_path / "m.safetensors").train()
    nn.functional.cross_entropy(model(torch.randn(8, 784)), torch.arange(8)).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert harness.count_parameters(model) == harness.count_parameters(harness.build_network(LISTED))


@pytest.mark.parametrize(
    "other", [{"layers": [{"type": "linear", "size": 7}]}, {"layers": []}, RunConfig(norm="batchnorm"), RunConfig(hidden_dim=5)]
)
def test_weights_of_another_network_are_refused_and_nothing_is_written(other: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not those of this network"):
        save_model(harness.build_network(LISTED), tmp_path / "m.safetensors", other)
    assert not list(tmp_path.iterdir())


def test_network_that_is_no_layer_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nearest: linear"):
        save_model(nn.Linear(2, 2), tmp_path / "m.safetensors", {"layers": [{"type": " linear", "size": 3}]})
    assert not list(tmp_path.iterdir())


def test_damaged_file_of_a_person_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(harness.build_network(LISTED), path, LISTED)
    content = bytearray(path.read_bytes())
    content[-5] ^= 16
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or altered"):
        harness.load_model(path)


# digests


def test_digest_of_weights_is_stable() -> None:
    """The digest by hand: a changed recipe would orphan every digest in every store."""
    state = {"b": torch.tensor([1.5, -2.0]), "a": torch.tensor([[3]], dtype=torch.int64)}
    expected = hashlib.sha256(
        b"a torch.int64 [1, 1]\n" + (3).to_bytes(8, "little") + b"b torch.float32 [2]\n" + bytes.fromhex("0000c03f000000c0")
    ).hexdigest()
    assert state_digest(state) == expected


def test_digest_knows_no_order_of_names() -> None:
    state = initial_state(architecture(CONFIGS["base"]), "normal", 0)
    assert state_digest(dict(reversed(state.items()))) == state_digest(state)


def test_digest_knows_no_memory_layout() -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    turned = weight.T.contiguous().T
    assert not turned.is_contiguous()
    assert state_digest({"w": turned}) == state_digest({"w": weight})
    assert state_digest({"w": weight.clone().requires_grad_()}) == state_digest({"w": weight})


CHANGES: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {
    "name": lambda w: {"v": w},
    "dtype of the same width": lambda w: {"w": w.view(torch.int32)},
    "wider dtype": lambda w: {"w": w.double()},
    "shape": lambda w: {"w": w.view(4, 3)},
    "transposed": lambda w: {"w": w.T},
    "one bit": lambda w: {
        "w": (w.view(torch.int32) ^ torch.tensor([1] + [0] * 11, dtype=torch.int32).view(3, 4)).view(w.dtype)
    },
    "sign of zero": lambda w: {"w": w * torch.where(w == 0, -1.0, 1.0)},
    "one more": lambda w: {"w": w, "empty": torch.zeros(0)},
    "split": lambda w: {"w": w[:1], "x": w[1:]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_digest_notices(change: str) -> None:
    weight = torch.arange(12, dtype=torch.float32).view(3, 4)
    assert state_digest(CHANGES[change](weight)) != state_digest({"w": weight})


def test_load_model_names_what_which_may_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allowed: last, best; nearest: best"):
        harness.load_model(tmp_path / "x.safetensors", which="bests")


def test_module_is_saved_under_a_name_that_load_model_takes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"w\.bin' is not allowed; allowed: one that ends in \.safetensors"):
        save_model(harness.build_network(RunConfig()), tmp_path / "w.bin", RunConfig())
    assert not list(tmp_path.iterdir())
