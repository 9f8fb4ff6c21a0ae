"""A run as a value: its text, its identity and what it refuses."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness import config
from harness.config import FIELDS, RunConfig, choices, levels, slug
from harness.errors import DataError, HarnessError, InputError, StoreError
from harness.layerlist import LayerList, parse

ROOT = Path(config.__file__).resolve().parents[1]
LAYERS = {"layers": [{"type": "linear", "size": 4}, {"type": "relu"}, {"type": "dropout", "rate": 0.25}]}
NAMED = ("init", "act", "norm", "optimizer", "dataset", "normalize", "device")
REALS = ("lr", "weight_decay", "dropout", "validation")
WHOLES = ("seed", "epochs", "batch_size", "hidden_dim", "max_batches")

DEFAULTS = {  # the table of the README, as text
    "init": "normal",
    "act": "tanh",
    "norm": "none",
    "optimizer": "sgd",
    "seed": "0",
    "lr": "0.01",
    "weight_decay": "0",
    "dropout": "0",
    "epochs": "10",
    "batch_size": "32",
    "hidden_dim": "128",
    "max_batches": "0",
    "network": "mlp",
    "dataset": "auto",
    "normalize": "unit",
    "validation": "0",
    "device": "cpu",
    "data_dir": "~/.cache/harness/data",
}
OTHER = {  # one other value for each field
    "init": "kaiming",
    "act": "relu",
    "norm": "layernorm",
    "optimizer": "adam",
    "seed": 1,
    "lr": 0.02,
    "weight_decay": 1e-4,
    "dropout": 0.1,
    "epochs": 11,
    "batch_size": 33,
    "hidden_dim": 127,
    "max_batches": 5,
    "network": LAYERS,
    "dataset": "mnist_5k",
    "normalize": "standard",
    "validation": 0.1,
    "device": "auto",
    "data_dir": "elsewhere",
}


def refused(**values: object) -> str:
    """The one line that refuses these values."""
    with pytest.raises(InputError) as error:
        RunConfig(**values)
    line = str(error.value)
    assert len(line.splitlines()) == 1, line
    return line


def shown(value: object) -> str:
    """A value as an error shows it: a long one is cut."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def whole(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


def real(**bounds: object) -> st.SearchStrategy[float]:
    return st.floats(allow_nan=False, allow_infinity=False, **bounds)  # type: ignore[arg-type]


LAYER = st.one_of(
    st.builds(lambda size: {"type": "linear", "size": size}, whole(1, 3000)),
    st.builds(lambda rate: {"type": "dropout", "rate": rate}, real(min_value=0, max_value=1, exclude_max=True)),
    st.sampled_from([{"type": name} for name in ("relu", "tanh", "gelu", "batch_norm", "layer_norm")]),
)
NETWORK = st.one_of(
    st.text().filter(lambda text: text != "mlp" and not text.lstrip().startswith("{")),
    st.builds(lambda layers, width: {"layers": layers, "input_size": width}, st.lists(LAYER, max_size=4), whole(1, 3000)),
)
COMMON = {
    **{name: st.sampled_from(choices(name)) for name in ("init", "optimizer", "dataset", "normalize", "device")},
    "seed": whole(0, 2**63 - 1),
    "lr": real(min_value=sys.float_info.min),
    "weight_decay": real(min_value=0),
    "validation": real(min_value=0, max_value=1, exclude_max=True),
    "epochs": whole(1, 10**9),
    "batch_size": whole(1, 10**9),
    "max_batches": whole(0, 10**9),
    "data_dir": st.text(),
}
OF_THE_MLP = {
    "act": st.sampled_from(choices("act")),
    "norm": st.sampled_from(choices("norm")),
    "dropout": real(min_value=0, max_value=1, exclude_max=True),
    "hidden_dim": whole(1, 65536),
}
CONFIGS = st.one_of(
    st.fixed_dictionaries({}, optional={**COMMON, **OF_THE_MLP}),
    st.fixed_dictionaries({"network": NETWORK}, optional=COMMON),
).map(lambda values: RunConfig(**values))


# text


@given(CONFIGS)
def test_text_and_json_read_back_as_the_same_run(run: RunConfig) -> None:
    text = run.text()
    assert list(text) == list(FIELDS)
    assert all(type(value) is str for value in text.values())
    for again in (RunConfig(**text), RunConfig.from_json(run.json_text()), pickle.loads(pickle.dumps(run)), run.replace()):
        assert again == run
        assert again.digest == run.digest
        assert again.text() == text
        assert again.json_text() == run.json_text()
        assert hash(again) == hash(run)


