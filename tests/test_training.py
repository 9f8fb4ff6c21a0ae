"""The loop: what it learns from, what it reports, when it stops and how it goes on."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import harness
from harness import data, training
from harness.architecture import architecture, as_module, initial_state
from harness.components.activations import ACTIVATIONS
from harness.components.layers import Dropout
from harness.components.norms import NORMS
from harness.components.optimizers import OPTIMIZERS
from harness.config import RunConfig
from harness.data import Data, Split
from harness.errors import InputError
from harness.minibatches import Minibatches, score
from harness.results import EpochRecord, history_digest
from harness.training import Stack, check, evaluate, exact_arithmetic, finals, subsets, train

BASE = {"dataset": "mnist_5k", "init": "kaiming", "act": "relu", "hidden_dim": 40}


def a_config(**values: Any) -> RunConfig:
    return RunConfig(**{**BASE, **values})


@pytest.fixture
def digits() -> Data:
    return data.load("mnist_5k", "unused")


@pytest.fixture
def few(digits: Data) -> Data:
    """200 digits to train on and 90 to test on."""
    return replace(digits, train=digits.train[:200], test=digits.test[:90])


@pytest.fixture
def numbered() -> Data:
    """100 + 100 samples that carry the number of their row in their first pixel."""
    pixels = torch.zeros(100, 784, dtype=torch.uint8)
    pixels[:, 0] = torch.arange(100)
    split = Split(pixels, torch.arange(100) % 10)
    return Data("numbered", split, split, {})


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    with exact_arithmetic():
        yield


def stack_of(some: Data, *configs: RunConfig) -> Stack:
    return Stack.of(architecture(configs[0]), configs, some)


def run(some: Data, config: RunConfig, probe: bool = False) -> tuple[Stack, list[EpochRecord]]:
    stack = stack_of(some, config)
    return stack, list(train(stack, probe))


def digest(state: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(
        b"".join(name.encode() + value.numpy().tobytes() for name, value in sorted(state.items()))
    ).hexdigest()


def epoch_rows(stack: Stack, epoch: int, lane: int = 0) -> list[list[int]]:
    """The rows of `numbered` that each batch of an epoch has."""
    stack.epoch = epoch
    return [batch.inputs[lane, :, 0].mul(255).round().long().tolist() for batch in stack.batches()]


@pytest.mark.parametrize("seeds", [(4, 4, 4), (4, 4, 7), (1, 2, 3)])
def test_lanes_of_a_seed_see_the_same_images_in_the_same_order(numbered: Data, seeds: tuple[int, ...]) -> None:
    stack = stack_of(numbered, *(a_config(seed=seed, lr=0.1 * (lane + 1)) for lane, seed in enumerate(seeds)))
    for lane, seed in enumerate(seeds):
        assert epoch_rows(stack, 3, lane) == epoch_rows(stack_of(numbered, a_config(seed=seed)), 3)


def test_images_of_a_step_lie_in_memory_once_for_lanes_that_all_have_one_seed(digits: Data) -> None:
    for seeds, places in (((4, 4, 4), 1), ((4, 4, 7), 3), ((1, 2, 3), 3)):
        stack = stack_of(digits, *(a_config(seed=seed) for seed in seeds))
        for batch in stack.batches():
            assert len({lane.data_ptr() for lane in batch.inputs}) == places


# --- learning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_of_equally_likely_classes_the_first_is_the_answer_and_of_nan_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_p, labels = -rng.integers(0, 4, (5, 300)).astype(np.float32), rng.integers(0, 5, 300)
    log_p[rng.random(log_p.shape) < 0.05] = np.nan
    _, accuracy = score(torch.from_numpy(log_p), torch.from_numpy(labels))
    assert accuracy == pytest.approx((log_p.argmax(0) == labels).mean(), abs=1e-12)  # NumPy's takes the first, or a NaN


def test_it_learns_digits(digits: Data) -> None:
    _, records = run(digits, a_config(optimizer="adam", lr=1e-3, epochs=3, hidden_dim=64))
    curves = records[-1].curves
    assert curves["test/accuracy"] > 0.85
    assert curves["train/accuracy"] > 0.85
    assert curves["test/loss"] < 0.6 < records[0].curves["test/loss"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_norm_and_optimizer_learns_a_few_digits(few: Data, norm: str, optimizer: str) -> None:
    lr = {"sgd": 0.1, "momentum": 0.02, "nesterov": 0.02}.get(optimizer, 0.003)
    stack, records = run(few, a_config(norm=norm, optimizer=optimizer, lr=lr, epochs=20))
    assert records[-1].curves["train/accuracy"] > 0.9
    assert evaluate(stack, 0, "train")["train/accuracy"] > 0.9


def test_it_stays_at_chance_on_shuffled_labels(digits: Data) -> None:
    labels = digits.train.labels[torch.from_numpy(np.random.default_rng(0).permutation(4000))]
    shuffled = replace(digits, train=replace(digits.train, labels=labels))
    _, records = run(shuffled, a_config(optimizer="adam", lr=1e-3, epochs=3, validation=0.2))
    for part in ("test", "val"):
        assert records[-1].curves[f"{part}/accuracy"] < 0.2


def test_huge_learning_rate_diverges_and_the_run_ends(digits: Data) -> None:
    for act in ("relu", "tanh"):
        _, records = run(digits, a_config(act=act, lr=1e6, epochs=5, max_batches=20))
        assert records[-1].diverged
        assert records[-1].epoch < 5
        assert not any(record.diverged for record in records[:-1])


# --- what is reported ----------------------------------------------------------------------------------------------

TORCH = {
    "sgd": lambda p, c: torch.optim.SGD(p, c.lr, weight_decay=c.weight_decay),
    "momentum": lambda p, c: torch.optim.SGD(p, c.lr, momentum=0.9, weight_decay=c.weight_decay),
    "adam": lambda p, c: torch.optim.Adam(p, c.lr, weight_decay=c.weight_decay),
    "adamw": lambda p, c: torch.optim.AdamW(p, c.lr, weight_decay=c.weight_decay),
}


@pytest.mark.parametrize(
    ("norm", "optimizer", "act"),
    [
        ("none", "sgd", "relu"),
        ("batchnorm", "momentum", "tanh"),
        ("layernorm_scratch", "adam", "gelu"),
        ("rmsnorm", "adamw", "elu"),
    ],
)
def test_curves_are_those_of_a_plain_torch_loop_over_the_same_batches(few: Data, norm: str, optimizer: str, act: str) -> None:
    config = a_config(norm=norm, optimizer=optimizer, act=act, batch_size=48, epochs=2, weight_decay=0.01, lr=0.003, seed=4)
    stack, records = run(few, config)
    arch, source = architecture(config), stack_of(few, config)
    module = as_module(arch, initial_state(arch, config.init, config.seed))
    update = TORCH[optimizer](module.parameters(), config)
    for epoch in (1, 2):
        source.epoch, losses, hits, sizes = epoch, [], 0, []
        module.train()
        for batch in source.batches():
            inputs, labels = batch.inputs[0].clone(), batch.labels[0].clone()
            with torch.enable_grad():
                logits = module(inputs)
                loss = nn.functional.cross_entropy(logits, labels)
                update.zero_grad()
                loss.backward()
            update.step()
            sizes.append(len(labels))
            losses.append(loss.item())
            hits += (logits.argmax(1) == labels).sum().item()
        assert sizes == [48, 48, 48, 48, 8]
        curves = records[epoch].curves
        assert curves["train/loss"] == pytest.approx(np.average(losses, weights=sizes), rel=1e-4)
        assert curves["train/loss"] != pytest.approx(np.mean(losses), rel=1e-4)
        assert curves["train/accuracy"] == pytest.approx(hits / 200)
        module.eval()
        logits = module(few.test.images)
        assert curves["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, few.test.labels).item(), rel=1e-3)
        assert curves["test/accuracy"] == pytest.approx((logits.argmax(1) == few.test.labels).double().mean().item(), abs=0.012)
    for name, value in stack.network.state(0).items():
        torch.testing.assert_close(value, module.state_dict()[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_evaluation_is_in_eval_mode_on_the_whole_part(digits: Data, norm: str) -> None:
    config = a_config(norm=norm, dropout=0.5, epochs=1, max_batches=0, batch_size=500, validation=0.25)
    stack, records = run(digits, config)
    module = as_module(stack.arch, stack.network.state(0))
    learned, held_out = subsets(config, 4000)
    for part, images, labels in (
        ("test", digits.test.images, digits.test.labels),
        ("val", digits.train.images[held_out], digits.train.labels[held_out]),
        ("train", digits.train.images[learned], digits.train.labels[learned]),
    ):
        found = evaluate(stack, 0, part)
        logits = module(images)
        assert found[f"{part}/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
        assert found[f"{part}/accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-3)
        if part != "train":
            assert {name: records[-1].curves[name] for name in found} == found


@pytest.mark.parametrize("norm", NORMS)
def test_a_samples_loss_does_not_depend_on_the_samples_evaluated_with_it(few: Data, norm: str) -> None:
    config = a_config(norm=norm, epochs=1)
    stack, _ = run(few, config)
    half = replace(few, test=few.test[:45])
    rest = replace(few, test=few.test[45:])
    whole = evaluate(stack, 0, "test")["test/loss"]
    parts = []
    for some in (half, rest):
        stack.data = some
        parts.append(evaluate(stack, 0, "test")["test/loss"])
    assert whole == pytest.approx(np.mean(parts), rel=1e-5)


def test_evaluation_changes_no_state(few: Data) -> None:
    stack, _ = run(few, a_config(norm="batchnorm", dropout=0.5, epochs=1))
    before = digest(stack.network.state(0))
    for part in ("train", "test"):
        evaluate(stack, 0, part)
    assert digest(stack.network.state(0)) == before


def test_records_begin_before_training_and_name_what_exists(few: Data) -> None:
    for validation in (0.0, 0.3):
        _, records = run(few, a_config(epochs=3, validation=validation), probe=True)
        assert [record.epoch for record in records] == [0, 1, 2, 3]
        measured = {"test/loss", "test/accuracy"} | ({"val/loss", "val/accuracy"} if validation else set())
        assert set(records[0].curves) == measured
        assert all(set(record.curves) == measured | {"train/loss", "train/accuracy"} for record in records[1:])
        assert records[0].seconds is None
        assert all(record.seconds > 0 for record in records[1:])
        assert all(type(value) is float for record in records for value in [*record.curves.values(), *record.health.values()])


def test_epoch_0_is_measured_on_the_initial_weights(few: Data) -> None:
    config = a_config(norm="batchnorm")
    module = as_module(architecture(config), initial_state(architecture(config), config.init, config.seed))
    record = next(train(stack_of(few, config)))
    wanted = nn.functional.cross_entropy(module(few.test.images), few.test.labels).item()
    assert record.curves["test/loss"] == pytest.approx(wanted, rel=1e-5)


def test_a_lane_stands_at_its_epoch_while_its_record_is_held(few: Data) -> None:
    longer = stack_of(few, a_config(epochs=3), a_config(epochs=3, seed=1))
    seen = {(r.lane, r.epoch): digest(longer.network.state(r.lane)) for r in train(longer)}
    for epochs in (1, 2, 3):
        for lane in (0, 1):
            stack, _ = run(few, a_config(epochs=epochs, seed=lane))
            assert digest(stack.network.state(0)) == seen[lane, epochs]


# --- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 14, 15, 16, 0])
def test_max_batches_trains_on_exactly_that_many(numbered: Data, limit: int) -> None:
    config = a_config(max_batches=limit, batch_size=7, epochs=2, lr=1e-6)
    stack, _ = run(numbered, config)
    steps = min(limit or 15, 15)
    assert stack.steps == 2 * steps
    rows = epoch_rows(stack_of(numbered, config), 1)
    assert [len(batch) for batch in rows] == [7] * min(steps, 14) + [2] * (steps == 15)
    free = epoch_rows(stack_of(numbered, config.replace(max_batches=0)), 1)
    assert rows == free[:steps]


def test_max_batches_evaluates_on_exactly_that_many(few: Data) -> None:
    config = a_config(max_batches=2, batch_size=20, epochs=1, validation=0.5)
    stack, records = run(few, config)
    module = as_module(stack.arch, stack.network.state(0))
    logits, labels = module(few.test.images[:40]), few.test.labels[:40]
    assert records[-1].curves["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    held_out = subsets(config, 200)[1][:40]
    logits, labels = module(few.train.images[held_out]), few.train.labels[held_out]
    assert records[-1].curves["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("validation", [0.0, 0.33])
def test_each_epoch_has_every_sample_once_in_an_order_of_its_own(numbered: Data, validation: float) -> None:
    config = a_config(batch_size=7, validation=validation)
    stack = stack_of(numbered, config)
    orders = [[row for batch in epoch_rows(stack, epoch) for row in batch] for epoch in (1, 2, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(subsets(config, 100)[0].tolist())
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
    assert orders[0] != sorted(orders[0])


def test_labels_and_images_of_a_batch_belong_together(numbered: Data) -> None:
    stack = stack_of(numbered, a_config(batch_size=7), a_config(batch_size=7, seed=1))
    for batch in stack.batches():
        assert torch.equal(batch.inputs[..., 0].mul(255).round().long() % 10, batch.labels)


def test_conditions_see_the_same_batches_and_linear_weights(numbered: Data) -> None:
    base = stack_of(numbered, a_config(batch_size=7))
    wanted, weights = epoch_rows(base, 3), base.network.state(0)
    changes: list[dict[str, Any]] = [{"act": act} for act in ACTIVATIONS] + [{"norm": norm} for norm in NORMS]
    changes += [{"dropout": 0.5}, {"optimizer": "adam"}, {"lr": 1.0}, {"init": "normal"}, {"hidden_dim": 9}, {"epochs": 99}]
    for change in changes:
        stack = stack_of(numbered, a_config(batch_size=7, **change))
        assert epoch_rows(stack, 3) == wanted, change
        if not {"init", "hidden_dim"} & set(change):
            state = stack.network.state(0)
            assert all(torch.equal(state[name], value) for name, value in weights.items()), change
    assert epoch_rows(stack_of(numbered, a_config(batch_size=7, seed=1)), 3) != wanted


def test_dropout_does_not_move_the_shuffle_of_later_epochs(numbered: Data) -> None:
    orders = []
    for dropout in (0.0, 0.5):
        stack = stack_of(numbered, a_config(batch_size=7, dropout=dropout, epochs=2))
        list(train(stack))
        orders.append(epoch_rows(stack, 3))
    assert orders[0] == orders[1]


def test_dropout_masks_are_new_for_each_epoch_layer_and_seed_and_come_again(numbered: Data) -> None:
    layers = [{"type": "dropout"}, {"type": "linear", "size": 784}, {"type": "dropout"}]
    base = RunConfig(network=json.dumps({"layers": layers}), batch_size=100)

    def masks(epoch: int) -> list[bytes]:
        stack = stack_of(numbered, base, base.replace(seed=1))
        stack.epoch = epoch
        stack.reseed_dropout()
        stack.network.forward(torch.ones(2, 100, 784), training=True)
        sites = [at for layer, at in stack.network.sites(100) if isinstance(layer, Dropout)]
        return [site.mask[lane].numpy().tobytes() for site in sites for lane in (0, 1)]

    assert len({*masks(1), *masks(2)}) == 8
    assert masks(1) == masks(1)


def test_lanes_of_one_seed_see_the_same_batches_and_of_others_their_own(numbered: Data) -> None:
    configs = [a_config(batch_size=7, seed=seed, lr=lr) for seed, lr in ((0, 0.1), (0, 0.2), (5, 0.1))]
    stack = stack_of(numbered, *configs)
    rows = [epoch_rows(stack, 2, lane) for lane in range(3)]
    assert rows[0] == rows[1] != rows[2]
    assert rows[2] == epoch_rows(stack_of(numbered, configs[2]), 2)


# --- validation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.999])
def test_validation_split_is_disjoint_and_covers_all(share: float) -> None:
    learned, held_out = subsets(a_config(validation=share), 4000)
    assert len(held_out) == round(4000 * share)
    assert sorted([*learned, *held_out]) == list(range(4000))


def test_validation_split_is_the_seeds_and_nothing_elses() -> None:
    learned, held_out = subsets(a_config(validation=0.2), 4000)
    for change in ({"act": "tanh"}, {"batch_size": 7}, {"epochs": 3}, {"dropout": 0.5}, {"init": "normal"}, {"lr": 1.0}):
        again = subsets(a_config(validation=0.2, **change), 4000)
        assert np.array_equal(again[0], learned)
        assert np.array_equal(again[1], held_out)
    other = subsets(a_config(validation=0.2, seed=1), 4000)[1]
    assert len(set(other) & set(held_out)) < 250  # 160 by chance
    assert not np.array_equal(held_out, np.sort(held_out)[: len(held_out)])
    everything, nothing = subsets(a_config(), 4000)
    assert np.array_equal(everything, np.arange(4000))
    assert len(nothing) == 0


def test_what_is_held_out_never_trains(numbered: Data) -> None:
    config = a_config(validation=0.3, batch_size=7, epochs=1, norm="batchnorm")
    _, held_out = subsets(config, 100)
    spoiled = numbered.train.pixels.clone()
    spoiled[held_out] = 255
    wanted = digest(run(numbered, config)[0].network.state(0))
    altered = replace(numbered, train=replace(numbered.train, pixels=spoiled))
    assert digest(run(altered, config, probe=True)[0].network.state(0)) == wanted


def test_test_set_moves_no_weight(few: Data) -> None:
    config = a_config(norm="batchnorm", epochs=2)
    wanted = digest(run(few, config)[0].network.state(0))
    altered = replace(few, test=Split(255 - few.test.pixels, few.test.labels.flip(0)))
    assert digest(run(altered, config)[0].network.state(0)) == wanted


# --- going on ------------------------------------------------------------------------------------------------------


def split_run(some: Data, config: RunConfig, at: int) -> tuple[Stack, list[EpochRecord]]:
    """The run stopped after an epoch, and gone on with in a new stack from copies."""
    first, records = stack_of(some, config), []
    for record in train(first):
        records.append(record)
        if record.epoch == at:
            break
    saved = (first.epoch, first.steps, first.network.state(0), first.moments(0))
    second = stack_of(some, config.replace(seed=config.seed))
    second.restore(0, *saved)
    records += train(second)
    return second, records


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("norm", ["batchnorm", "none"])
def test_restored_run_ends_with_the_bits_of_the_uninterrupted_one(few: Data, optimizer: str, norm: str) -> None:
    config = a_config(norm=norm, optimizer=optimizer, dropout=0.3, epochs=4, batch_size=48, weight_decay=0.01, validation=0.1)
    stack, records = run(few, config)
    for at in (1, 3):
        resumed, continued = split_run(few, config, at)
        assert digest(resumed.network.state(0)) == digest(stack.network.state(0))
        assert history_digest(continued) == history_digest(records)
        assert resumed.steps == stack.steps
        for name, moments in stack.moments(0).items():
            assert digest(moments) == digest(resumed.moments(0)[name])


def test_restored_layer_list_ends_with_the_bits_of_the_uninterrupted_one(few: Data) -> None:
    layers = [
        {"type": "linear", "size": 21},
        {"type": "batch_norm"},
        {"type": "gelu"},
        {"type": "dropout"},
        {"type": "linear", "size": 5},
    ]
    config = RunConfig(network=json.dumps({"layers": layers}), optimizer="adam", epochs=3, batch_size=48, init="torch")
    stack, records = run(few, config)
    resumed, continued = split_run(few, config, 2)
    assert digest(resumed.network.state(0)) == digest(stack.network.state(0))
    assert history_digest(continued) == history_digest(records)


def test_lanes_that_ran_alone_are_restored_into_one_stack(few: Data) -> None:
    configs = [a_config(norm="batchnorm", optimizer="adam", dropout=0.3, epochs=3, seed=seed) for seed in (0, 1)]
    stack = stack_of(few, *configs)
    for lane, config in enumerate(configs):
        half = run(few, config.replace(epochs=2))[0]
        stack.restore(lane, 2, half.steps, half.network.state(0), half.moments(0))
    list(train(stack))
    for lane, config in enumerate(configs):
        assert digest(stack.network.state(lane)) == digest(run(few, config)[0].network.state(0))


def test_lanes_are_not_put_back_at_different_epochs(few: Data) -> None:
    config = a_config(epochs=3)
    stack, (done, _) = stack_of(few, config, config.replace(seed=1)), run(few, config.replace(epochs=1))
    saved = done.steps, done.network.state(0), done.moments(0)
    stack.restore(0, 1, *saved)
    with pytest.raises(ValueError, match="lane 1 was at epoch 2, the stack is at 1"):
        stack.restore(1, 2, *saved)


def test_run_restored_at_its_last_epoch_yields_nothing_more(few: Data) -> None:
    config = a_config(epochs=2)
    done, _ = run(few, config)
    stack = stack_of(few, config)
    stack.restore(0, 2, done.steps, done.network.state(0), done.moments(0))
    assert list(train(stack)) == []


def test_copies_of_the_moments_do_not_follow_the_lane(few: Data) -> None:
    stack, _ = run(few, a_config(optimizer="adam", epochs=1))
    copies = stack.moments(0)
    before = {name: digest(state) for name, state in copies.items()}
    for moment in stack.kept:
        moment.fill_(3)
    assert {name: digest(state) for name, state in copies.items()} == before
    assert set(before) == {"mean", "square"}


# --- refusals ------------------------------------------------------------------------------------------------------


def refused(some: Data, config: RunConfig) -> str:
    with pytest.raises(InputError) as caught:
        check(architecture(config), config, some)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_batch_size_beyond_the_samples_is_refused(numbered: Data) -> None:
    assert "batch_size=101" in refused(numbered, a_config(batch_size=101))
    check(architecture(a_config()), a_config(batch_size=100), numbered)
    message = refused(numbered, a_config(batch_size=100, validation=0.1))
    assert "at most 90" in message


def test_last_batch_of_one_is_refused_for_batchnorm_alone(numbered: Data) -> None:
    for norm in NORMS:
        config = a_config(norm=norm, batch_size=33)  # 3 * 33 + 1
        if norm.startswith("batchnorm"):
            assert "batch_size=33" in refused(numbered, config)
            assert "batch_size=33" in refused(numbered, config.replace(max_batches=4))
            assert "batch_size=1" in refused(numbered, a_config(norm=norm, batch_size=1))
            assert "batch_size=1" in refused(numbered, a_config(norm=norm, batch_size=1, max_batches=2))
            assert "batch_size=8" in refused(numbered, config.replace(batch_size=8, validation=0.11))  # 89 = 11 * 8 + 1
        else:
            check(architecture(config), config, numbered)
            run(numbered, config.replace(epochs=1))
            check(architecture(config), config.replace(batch_size=1), numbered)
        fine = config.replace(max_batches=3, epochs=1)  # the last batch is never reached
        check(architecture(fine), fine, numbered)
        run(numbered, fine)


def test_layer_lists_with_batchnorm_are_refused_alike(numbered: Data) -> None:
    config = RunConfig(network='{"layers": [{"type": "batch_norm"}]}', batch_size=33)
    assert "batch_size=33" in refused(numbered, config)


def test_layer_list_of_other_sizes_than_the_data_is_refused(numbered: Data) -> None:
    assert "input_size" in refused(numbered, RunConfig(network='{"input_size": 100, "layers": []}'))
    assert "num_classes" in refused(numbered, RunConfig(network='{"num_classes": 11, "layers": []}'))
    config = RunConfig(network='{"layers": []}')
    check(architecture(config), config, numbered)


def test_validation_share_that_leaves_a_side_empty_is_refused(numbered: Data) -> None:
    assert "validation=0.001" in refused(numbered, a_config(validation=0.001))
    assert "validation=0.999" in refused(numbered, a_config(validation=0.999, batch_size=1))
    check(architecture(a_config()), a_config(validation=0.01, batch_size=9), numbered)


def test_whatever_check_accepts_trains(numbered: Data) -> None:
    for batch in range(1, 101):
        for limit in (0, 1, 2):
            config = a_config(norm="batchnorm_scratch", batch_size=batch, max_batches=limit, epochs=1, hidden_dim=2)
            stack = stack_of(numbered, config)
            sizes = [len(rows) for rows in epoch_rows(stack, 1)]
            if 1 in sizes:
                refused(numbered, config)
            else:
                check(stack.arch, config, numbered)


@pytest.mark.parametrize(
    "change",
    [
        {"act": "tanh"},
        {"norm": "layernorm"},
        {"optimizer": "adam"},
        {"dropout": 0.5},
        {"epochs": 3},
        {"batch_size": 5},
        {"hidden_dim": 7},
        {"max_batches": 1},
        {"validation": 0.5},
        {"normalize": "standard"},
        {"dataset": "mnist"},
        {"data_dir": "elsewhere"},
        {"device": "cuda"},
    ],
)
def test_lanes_that_differ_in_what_they_share_are_refused(numbered: Data, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        stack_of(numbered, a_config(), a_config(seed=1), a_config(**change))


# --- arithmetic ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_exact_arithmetic_restores_threads_and_grad_mode_even_after_an_exception(threads: int, grad: bool) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)
        with exact_arithmetic():
            assert torch.get_num_threads() == 1
            assert not torch.is_grad_enabled()
        assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)
        with pytest.raises(RuntimeError, match="on the way"), exact_arithmetic():
            raise RuntimeError("on the way")
        assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)
    finally:
        torch.set_num_threads(before)
        torch.set_grad_enabled(False)


def denormals_survive() -> bool:
    return bool((torch.full((8,), 1e-39) * 0.5).ne(0).all())


def test_exact_arithmetic_flushes_denormals_inside_only() -> None:
    torch.set_flush_denormal(False)
    with exact_arithmetic():
        assert not denormals_survive()
    assert denormals_survive()


def test_nested_exact_arithmetic_leaves_the_outer_one_whole() -> None:
    with exact_arithmetic():
        with exact_arithmetic():
            pass
        assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled()
        assert not denormals_survive()


def test_what_a_process_asked_of_float32_is_put_aside_and_restored() -> None:
    backends: Any = torch.backends
    products, before = (backends.cuda.matmul, backends.mkldnn.matmul), torch.get_default_dtype()
    asked, whole = [product.fp32_precision for product in products], backends.fp32_precision
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_flush_denormal(True)
        for product in products:
            product.fp32_precision = "tf32"
        with exact_arithmetic():
            assert torch.get_default_dtype() == torch.float32
            assert [product.fp32_precision for product in products] == ["ieee", "ieee"]
        assert torch.get_default_dtype() == torch.float64
        assert (torch.full((8,), 1e-39, dtype=torch.float32) * 0.5).eq(0).all()
        assert [product.fp32_precision for product in products] == ["tf32", "tf32"]
        built = harness.build_network(RunConfig(norm="batchnorm")).state_dict()
        assert {tensor.dtype for tensor in built.values() if tensor.is_floating_point()} == {torch.float32}
        for product in products:
            product.fp32_precision = "none"
        backends.fp32_precision = "tf32"
        with exact_arithmetic():
            assert [product.fp32_precision for product in products] == ["ieee", "ieee"]
        backends.fp32_precision = "ieee"
        assert [product.fp32_precision for product in products] == ["ieee", "ieee"], "what is inherited stays so"
    finally:
        torch.set_default_dtype(before)
        torch.set_flush_denormal(False)
        backends.fp32_precision = whole
        for product, precision in zip(products, asked, strict=True):
            product.fp32_precision = precision


def test_seconds_of_steps_and_of_evaluation_are_each_lanes_own_and_apart(few: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(ticks))  # a clock that passes when it is looked at
    stack = stack_of(few, *(a_config(epochs=3, validation=0.2, seed=seed) for seed in (0, 1)))
    records = list(train(stack))
    assert {record.seconds for record in records if record.epoch} == {0.5}  # one tick, shared by two
    assert stack.evaluation == {0: 4, 1: 4}  # one at each epoch, with the one before training
    finals(stack, 1, records[-1])
    assert stack.evaluation == {0: 4, 1: 5}


def test_seconds_of_an_epoch_count_its_shuffle(few: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    passed, batches = [0.0], Stack.batches

    def shuffled(stack: Stack) -> Minibatches:
        passed.append(passed[-1] + 8)
        return batches(stack)

    monkeypatch.setattr(training.time, "perf_counter", lambda: passed[-1])  # a clock that passes while it shuffles
    monkeypatch.setattr(Stack, "batches", shuffled)
    records = list(train(stack_of(few, a_config(epochs=2), a_config(epochs=2, seed=1))))
    assert [record.seconds for record in records if record.epoch] == [4.0] * 4
