"""A study as a value: its rows and cells, its text, and what it refuses before anything trains."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness import space
from harness import study as module
from harness.architecture import build_network
from harness.config import FIELDS, RunConfig, choices
from harness.errors import InputError
from harness.space import Search
from harness.study import METRICS, Cell, Study, parse_seeds
from harness.studyfile import shipped

ROOT = Path(module.__file__).resolve().parents[1]
ALPHABET = r"[a-z0-9 ._=-]+"
LAYERS: dict[str, Any] = {"layers": [{"type": "linear", "size": 4}, {"type": "relu"}]}
ONE: dict[str, Any] = {"name": "x", "question": "q", "design": "list", "seeds": [0], "variants": [{"name": "a"}]}
HEAD = 'name = "x"\nquestion = "q"\nseeds = [0, 1]\n'
LIST = f'{HEAD}design = "list"\n'
FACTORIAL = f'{HEAD}design = "factorial"\n'
ONE_FACTOR = f'{HEAD}design = "one_factor_at_a_time"\n'
ROW = '[[variants]]\nname = "a"\n'


def refused(call: Any) -> str:
    """The one line that refuses what a call was given."""
    with pytest.raises(InputError) as error:
        call()
    line = str(error.value)
    assert error.value.exit_code == 2
    assert len(line.splitlines()) == 1, line
    assert len(line) < 1000, line
    return line


def outcome(call: Any) -> Any:
    """What a call gives, or None where it is refused in one line."""
    try:
        return call()
    except InputError as error:
        return None if len(str(error).splitlines()) == 1 else pytest.fail(str(error))


def written(folder: Path, text: str, name: str = "x.toml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# studies as Hypothesis draws them

LEVELS: dict[str, list[Any]] = {
    "init": list(choices("init")),
    "act": list(choices("act")),
    "norm": list(choices("norm")),
    "optimizer": list(choices("optimizer")),
    "lr": [1e-05, 0.01, 0.1, 1, 1e22],
    "weight_decay": [0, 0.001],
    "dropout": [0.0, 0.1, 0.5],
    "epochs": [1, 2, 10],
    "hidden_dim": [16, 64, 65],
    "validation": [0, 0.2],
}
NAMES = st.text("az09 ._=-", min_size=1, max_size=200).filter(str.strip)
SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4, unique=True)


def some_levels(field: str) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(LEVELS[field]), min_size=1, max_size=3, unique=True)


@st.composite
def tables(draw: st.DrawFn, least: int) -> dict[str, list[Any]]:
    """Up to three fields, each with a few levels, in any order."""
    fields = draw(st.lists(st.sampled_from(sorted(LEVELS)), min_size=least, max_size=3, unique=True))
    return {field: draw(some_levels(field)) for field in fields}


BASE = tables(0).map(lambda table: {field: levels[0] for field, levels in table.items()})


def designed(design: str) -> st.SearchStrategy[dict[str, Any]]:
    """The values of a study with factors."""
    fixed = {"name": st.just("x"), "question": st.text(max_size=9), "design": st.just(design)}
    return st.fixed_dictionaries({**fixed, "seeds": SEEDS, "base": BASE, "factors": tables(1)})


@st.composite
def listed(draw: st.DrawFn) -> dict[str, Any]:
    """The values of a study that lists its variants."""
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    return {
        "name": draw(st.text("az09_-", min_size=1, max_size=100)),
        "question": draw(st.text(max_size=9)),
        "design": "list",
        "seeds": draw(SEEDS),
        "metric": draw(st.sampled_from([name for name in METRICS if "val" not in name])),
        "matters": draw(st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False)),
        "base": draw(BASE),
        "variants": [{"name": name, **draw(BASE)} for name in names],
    }


VALUES = st.one_of(designed("one_factor_at_a_time"), designed("factorial"), listed())


# designs


@given(designed("one_factor_at_a_time"))
def test_one_factor_has_a_row_for_each_level_of_each_factor(values: dict[str, Any]) -> None:
    study, base = Study(**values), values["base"]
    wanted = [(factor, level) for factor, levels in values["factors"].items() for level in levels]
    assert len(study.rows) == sum(map(len, values["factors"].values()))
    assert [row.config for row in study.rows] == [RunConfig(**{**base, factor: level}) for factor, level in wanted]
    assert [row.factor for row in study.rows] == [factor for factor, _ in wanted]
    assert [row.level for row in study.rows] == [
        row.config.text()[factor] for row, (factor, _) in zip(study.rows, wanted, strict=True)
    ]
    assert [row.name for row in study.rows] == [f"{row.factor}={row.level}" for row in study.rows]


@given(designed("factorial"))
def test_factorial_has_a_row_for_each_combination(values: dict[str, Any]) -> None:
    study, base, factors = Study(**values), values["base"], values["factors"]
    wanted = [dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values())]
    assert Counter(row.config for row in study.rows) == Counter(RunConfig(**{**base, **setting}) for setting in wanted)
    for row in study.rows:
        assert {part.split("=")[0] for part in row.name.split(" ")} == set(factors)
        assert all(f"{field}={row.config.text()[field]}" in row.name.split(" ") for field in factors)
        assert (row.factor, row.level) == ("", "")


@given(listed())
def test_listed_variants_are_the_base_with_what_differs(values: dict[str, Any]) -> None:
    rows = Study(**values).rows
    assert [row.name for row in rows] == [given_["name"] for given_ in values["variants"]]
    for row, given_ in zip(rows, values["variants"], strict=True):
        assert row.config == RunConfig(**{**values["base"], **{k: v for k, v in given_.items() if k != "name"}})


@given(VALUES)
def test_cells_are_every_row_with_every_seed_each_once(values: dict[str, Any]) -> None:
    study = Study(**values)
    assert Counter((cell.variant, cell.seed) for cell in study.cells) == Counter(itertools.product(study.rows, values["seeds"]))
    assert len({cell.name for cell in study.cells}) == len(study.cells) == len(study.rows) * len(values["seeds"])
    for cell in study.cells:
        assert cell.study == study.name
        assert cell.name == f"{cell.variant.name}-s{cell.seed}"
        assert cell.config == cell.variant.config.replace(seed=cell.seed)


def shuffled(values: dict[str, Any], rng: random.Random, factors_too: bool) -> dict[str, Any]:
    """The same study, as another person would have typed it."""

    def mixed(items: Any) -> list[Any]:
        return rng.sample(list(items), len(items))

    found = {key: values[key] for key in mixed(values)}
    found |= {"seeds": mixed(values["seeds"]), "base": dict(mixed(values["base"].items()))}
    if "factors" in values:
        names = mixed(values["factors"]) if factors_too else values["factors"]
        found["factors"] = {name: mixed(values["factors"][name]) for name in names}
    if "variants" in values:
        found["variants"] = [dict(mixed(row.items())) for row in mixed(values["variants"])]
    return found


@given(VALUES, st.randoms(use_true_random=False))
def test_order_of_levels_seeds_and_variants_is_nothing_to_the_cells(values: dict[str, Any], rng: random.Random) -> None:
    one, other = Study(**values), Study(**shuffled(values, rng, factors_too=values["design"] != "factorial"))
    assert set(one.cells) == set(other.cells)
    assert one.varied == other.varied


def test_order_of_factors_is_nothing_to_the_cells_of_a_factorial() -> None:
    """A cell is found again in the store by its name."""
    factors = {"norm": ["none", "layernorm"], "act": ["tanh", "relu"], "lr": [0.1, 1]}
    found = [
        {(cell.name, cell.variant.condition, cell.config) for cell in Study(**values).cells}
        for order in itertools.permutations(factors)
        for values in [{**ONE, "design": "factorial", "variants": [], "factors": {name: factors[name] for name in order}}]
    ]
    assert [{(condition, config) for _, condition, config in cells} for cells in found] == [
        {(condition, config) for _, condition, config in found[0]}
    ] * 6
    assert found == [found[0]] * 6


@given(VALUES)
def test_names_and_conditions_are_in_the_alphabet_of_tags(values: dict[str, Any]) -> None:
    for cell in Study(**values).cells:
        assert re.fullmatch(ALPHABET, cell.name)
        assert re.fullmatch(ALPHABET, cell.variant.name)
        assert all(
            re.fullmatch(ALPHABET, text) for text in (cell.variant.condition, cell.variant.level, cell.variant.factor) if text
        )


@given(st.sampled_from(["data_dir", "network"]), st.lists(st.text(), min_size=1, max_size=3))
def test_names_made_of_any_text_are_in_the_alphabet_or_refused(field: str, levels: list[str]) -> None:
    study = outcome(lambda: Study(name="x", question="", design="factorial", seeds=[0], factors={field: levels}))
    assert study is None or all(re.fullmatch(ALPHABET, cell.name) for cell in study.cells)


def test_condition_says_all_that_the_study_varies_in_the_order_of_the_parameter_table() -> None:
    variants = [{"name": "wild", "dropout": 0.5}, {"name": "tame", "act": "relu"}]
    rows = Study(**{**ONE, "base": {"lr": 0.1}, "variants": variants}).rows
    assert [row.condition for row in rows] == ["act=tanh dropout=0.5", "act=relu dropout=0"]


def test_reference_is_the_base_itself_or_else_the_first_row() -> None:
    factors = {"act": ["relu", "tanh"], "norm": ["layernorm", "none"]}
    values = {**ONE, "design": "one_factor_at_a_time", "factors": factors}
    del values["variants"]
    assert Study(**values).reference == "act=tanh"
    assert Study(**values, base={"act": "gelu"}).reference == "norm=none"
    assert Study(**values, base={"act": "gelu", "norm": "rmsnorm"}).reference == "act=relu"


def test_single_run_is_named_by_what_differs() -> None:
    assert Cell.single(RunConfig(seed=3), {}).name == "base-s3"
    cell = Cell.single(RunConfig(seed=3, act="relu"), {"act": "relu"})
    assert (cell.study, cell.name, cell.variant.factor, cell.variant.level) == ("harness", "act=relu-s3", "act", "relu")
    two = Cell.single(RunConfig(), {"act": "relu", "norm": "layernorm"}).variant
    assert (two.condition, two.factor, two.level) == ("act=relu norm=layernorm", "", "")


# text


@given(VALUES)
def test_a_study_reads_back_from_its_json_as_itself(values: dict[str, Any]) -> None:
    study = Study(**values)
    again = Study(**json.loads(study.json_text()))
    assert again == study
    assert again.cells == study.cells
    assert again.json_text() == study.json_text()


@given(VALUES)
def test_a_study_and_its_cells_cross_to_another_process(values: dict[str, Any]) -> None:
    study = Study(**values)
    assert pickle.loads(pickle.dumps(study)) == study
    assert pickle.loads(pickle.dumps(study.cells)) == study.cells


def test_layer_list_inside_a_study_reads_back() -> None:
    study = Study(**{**ONE, "base": {"network": LAYERS}})
    again = Study(**json.loads(study.json_text()))
    assert again == study
    assert again.cells == study.cells
    assert again.rows[0].config.layers() is not None


def toml(value: Any) -> str:
    """A value as TOML has it; JSON text is TOML for numbers, words and lists."""
    return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}" if isinstance(value, dict) else json.dumps(value)


@given(VALUES)
def test_a_study_is_the_same_from_a_file_and_from_python(values: dict[str, Any]) -> None:
    plain = {key: value for key, value in values.items() if value is not None}
    plain["question"] = "what?"
    lines = [f"{key} = {toml(value)}" for key, value in plain.items() if key not in ("base", "factors", "variants")]
    for table in ("base", "factors"):
        lines += [f"[{table}]", *(f"{k} = {toml(v)}" for k, v in plain.get(table, {}).items())] if plain.get(table) else []
    for row in plain.get("variants", []):
        lines += ["[[variants]]", *(f"{k} = {toml(v)}" for k, v in row.items())]
    text = "\n".join(lines)
    read = Study.parse(re.sub(r"(?<= )(\d+)e22\b", r"\1.0e22", text), Path("x.toml"))
    assert read == Study(**plain)
    assert read.cells == Study(**plain).cells


def test_a_study_cannot_be_changed() -> None:
    study = Study(**ONE)
    for field in Study.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(study, field, getattr(study, field))


def test_a_study_does_not_share_the_callers_tables() -> None:
    base, seeds, levels = {"lr": 0.1}, [0, 1], ["tanh", "relu"]
    factors = {"act": levels}
    study = Study(name="x", question="q", design="factorial", seeds=seeds, base=base, factors=factors)
    base["lr"] = 3
    seeds.append(1)
    levels.append("rleu")
    factors["nope"] = []
    assert [cell.name for cell in study.cells] == ["act=tanh-s0", "act=tanh-s1", "act=relu-s0", "act=relu-s1"]
    assert {cell.config.lr for cell in study.cells} == {0.1}


# the studies that come with harness


def test_matrix_is_ten_variants_and_thirty_cells() -> None:
    study = Study.read("matrix")
    assert [row.name for row in study.rows] == [
        "init=normal",
        "init=kaiming",
        "act=tanh",
        "act=leaky_relu",
        "norm=none",
        "norm=batchnorm",
        "norm=layernorm",
        "optimizer=sgd",
        "optimizer=rmsprop",
        "optimizer=adam",
    ]
    assert study.seeds == (0, 1, 2)
    assert len({cell.name for cell in study.cells}) == len(study.cells) == 30
    assert (study.name, study.design, study.metric, study.matters) == ("matrix", "one_factor_at_a_time", METRICS[0], 0.02)


def test_base_of_the_matrix_stands_in_four_rows() -> None:
    study = Study.read("matrix")
    base = RunConfig(init="normal", act="tanh", norm="none", optimizer="sgd", lr=0.01, batch_size=32, epochs=10)
    same = [row for row in study.rows if row.config == base]
    assert [row.name for row in same] == ["init=normal", "act=tanh", "norm=none", "optimizer=sgd"]
    assert len({row.condition for row in same}) == 1
    assert len({row.config for row in study.rows}) == 7
    assert sum(cell.variant.config == base for cell in study.cells) == 12
    assert len({cell.config for cell in study.cells if cell.variant.config == base}) == 3
    assert study.reference == "init=normal"


def test_factorial_is_all_combinations_of_the_matrix() -> None:
    study, matrix = Study.read("factorial"), Study.read("matrix")
    assert study.factors == matrix.factors
    assert len({row.config for row in study.rows}) == len({row.name for row in study.rows}) == 36
    assert len({cell.name for cell in study.cells}) == len({cell.config for cell in study.cells}) == 36 * 3
    assert study.rows[0].name == "init=normal act=tanh norm=none optimizer=sgd" == study.reference
    assert all(row.name == row.condition for row in study.rows)
    assert {row.config for row in matrix.rows} <= {row.config for row in study.rows}


def test_regularization_is_what_the_notebook_compared_and_what_it_meant() -> None:
    study = Study.read("regularization")
    names = [
        "none",
        "dropout 0.1",
        "dropout 0.3",
        "dropout 0.5",
        "dropout mixed",
        "batchnorm",
        "dropout batchnorm",
        "weight decay",
    ]
    meant = ["none meant", "dropout mixed meant", "batchnorm meant", "dropout batchnorm meant"]
    assert [row.name for row in study.rows] == names + meant
    assert len(study.cells) == 12 * 3
    assert study.reference == "none"
    for row in study.rows:
        config = row.config
        assert (config.init, config.optimizer, config.lr, config.batch_size) == ("torch", "adam", 0.001, 64)
        assert (config.normalize, config.epochs) == ("standard", 10)
        assert config.weight_decay == (0.001 if row.name == "weight decay" else 0)


def shape(network: Any) -> tuple[list[int], list[float], int]:
    """Widths of the linear layers, rates of the dropouts, and how many norms."""
    kinds = [type(layer).__name__ for layer in network]
    widths = [layer.out_features for layer in network if type(layer).__name__ == "Linear"]
    return widths, [layer.p for layer in network if type(layer).__name__ == "Dropout"], kinds.count("BatchNorm1d")


def test_networks_of_regularization_build_as_their_variants_say() -> None:
    found = {row.name: shape(build_network(row.config)) for row in Study.read("regularization").rows}
    two, three = [256, 128, 10], [256, 128, 64, 10]
    mixed = [0.1, 0.3, 0.5]
    assert found == {
        "none": (two, [], 0),
        "dropout 0.1": (two, [0.1] * 3, 0),
        "dropout 0.3": (two, [0.3] * 3, 0),
        "dropout 0.5": (two, [0.5] * 3, 0),
        "dropout mixed": (two, mixed, 0),
        "batchnorm": (two, [], 3),
        "dropout batchnorm": (two, mixed, 3),
        "weight decay": (two, [], 0),
        "none meant": (three, [], 0),
        "dropout mixed meant": (three, mixed, 0),
        "batchnorm meant": (three, [], 3),
        "dropout batchnorm meant": (three, mixed, 3),
    }


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_study_is_whole_and_named_as_its_file(path: Path) -> None:
    asked = space.read(path)
    study = asked.study if isinstance(asked, Search) else asked
    assert study.name == path.stem
    assert study.question.endswith("?")
    assert study.matters
    for row in study.rows:
        row.config.with_layers()


# where a study is found


@pytest.mark.parametrize("name", ["matrix", "factorial", "regularization"])
def test_a_shipped_study_is_found_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Study.read(name)
    monkeypatch.chdir(tmp_path)
    study = Study.read(name)
    assert study == here == Study.read(shipped() / f"{name}.toml")
    assert all(row.config.with_layers() for row in study.rows)


def test_study_of_the_working_folder_comes_before_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, LIST + ROW, "experiments/matrix.toml")
    written(tmp_path, LIST.replace('"x"', '"mine"') + ROW, "experiments/mine.toml")
    assert Study.read("matrix").name == "x"
    assert Study.read("mine").name == "mine"
    assert "factorial, fair_optimizers, matrix, mine, regularization, tuning; nearest: mine" in refused(
        lambda: Study.read("mines")
    )


def test_study_is_read_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, LIST + ROW, "sub/own.toml")
    monkeypatch.chdir(tmp_path)
    assert Study.read(path) == Study.read(str(path)) == Study.read("sub/own.toml")
    monkeypatch.chdir(tmp_path / "sub")
    assert Study.read("own.toml") == Study.read(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("matrx", ["study='matrx'", "nearest: matrix", "path of a TOML file"]),
        ("Factorial", ["nearest: factorial"]),
        ("zzzzzz", ["study='zzzzzz'", "factorial, fair_optimizers, matrix, regularization"]),
        ("", ["study"]),
        ("a\0b", ["study"]),
        ("a\nb", ["study='a\\nb'"]),
        ("x" * 300, ["xxx"]),
        ("nowhere.toml", ["nowhere.toml", "No such file"]),
        ("no/where/matrix.toml", ["no/where/matrix.toml", "No such file"]),
        ("folder.toml", ["folder.toml", "directory"]),
        ("folder.toml/", ["folder.toml", "directory"]),
        ("folder.toml/matrix", ["folder.toml/matrix", "No such file"]),
        ("x" * 300 + ".toml", ["too long"]),
        ("a\0b.toml", ["cannot be read"]),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_study_that_cannot_be_found_is_refused_in_one_line(
    name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.toml").mkdir()
    line = refused(lambda: Study.read(name))
    assert all(word in line for word in words), line


def test_file_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b'name = "\xff"\n')
    line = refused(lambda: Study.read(path))
    assert "x.toml" in line
    assert "utf-8" in line


# networks


def test_network_lies_beside_the_study_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (3, 5, 7):
        text = json.dumps({"layers": [{"type": "linear", "size": size}]})
        written(tmp_path, text, f"studies/nets/n{size}.json")
    base = '[base]\nnetwork = "nets/n3.json"\n'
    row = '[[variants]]\nname = "b"\nnetwork = "./nets/n5.json"\n'
    absolute = f'[[variants]]\nname = "c"\nnetwork = {json.dumps(str(tmp_path / "studies/nets/n7.json"))}\n'
    written(tmp_path, LIST + base + ROW + row + absolute, "studies/listed.toml")
    factors = '[factors]\nnetwork = ["nets/n3.json", "../studies/nets/n5.json", "mlp"]\n'
    written(tmp_path, FACTORIAL + factors, "studies/crossed.toml")
    monkeypatch.chdir(tmp_path)
    studies = [Study.read("studies/listed.toml"), Study.read(tmp_path / "studies/crossed.toml")]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = [[row.config.layers() for row in study.rows] for study in studies]
    sizes = [[layers and layers.layers[0].size for layers in lists] for lists in found]  # type: ignore[union-attr]
    assert sizes == [[3, 5, 7], [3, 5, None]]
    assert [row.name for row in studies[1].rows] == ["network=n3", "network=n5", "network=mlp"]


def test_network_in_the_home_folder_is_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    written(tmp_path, json.dumps(LAYERS), "home/net.json")
    path = written(tmp_path, LIST + '[base]\nnetwork = "~/net.json"\n' + ROW)
    assert Study.read(path).rows[0].config.layers() == RunConfig(network=LAYERS).network


@pytest.mark.parametrize("network", ["{layers = [{type = 'linear', size = 4}, {type = 'relu'}]}", f"'{json.dumps(LAYERS)}'"])
def test_layer_list_may_stand_in_the_study_itself(network: str, tmp_path: Path) -> None:
    row = Study.read(written(tmp_path, f"{LIST}[base]\nnetwork = {network}\n{ROW}")).rows[0]
    assert row.config.layers() == RunConfig(network=LAYERS).network


@pytest.mark.parametrize(
    "network", ['"~no-such-user/net.json"', '"nowhere.json"', '""', '"a\\u0000b"', f'"{"x" * 300}"', '"."']
)
def test_network_that_cannot_be_read_is_refused_in_one_line(network: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"{LIST}{ROW}network = {network}\n")
    assert "network" in refused(lambda: Study.read(path).rows[0].config.layers())


# seeds


@given(st.lists(st.tuples(st.integers(0, 10**18), st.integers(0, 30)), min_size=1, max_size=5), st.sampled_from(["", " "]))
def test_seeds_as_text_are_their_numbers_with_both_ends(parts: list[tuple[int, int]], space: str) -> None:
    text = f"{space},{space}".join(f"{first}..{first + more}" if more else f"{first}" for first, more in parts)
    assert parse_seeds(text) == [seed for first, more in parts for seed in range(first, first + more + 1)]


@given(st.text() | st.from_regex(r"[0-9., -]{0,12}", fullmatch=True))
@example("0..9999999999999999999")
@example("٣")
def test_any_other_text_is_seeds_or_refused_in_one_line(text: str) -> None:
    seeds = outcome(lambda: parse_seeds(text))
    if seeds is not None:
        assert seeds
        assert all(type(seed) is int and seed >= 0 for seed in seeds)
        assert re.fullmatch(r"[0-9.,\s]+", text, re.ASCII)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0..9", range(10)),
        ("0,1,2", [0, 1, 2]),
        ("0..4,7", [0, 1, 2, 3, 4, 7]),
        ("7", [7]),
        ("3..3", [3]),
        (" 5 , 1..2", [5, 1, 2]),
    ],
)
def test_seeds_are_written_in_these_ways(text: str, seeds: Any) -> None:
    assert parse_seeds(text) == list(seeds)
    assert Study(**{**ONE, "seeds": text}).seeds == tuple(seeds)
    assert Study(**ONE).override(seeds=text).seeds == tuple(seeds)


BAD_SEEDS: list[Any] = [
    *("", "a", "-1", "1..", "..1", "3..1", "0..x", "0...3", "1;2", "1.5", "0,", ",0", "0..9999999", "0,0", "0..3,2", "9" * 19),
    *([], [0, 0], [0, 1, 0], [-1], [0, -1], [True], [False, True], [0.0], [1.5], ["0"], [None], [[0]], [2**63], [10**5000]),
    *(0, 3, None, True, 1.5, {}, {"a": 1}),
]


@pytest.mark.parametrize("seeds", BAD_SEEDS, ids=lambda value: type(value).__name__)
def test_seeds_that_are_none_are_refused_in_one_line(seeds: Any) -> None:
    line = refused(lambda: Study(**{**ONE, "seeds": seeds}))
    assert "seeds=" in line
    assert "different whole numbers from 0" in line
    if seeds is not None:
        assert "seeds=" in refused(lambda: Study(**ONE).override(seeds=seeds))


# overrides


def test_override_changes_the_base_of_every_row_that_does_not_set_it() -> None:
    study = Study.read("matrix")
    changed = study.override(seeds="5..6", lr="1e-1", epochs=2, dataset="mnist_5k", norm="layernorm")
    assert [row.name for row in changed.rows] == [row.name for row in study.rows]
    assert len(changed.cells) == 20
    for row, before in zip(changed.rows, study.rows, strict=True):
        wanted = {"lr": 0.1, "epochs": 2, "dataset": "mnist_5k"} | ({} if row.factor == "norm" else {"norm": "layernorm"})
        assert row.config == before.config.replace(**wanted)
    assert study == Study.read("matrix")


@given(VALUES)
def test_override_by_nothing_changes_nothing(values: dict[str, Any]) -> None:
    assert Study(**values).override() == Study(**values)


def test_override_of_what_some_variants_set_changes_the_others() -> None:
    rows = Study(**{**ONE, "variants": [{"name": "a"}, {"name": "b", "lr": 1}]}).override(lr=0.5).rows
    assert [row.config.lr for row in rows] == [0.5, 1]


def test_override_keeps_the_network_that_the_study_names() -> None:
    before, after = Study.read("regularization"), Study.read("regularization").override(epochs=1)
    assert [row.config for row in after.rows] == [row.config.replace(epochs=1) for row in before.rows]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("matrix", {"lrr": 1}, ["parameter='lrr'", "hidden_dim", "nearest: lr"]),
        ("matrix", {"act": "rleu"}, ["act='rleu'", "leaky_relu", "nearest: relu"]),
        ("matrix", {"lr": 0}, ["lr=0", "above 0"]),
        ("matrix", {"seed": 1}, ["seed belongs to the study", "--seeds"]),
        ("matrix", {"name": "y"}, ["parameter='name'"]),
        ("matrix", {"network": LAYERS}, ["act", "layer list"]),
        ("factorial", {"act": "relu"}, ["factorial", "act"]),
        ("factorial", {"epochs": True}, ["epochs=True", "whole number"]),
        ("regularization", {"hidden_dim": 64}, ["hidden_dim=64", "layer list"]),
    ],
)
def test_override_that_is_not_allowed_is_refused_in_one_line(name: str, values: dict[str, Any], words: list[str]) -> None:
    line = refused(lambda: Study.read(name).override(**values))
    assert all(word in line for word in words), line


def test_override_that_would_change_nothing_is_refused() -> None:
    rows = [{"name": "a", "lr": 1}, {"name": "b", "lr": 2}]
    assert "lr" in refused(lambda: Study(**{**ONE, "variants": rows}).override(lr=3))
    alone = {**ONE, "design": "one_factor_at_a_time", "variants": [], "factors": {"lr": [0.1, 1]}}
    assert "lr" in refused(lambda: Study(**alone).override(lr=3))


# bad input

SOON = "act = ['tanh', 'relu']\nnorm = ['none', 'layernorm', 'rmsnrm']\n"
BAD: dict[str, tuple[str, list[str]]] = {
    "syntax": (f"{LIST}[base\n{ROW}", ["not TOML", "line 5"]),
    "syntax, open string": (f'{LIST}{ROW}norm = "none\n', ["not TOML", "line 7"]),
    "key twice": (f"{LIST}seeds = [1]\n{ROW}", ["not TOML", "line 5"]),
    "table twice": (f"{LIST}{ROW}[base]\nlr = 1\n[base]\n", ["not TOML", "line 9"]),
    "empty file": ("", ["name is missing"]),
    "no name": (LIST.replace('name = "x"', "") + ROW, ["name is missing", "small letters"]),
    "no question": (LIST.replace('question = "q"', "") + ROW, ["question is missing"]),
    "no design": (HEAD + ROW, ["design is missing", "one_factor_at_a_time, factorial, list"]),
    "no seeds": (LIST.replace("seeds = [0, 1]", "") + ROW, ["seeds is missing", "[0, 1, 2]"]),
    "key": (f"metrics = 'x'\n{LIST}{ROW}", ["study x", "'metrics'", "matters", "nearest: metric"]),
    "table": (f"{LIST}{ROW}[factor]\n", ["'factor'", "nearest: factors"]),
    "key in base": (f"{LIST}{ROW}[base]\noptimiser = 'sgd'\n", ["study x, base", "'optimiser'", "nearest: optimizer"]),
    "key in a variant": (f"{LIST}{ROW}LR = 1\n", ["study x, variant a", "'LR'", "weight_decay", "nearest: lr"]),
    "factor": (f"{FACTORIAL}[factors]\nnrm = ['none']\n", ["'nrm'", "batch_size", "nearest: norm"]),
    "level in base": (f"{LIST}{ROW}[base]\nact = 'rleu'\n", ["base", "act='rleu'", "softplus", "nearest: relu"]),
    "level in the last variant": (
        LIST + "".join(f'[[variants]]\nname = "v{k}"\n' for k in range(21)) + "norm = 'layernrm'\n",
        ["variant v20", "norm='layernrm'", "batchnorm", "nearest: layernorm"],
    ),
    "level in the last combination": (f"{FACTORIAL}[factors]\n{SOON}", ["norm='rmsnrm'", "nearest: rmsnorm"]),
    "level in the last row": (f"{ONE_FACTOR}[factors]\n{SOON}", ["variant norm=rmsnrm", "nearest: rmsnorm"]),
    "number": (f"{LIST}{ROW}lr = -1\n", ["variant a", "lr=-1", "above 0"]),
    "network": (f"{LIST}{ROW}network = {{layers = [{{type = ' linear', size = 3}}]}}\n", ["variant a", "' linear'", "linear"]),
    "both network and act": (f"{LIST}{ROW}network = {{layers = []}}\n[base]\nact = 'relu'\n", ["variant a", "act=relu"]),
    "seed in base": (f"{LIST}{ROW}[base]\nseed = 1\n", ["base", "seed belongs to the study", "seeds = ["]),
    "seed in a variant": (f"{LIST}{ROW}seed = 1\n", ["variant a", "seed belongs to the study"]),
    "seed as a factor": (f"{FACTORIAL}[factors]\nseed = [1, 2]\n", ["seed belongs to the study"]),
    "empty factor": (f"{FACTORIAL}[factors]\nlr = []\nact = ['relu']\n", ["lr", "at least one level"]),
    "empty factor, one at a time": (f"{ONE_FACTOR}[factors]\nact = ['relu']\nlr = []\n", ["lr", "at least one level"]),
    "no factors": (f"{FACTORIAL}[factors]\n", ["no factors"]),
    "no table of factors": (ONE_FACTOR, ["no factors"]),
    "no variants": (f"{LIST}variants = []\n", ["no variants"]),
    "no table of variants": (LIST, ["no variants"]),
    "no seeds in the list": (LIST.replace("[0, 1]", "[]") + ROW, ["seeds=[]", "[0, 1, 2]"]),
    "one name twice": (f"{LIST}{ROW}[[variants]]\nname = 'b'\n{ROW}lr = 1\n", ["two variants", "'a'"]),
    "one level in two spellings": (f"{FACTORIAL}[factors]\nlr = [0.1, 1e-1]\n", ["two variants", "'lr=0.1'"]),
    "one level as word and number": (f"{ONE_FACTOR}[factors]\nlr = [0.1, '0.10']\n", ["two variants", "'lr=0.1'"]),
    "variant without a name": (f"{LIST}{ROW}[[variants]]\nlr = 1\n", ["name"]),
    "variant without anything": (f"{LIST}{ROW}[[variants]]\n", ["name"]),
    "variant with a number for a name": (f"{LIST}[[variants]]\nname = 3\n", ["name", "3"]),
    "variant with an empty name": (f"{LIST}[[variants]]\nname = ''\nlr = 1\n", ["name"]),
    "variant with capitals": (f"{LIST}[[variants]]\nname = 'Wild'\n", ["'Wild'", "small letters"]),
    "variant with a slash": (f"{LIST}[[variants]]\nname = 'a/b'\n", ["'a/b'", "small letters"]),
    "variant with an umlaut": (f"{LIST}[[variants]]\nname = 'zwölf'\n", ["zwölf"]),
    "variant with a line end": (f'{LIST}[[variants]]\nname = "a\\n"\n', ["'a\\n'"]),
    "variant with a long name": (f"{LIST}[[variants]]\nname = '{'x' * 1000}'\n", ["xxx"]),
    "name": (LIST.replace('"x"', '"My Study"') + ROW, ["'My Study'", "small letters"]),
    "name with a line end": (LIST.replace('"x"', '"x\\n"') + ROW, ["'x\\n'"]),
    "empty name": (LIST.replace('"x"', '""') + ROW, ["name=''"]),
    "long name": (LIST.replace('"x"', f'"{"x" * 200}"') + ROW, ["name="]),
    "name of single runs": (LIST.replace('"x"', '"harness"') + ROW, ["name='harness'", "single runs"]),
    "name that is a number": (LIST.replace('"x"', "7") + ROW, ["name=7"]),
    "design": (LIST.replace('"list"', '"factorail"') + ROW, ["'factorail'", "one_factor_at_a_time", "nearest: factorial"]),
    "design list with factors": (f"{LIST}[factors]\nact = ['relu']\n", ["design list", "variants", "factors"]),
    "design list with both": (f"{LIST}{ROW}[factors]\nact = ['relu']\n", ["design list", "factors"]),
    "design factorial with variants": (FACTORIAL + ROW, ["design factorial", "factors", "variants"]),
    "design one factor with variants": (ONE_FACTOR + ROW, ["design one_factor_at_a_time", "variants"]),
    "metric": (f'metric = "final/test_los"\n{LIST}{ROW}', ["'final/test_los'", "final/val_loss", "nearest: final/test_loss"]),
    "metric without validation": (f'metric = "final/val_loss"\n{LIST}{ROW}', ["final/val_loss", "validation"]),
    "metric without validation in one variant": (
        f'metric = "final/val_loss"\n{LIST}[base]\nvalidation = 0.1\n{ROW}[[variants]]\nname = "b"\nvalidation = 0\n',
        ["final/val_loss", "validation"],
    ),
    **{
        f"matters {text}": (f"matters = {text}\n{LIST}{ROW}", ["matters=", "a finite number above 0"])
        for text in ("0", "0.0", "-0.1", "nan", "inf", "-inf", "true", '"0.1"', "[]", "1979-05-27")
    },
    "date as a level": (f"{FACTORIAL}[factors]\nlr = [1979-05-27]\n", ["1979", "above 0"]),
    "date in base": (f"{LIST}{ROW}[base]\nepochs = 07:32:00\n", ["base", "epochs=", "whole number"]),
    "date as a question": (LIST.replace('"q"', "1979-05-27T07:32:00Z") + ROW, ["question=", "sentence"]),
    "truth as a number": (f"{LIST}{ROW}epochs = true\n", ["epochs=True", "whole number"]),
    "truth as a level": (f"{ONE_FACTOR}[factors]\nnorm = [false]\n", ["norm=False"]),
    "table as a value": (f"{LIST}{ROW}[base.lr]\nlow = 1\n", ["base", "lr={'low': 1}"]),
    "table as a level": (f"{FACTORIAL}[factors]\nact = [{{a = 1}}]\n", ["act={'a': 1}"]),
    "table as seeds": (LIST.replace("[0, 1]", "{a = 1}") + ROW, ["seeds={'a': 1}"]),
    "list as a level": (f"{FACTORIAL}[factors]\nlr = [[0.1]]\n", ["lr=[0.1]"]),
    "word for a list of levels": (f"{FACTORIAL}[factors]\nact = 'relu'\n", ["factors=", "list of levels"]),
    "number for a table": (f"base = 3\n{LIST}{ROW}", ["base=3", "table"]),
    "table for the list of variants": (f"{LIST}[variants]\nname = 'a'\n", ["variants=", "tables with a name"]),
    "words for variants": (f"{LIST}variants = ['a', 'b']\n", ["variants=", "tables with a name"]),
    "nan": (f"{LIST}{ROW}lr = nan\n", ["lr=nan"]),
    "number too long for a float": (f"{LIST}{ROW}lr = 1{'0' * 400}\n", ["lr="]),
    "number too long to print": (f"{LIST}{ROW}epochs = 0x1{'0' * 5000}\n", ["epochs="]),
    "deep lists": (f"x = {'[' * 10**4}{']' * 10**4}\n{LIST}{ROW}", ["x.toml"]),
    "lists of some depth": (f"{LIST}{ROW}[base]\nlr = {'[' * 90}{']' * 90}\n", ["lr="]),
    "deep tables": (f"{LIST}{ROW}[base]\nlr = {'{a=' * 10**4}1{'}' * 10**4}\n", ["x.toml"]),
    "deep dots": (f"{LIST}{ROW}[base]\n{'.'.join(['a'] * 3000)} = 1\n", ["x"]),
    "seeds too large": (LIST.replace("[0, 1]", "[9223372036854775808]") + ROW, ["9223372036854775808"]),
    "seeds repeated": (LIST.replace("[0, 1]", "[0, 1, 0]") + ROW, ["seeds=[0, 1, 0]", "different"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_study_is_refused_in_one_line_that_says_what_came_and_what_is_allowed(case: str, tmp_path: Path) -> None:
    text, words = BAD[case]
    path = written(tmp_path, text)
    line = refused(lambda: Study.read(path))
    assert all(word in line for word in words), line


def test_good_study_beside_the_bad_ones_is_not_refused(tmp_path: Path) -> None:
    """So that the table above cannot be red for its heads alone."""
    for text in (LIST + ROW, f"{FACTORIAL}[factors]\nlr = [0.1, 1]\n", f"{ONE_FACTOR}[factors]\nact = ['relu', 'tanh']\n"):
        for more in ("", 'metric = "final/train_accuracy"\n', "matters = 1\n", "matters = 1e-300\n"):
            assert Study.read(written(tmp_path, more + text)).cells
    validated = f'metric = "final/val_loss"\n{LIST}[base]\nvalidation = 0.1\n{ROW}'
    assert Study.read(written(tmp_path, validated)).metric == "final/val_loss"


def test_huge_factorial_is_refused_at_once(tmp_path: Path) -> None:
    levels = ", ".join(map(str, range(1, 100)))
    fields = [field for field in FIELDS if field not in ("seed", "network")]
    path = written(tmp_path, f"{FACTORIAL}[factors]\n" + "".join(f"{field} = [{levels}]\n" for field in fields))
    code = """