def test_defaults_are_those_of_the_design() -> None:
    assert RunConfig().text() == DEFAULTS


@pytest.mark.parametrize(
    ("field", "spellings", "text"),
    [
        ("lr", ["1e-1", "0.1", "0.10", ".1", " 0.1", 0.1, np.float64(0.1)], "0.1"),
        ("lr", ["1e-5", "0.00001", 1e-5], "1e-05"),
        ("lr", ["1", "1.0", 1, 1.0], "1"),
        ("lr", [1e22, "1e22", "1E+22"], "1e22"),
        ("weight_decay", [0, 0.0, "0", "0.0", "0e0"], "0"),
        ("seed", [7, "7", 7.0, np.int64(7)], "7"),
        ("seed", [2**63 - 1, str(2**63 - 1)], "9223372036854775807"),
        ("epochs", ["3", 3], "3"),
    ],
)
def test_each_value_has_one_text(field: str, spellings: list[object], text: str) -> None:
    runs = [RunConfig(**{field: spelling}) for spelling in spellings]
    assert {run.text()[field] for run in runs} == {text}
    assert len({run.digest for run in runs}) == 1


@pytest.mark.parametrize("field", ["weight_decay", "dropout", "validation"])
@pytest.mark.parametrize("zero", [-0.0, "-0", "-0.0"])
def test_minus_zero_is_zero(field: str, zero: object) -> None:
    """-0.0 == 0.0: equal runs have one text and one digest."""
    run = RunConfig(**{field: zero})
    assert run == RunConfig()
    assert run.text() == RunConfig().text()
    assert run.json_text() == RunConfig().json_text()
    assert run.digest == RunConfig().digest


def test_minus_zero_in_a_layer_list_is_zero() -> None:
    runs = [RunConfig(network={"layers": [{"type": "dropout", "rate": rate}]}) for rate in (0, 0.0, -0.0)]
    assert runs[0] == runs[1] == runs[2]
    assert len({run.digest for run in runs}) == 1
    assert len({run.text()["network"] for run in runs}) == 1


@pytest.mark.parametrize("text", ["", "[]", "1", "null", '"lr"', '[["lr", 1]]', "{", "[" * 10**5, '{"lr": ' + "[" * 10**5])
def test_text_that_is_no_run_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as error:
        RunConfig.from_json(text)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("values", [{"lr": float("nan")}, {"act": "rleu"}, {"learning": 1}, {"self": 1}, {"cls": 1}])
def test_json_is_checked_as_any_other_input(values: dict[str, object]) -> None:
    with pytest.raises(InputError) as error:
        RunConfig.from_json(json.dumps(values))
    assert next(iter(values)) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


# refusals


@pytest.mark.parametrize(
    ("field", "given_", "nearest"),
    [
        ("init", "kaimng", "kaiming"),
        ("init", "Xavier", "xavier"),
        ("act", "leaky-relu", "leaky_relu"),
        ("act", " tanh", "tanh"),
        ("norm", "layer_norm", "layernorm"),
        ("norm", "BatchNorm", "batchnorm"),
        ("optimizer", "Adam", "adam"),
        ("optimizer", "nestorov", "nesterov"),
        ("dataset", "mnist5k", "mnist_5k"),
        ("dataset", "fashion-mnist", "fashion_mnist"),
        ("normalize", "standrad", "standard"),
        ("device", "cuda:0", "cuda"),
    ],
)
def test_unknown_level_names_the_nearest(field: str, given_: str, nearest: str) -> None:
    line = refused(**{field: given_})
    assert line.startswith(f"{field}={given_!r} ")
    assert line.endswith(f"nearest: {nearest}")
    assert ", ".join(choices(field)) in line


@pytest.mark.parametrize("field", NAMED)
@pytest.mark.parametrize(
    "given_", ["zzzzzz", "", "\n", "a\nb", "\x85\u2028", None, 0, True, 1.5, [], {}, ["tanh"], "x" * 10**4]
)
def test_what_is_no_level_is_refused_in_one_line(field: str, given_: object) -> None:
    line = refused(**{field: given_})
    assert line.startswith(f"{field}={shown(given_)} is not allowed")
    assert all(name in line for name in choices(field))


@pytest.mark.parametrize("field", NAMED)
def test_far_from_every_level_no_nearest_is_invented(field: str) -> None:
    assert "nearest" not in refused(**{field: "zzzzzz"})


POSITIVE = "a finite number above 0"
SHARE = "a number from 0 up to, not including, 1"
BAD_NUMBERS = [
    *(("lr", bad, POSITIVE) for bad in ("abc", "", "1e-1x", "0,1", -1, "-1", 0, "0", -0.0, "1e-999", "1e-320", 2e-308)),
    *(("weight_decay", bad, "a finite number from 0") for bad in (-1e-9, "-1")),
    *((field, bad, SHARE) for field in ("dropout", "validation") for bad in (1, "1", 1.5, -0.1)),
    *((field, bad, "number") for field in REALS for bad in (True, False, None, "nan", "inf", "-inf", "1e999", [1.0], {}, 1j)),
    *((field, float(bad), "number") for field in REALS for bad in ("nan", "inf", "-inf")),
    *((field, bad, "whole number") for field in WHOLES for bad in (1.5, "1.5", -1, "-1", "abc", "", "nan", None, True, False)),
    *((field, bad, "whole number") for field in WHOLES for bad in (float("inf"), float("nan"), [1], {}, 10**30, "1" * 5000)),
    *((field, 0, "a whole number from 1") for field in ("epochs", "batch_size", "hidden_dim")),
    ("hidden_dim", 65537, "a whole number from 1 to 65536"),
    ("data_dir", "x" * 4097, "a folder's path of at most 4096 characters"),
]


@pytest.mark.parametrize(("field", "bad", "allowed"), BAD_NUMBERS, ids=lambda value: repr(value)[:24])
def test_number_that_is_not_allowed_is_refused_in_one_line(field: str, bad: object, allowed: str) -> None:
    line = refused(**{field: bad})
    assert line.startswith(f"{field}={shown(bad)} is not allowed; allowed: ")
    assert allowed in line.split("allowed: ", 1)[1]


@pytest.mark.parametrize("field", ["seed", "lr", "act"])
def test_whole_number_too_long_to_print_is_refused_in_one_line(field: str) -> None:
    """Python refuses to write integers of more than 4,300 digits; the message must do without."""
    assert refused(**{field: 10**5000}).startswith(field)


@pytest.mark.parametrize("field", ["lr", "act"])
def test_value_that_prints_on_several_lines_is_refused_in_one(field: str) -> None:
    assert refused(**{field: np.arange(200.0)}).startswith(f"{field}=")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("hidden-dim", "hidden_dim"),
        ("optimiser", "optimizer"),
        ("epoch", "epochs"),
        ("LR", "lr"),
        ("weight decay", "weight_decay"),
        ("datadir", "data_dir"),
        ("act\n", "act"),
    ],
)
def test_unknown_parameter_names_the_nearest(name: str, nearest: str) -> None:
    line = refused(**{name: "1"})
    assert repr(name) in line
    assert line.endswith(f"nearest: {nearest}")
    assert ", ".join(FIELDS) in line


@pytest.mark.parametrize("name", ["self", "values", "cls", "model_config", "__init__", ""])
def test_no_name_slips_past_as_a_parameter(name: str) -> None:
    assert repr(name) in refused(**{name: 1})


def test_errors_are_also_the_builtins_a_caller_expects() -> None:
    for kind in (InputError, DataError, StoreError):
        error = kind("one line")
        assert isinstance(error, HarnessError)
        assert isinstance(error, ValueError)
        assert error.exit_code == 2
        again = pickle.loads(pickle.dumps(error))  # errors cross from workers to the driver
        assert type(again) is kind
        assert str(again) == str(error) == "one line"
    assert issubclass(DataError, OSError)
    assert issubclass(StoreError, OSError)


@pytest.mark.parametrize("change", [{"act": "rleu"}, {"lr": -1}, {"nope": 1}])
def test_replace_checks_as_construction_does(change: dict[str, object]) -> None:
    run = RunConfig(seed=3)
    with pytest.raises(InputError):
        run.replace(**change)
    assert run == RunConfig(seed=3)


# identity


def test_the_table_of_other_values_is_complete() -> None:
    assert set(OTHER) == set(DEFAULTS) == set(FIELDS)


@pytest.mark.parametrize("field", sorted(OTHER))
def test_digest_sees_every_field_but_the_place_of_the_data(field: str) -> None:
    changed = RunConfig(**{field: OTHER[field]})
    assert changed != RunConfig()
    assert (changed.digest == RunConfig().digest) == (field == "data_dir")