import sys, time
from harness.errors import InputError
from harness.study import Study
start = time.process_time()
try:
    Study.read(sys.argv[1])
except InputError as error:
    print(time.process_time() - start, error)
"""
    # a process that can be ended: to build what is refused here would take all memory
    command, env = [sys.executable, "-c", code, str(path)], {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=20).stdout
    seconds, _, line = said.partition(" ")
    assert float(seconds) < 0.5
    assert str(99 ** len(fields)) in line
    assert "100000 cells" in line


@pytest.mark.parametrize("design", ["one_factor_at_a_time", "factorial", "list"])
def test_more_cells_than_anyone_means_are_refused_in_every_design(design: str) -> None:
    values: dict[str, Any] = {"name": "x", "question": "q", "design": design, "seeds": "0..59999"}
    values |= {"variants": [{"name": "a"}, {"name": "b"}]} if design == "list" else {"factors": {"lr": [1, 2]}}
    assert "100000 cells" in refused(lambda: Study(**values))


@given(st.dictionaries(st.sampled_from([*Study.model_fields, "nope"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)))  # fmt: skip
def test_any_values_are_a_study_or_refused_in_one_line(values: dict[str, Any]) -> None:
    study = outcome(lambda: Study(**{**ONE, **values}))
    assert study is None or study.cells


# the process


def test_studies_are_read_without_torch_or_mlflow_and_alike_under_any_hash_seed() -> None:
    code = """
import sys
from harness.study import Study
studies = [Study.read(name) for name in ("matrix", "factorial", "regularization")]
print([(cell.name, cell.config.digest) for study in studies for cell in study.cells], [study.json_text() for study in studies])
print(sorted({"torch", "mlflow", "pandas", "numpy", "matplotlib"} & set(sys.modules)))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={**env, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert said.pop().splitlines()[1] == "[]"