@given(CONFIGS, CONFIGS)
def test_one_digest_means_one_run(one: RunConfig, other: RunConfig) -> None:
    assert (one.digest == other.digest) == (one.replace(data_dir="") == other.replace(data_dir=""))


def test_a_network_of_other_layers_is_another_run() -> None:
    layers = LAYERS["layers"]
    lists = [{"layers": layers}, {"layers": layers[:-1]}, {"layers": layers[::-1]}, {"layers": layers, "num_classes": 7}]
    assert len({RunConfig(network=value).digest for value in lists}) == len(lists)


def test_digest_is_the_same_in_another_process_and_under_another_hash_seed() -> None:
    code = f"from harness.config import RunConfig; print(RunConfig(lr=0.1, network={LAYERS!r}).digest)"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {RunConfig(lr=0.1, network=LAYERS).digest}


@pytest.mark.parametrize("field", sorted(OTHER))
def test_a_run_cannot_be_changed(field: str) -> None:
    run = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(run, field, OTHER[field])
    with pytest.raises(ValidationError, match="frozen"):
        delattr(run, field)
    assert run == RunConfig()


def test_a_run_does_not_share_the_callers_layer_list() -> None:
    value = {"layers": [{"type": "linear", "size": 4}]}
    run = RunConfig(network=value)
    digest = run.digest
    value["layers"].append({"type": "relu"})
    value["layers"][0]["size"] = 5
    assert run.digest == digest
    assert run.layers() == parse({"layers": [{"type": "linear", "size": 4}]})


# condition


@given(CONFIGS)
def test_what_differs_is_in_the_alphabet_of_tags(run: RunConfig) -> None:
    assert all(re.fullmatch(r"[a-z0-9 ._=-]+", text) for text in run.differs().values())


@given(st.text(min_size=1))
def test_slug_is_in_the_alphabet_of_tags_and_stays(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9 ._=-]+", slug(text))
    assert slug(slug(text)) == slug(text)


@pytest.mark.parametrize("text", ["base", "act=relu norm=layernorm", "lr=0.1", "lr=1e-05", "dropout 0.3", "hidden_dim=64"])
def test_slug_leaves_names_of_variants_alone(text: str) -> None:
    assert slug(text) == text


def test_what_differs_from_the_defaults_is_named() -> None:
    assert RunConfig().differs() == {}
    assert RunConfig(norm="layernorm", act="relu", seed=3).differs() == {"act": "relu", "norm": "layernorm"}
    assert RunConfig(lr="1e-1", act="tanh").differs() == {"lr": "0.1"}
    assert RunConfig(network="some/where/Wide Net.json").differs() == {"network": "wide net"}


def test_condition_is_the_same_for_every_seed_and_machine() -> None:
    run = RunConfig(act="relu", seed=5, device="auto", data_dir="elsewhere")
    assert run.condition == RunConfig(act="relu").condition
    assert RunConfig(seed=5).condition == "base"


@pytest.mark.parametrize("field", sorted(set(OTHER) - {"seed", "device", "data_dir"}))
def test_condition_sees_every_factor(field: str) -> None:
    assert RunConfig(**{field: OTHER[field]}).condition.startswith(f"{field}=")


@pytest.mark.parametrize(("field", "one", "other"), [("lr", 1e16, 1e-16), ("weight_decay", 1e20, 1e-20)])
def test_conditions_of_a_huge_and_a_tiny_number_differ(field: str, one: float, other: float) -> None:
    assert RunConfig(**{field: one}).condition != RunConfig(**{field: other}).condition


def test_layer_lists_that_differ_have_conditions_that_differ() -> None:
    one, other = (RunConfig(network={"layers": [{"type": "linear", "size": size}]}).condition for size in (64, 65))
    assert one != other


# levels


@pytest.mark.parametrize("field", sorted(name for name, table in config.CHOICES.items() if isinstance(table, str)))
def test_levels_read_from_source_are_those_of_the_live_table(field: str) -> None:
    table = config.CHOICES[field]
    assert isinstance(table, str)
    file, name = table.split(".")
    live = getattr(importlib.import_module(f"harness.{file.replace('/', '.')}"), name)
    assert levels(table) == tuple(live)
    assert set(choices(field)) - set(live) == ({"auto"} if field == "dataset" else set())


@pytest.mark.parametrize("field", NAMED)
def test_every_level_is_accepted_and_in_the_alphabet_of_the_shell(field: str) -> None:
    assert len(set(choices(field))) == len(choices(field)) > 1
    for level in choices(field):
        assert re.fullmatch(r"[a-z0-9_]+", level)
        assert RunConfig(**{field: level}).text()[field] == level


def test_a_table_that_is_not_there_is_an_error() -> None:
    with pytest.raises(LookupError, match="NOPE"):
        levels("components/norms.NOPE")


def test_a_run_is_made_or_refused_without_importing_torch_mlflow_or_pandas() -> None:
    code = f"""
import sys
from harness.config import RunConfig
from harness.errors import InputError
RunConfig(network={LAYERS!r}).digest, RunConfig(act="relu", dataset="kmnist").condition
try:
    RunConfig(norm="layernrm")
except InputError as error:
    print(error)
print(sorted({{"torch", "torchvision", "mlflow", "pandas", "numpy", "mlxtend", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    said, imported = done.stdout.splitlines()
    assert said.endswith("nearest: layernorm")
    assert imported == "[]"


# networks


def test_a_network_is_the_same_as_object_text_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.json").write_text(json.dumps(LAYERS, indent=2), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    wanted = parse(LAYERS)
    for network in (LAYERS, json.dumps(LAYERS), "  \n" + json.dumps(LAYERS, indent=1), wanted, wanted.text()):
        run = RunConfig(network=network)
        assert run.layers() == run.network == wanted
        assert run == RunConfig(network=LAYERS)
        assert run.digest == RunConfig(network=LAYERS).digest
    for network in ("net.json", Path("net.json"), tmp_path / "net.json", str(tmp_path / "net.json")):
        run = RunConfig(network=network)
        assert run.layers() == wanted
        assert run.network == str(network)
    assert RunConfig().layers() is None


@pytest.mark.parametrize("field", ["act", "norm", "dropout", "hidden_dim"])
@pytest.mark.parametrize("network", [LAYERS, json.dumps(LAYERS), "net.json"])
def test_what_a_layer_list_says_itself_is_refused_beside_it(field: str, network: object) -> None:
    line = refused(**{"network": network, field: OTHER[field]})
    assert line.startswith(f"{field}={OTHER[field]}")
    assert "layer list" in line
    with pytest.raises(InputError):
        RunConfig(**{field: OTHER[field]}).replace(network=network)


@pytest.mark.parametrize("field", sorted(set(OTHER) - {"act", "norm", "dropout", "hidden_dim", "network"}))
def test_what_a_layer_list_does_not_say_is_allowed_beside_it(field: str) -> None:
    run = RunConfig(**{"network": LAYERS, field: OTHER[field]})
    assert getattr(run, field) == OTHER[field]
    assert run.layers() == parse(LAYERS)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"layers": [{"type": " linear", "size": 3}]}, ["layers[0].type", "' linear'", "nearest: linear"]),
        ('{"layers": [{"type": "relu"}, {"type": "linear", "size": 0}]}', ["layers[1].size", "=0", "from 1"]),
        ('{"layers": \n[}', ["not JSON", "line 2"]),
        ({}, ["layers", "missing"]),
        (None, ["network=None", "mlp"]),
        (3, ["network=3", "mlp"]),
        ([{"type": "relu"}], ["network=[", "mlp"]),
    ],
)
def test_a_bad_network_is_refused_when_the_run_is_made(network: object, words: list[str]) -> None:
    line = refused(network=network)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("path", ["nowhere.json", "", ".", "a\0b", "a\nb", "~no-such-user/net.json", "x" * 5000, "\udcff.json"])
def test_a_network_that_cannot_be_read_is_refused_in_one_line(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunConfig(network=path)
    with pytest.raises(InputError) as error:
        run.layers()
    assert len(str(error.value).splitlines()) == 1
    assert "network" in str(error.value)


def test_layer_list_in_a_run_is_frozen() -> None:
    network = RunConfig(network=LAYERS).network
    assert isinstance(network, LayerList)
    with pytest.raises(ValidationError, match="frozen"):
        network.input_size = 3


def test_a_denormal_is_0_everywhere_as_it_is_to_a_process_that_flushes_them() -> None:
    run = RunConfig(weight_decay="1e-310")
    assert (run, run.digest, run.condition) == (RunConfig(), RunConfig().digest, RunConfig().condition)
