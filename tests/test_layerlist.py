"""Networks as data: what reads back, and the one line for what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import InputError
from harness.layerlist import LayerList, parse, read
from harness.limits import MOST_WIDTH

PLAIN = ("relu", "sigmoid", "tanh", "leaky_relu", "silu", "gelu", "batch_norm", "layer_norm")
TYPES = ("linear", "dropout", *PLAIN)  # those of the documented format
SIZES = st.integers(1, 3000)  # nine of the widest are within the parameters allowed
LISTS = st.fixed_dictionaries(
    {
        "layers": st.lists(
            st.one_of(
                st.fixed_dictionaries({"type": st.just("linear"), "size": SIZES}),
                st.fixed_dictionaries(
                    {"type": st.just("dropout")}, optional={"rate": st.floats(0, 1, exclude_max=True) | st.just(0)}
                ),
                st.fixed_dictionaries({"type": st.sampled_from(PLAIN)}),
            ),
            max_size=8,
        )
    },
    optional={"input_size": SIZES, "num_classes": SIZES},
)
KEYS = ["type", "size", "rate", "layers", "input_size", "num_classes", *TYPES]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(TYPES),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def refused(value: object) -> str:
    """The one line that refuses this layer list."""
    with pytest.raises(InputError) as error:
        parse(value, "net.json")
    line = str(error.value)
    assert len(line.splitlines()) == 1, line
    assert line.startswith("net.json: ")
    return line


def layer(**keys: object) -> dict[str, object]:
    """A list whose third layer has these keys."""
    return {"layers": [{"type": "linear", "size": 3}, {"type": "relu"}, keys]}


@given(LISTS)
def test_a_list_reads_back_from_its_text(value: dict[str, object]) -> None:
    layers = parse(value)
    for again in (parse(layers.text()), parse(json.loads(layers.text())), parse(json.dumps(value))):
        assert again == layers
        assert again.text() == layers.text()
        assert hash(again) == hash(layers)


@given(LISTS)
def test_a_list_holds_what_was_given(value: dict[str, object]) -> None:
    layers = parse(value)
    assert len(layers.layers) == len(value["layers"])  # type: ignore[arg-type]
    for spec, given_ in zip(layers.layers, value["layers"], strict=True):  # type: ignore[call-overload]
        assert {name: getattr(spec, name) for name in given_} == given_
    assert layers.input_size == value.get("input_size", 784)
    assert layers.num_classes == value.get("num_classes", 10)


@given(LISTS)
def test_text_writes_defaults_out_and_changes_nothing_else(value: dict[str, object]) -> None:
    assert json.loads(parse(value).text())["layers"] == [
        {"rate": 0.5, **keys} if keys["type"] == "dropout" else keys
        for keys in value["layers"]  # type: ignore[attr-defined]
    ]


def _keys(value: dict[str, object], optional: st.SearchStrategy[dict[str, object]]) -> st.SearchStrategy[dict[str, object]]:
    return optional.map(lambda more: {**value, **more})


NEARLY = st.one_of(  # a good list, or a good layer, with something more
    _keys({"layers": []}, st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), JSON, max_size=2)),
    st.sampled_from(TYPES)
    .flatmap(lambda name: _keys({"type": name, "size": 3}, st.dictionaries(st.sampled_from(KEYS), JSON, max_size=2)))
    .map(lambda layer: {"layers": [layer]}),
)


@given(NEARLY | JSON)
def test_whatever_comes_is_a_list_or_one_line(value: object) -> None:
    for given_ in (value, json.dumps(value)):
        try:
            layers = parse(given_, "net.json")
        except InputError:
            refused(given_)
        else:
            assert parse(layers.text()) == layers


@pytest.mark.parametrize("name", TYPES)
def test_every_type_of_the_design_is_taken(name: str) -> None:
    keys: dict[str, object] = {"type": name, "size": 5} if name == "linear" else {"type": name}
    assert [spec.type for spec in parse({"layers": [keys]}).layers] == [name]


@pytest.mark.parametrize(
    ("given_", "nearest"),
    [
        (" linear", "linear"),
        ("linear ", "linear"),
        ("Linear", "linear"),
        ("LeakyReLU", "leaky_relu"),
        ("batchnorm", "batch_norm"),
        ("drop_out", "dropout"),
        ("Layer Norm", "layer_norm"),
    ],
)
def test_unknown_type_names_file_index_given_allowed_and_nearest(given_: str, nearest: str) -> None:
    line = refused(layer(type=given_, size=128))
    assert line.startswith(f"net.json: layers[2].type={given_!r} is not allowed")
    assert line.endswith(f"nearest: {nearest}")
    assert all(name in line for name in TYPES)


@pytest.mark.parametrize("given_", ["", "zzz", "a\nb", "\ud800", None, 5, 1.5, True, [], {}, ["linear"], b"linear"])
def test_what_is_no_type_is_refused(given_: object) -> None:
    line = refused(layer(type=given_, size=128))
    assert line.startswith(f"net.json: layers[2].type={given_!r} is not allowed")


@pytest.mark.parametrize(
    "size", [0, -1, 1.5, 64.0, "64", True, False, None, [], {}, MOST_WIDTH + 1, float("nan"), float("inf"), ""]
)
def test_wrong_size_is_refused(size: object) -> None:
    assert refused(layer(type="linear", size=size)).startswith(
        f"net.json: layers[2].size={size!r} is not allowed; allowed: a whole number from 1 to 65536"
    )
    for field in ("input_size", "num_classes"):
        assert refused({"layers": [], field: size}).startswith(
            f"net.json: {field}={size!r} is not allowed; allowed: a whole number from 1 to 65536"
        )


@pytest.mark.parametrize("rate", [1, 1.0, 1.5, -0.1, float("nan"), float("inf"), True, False, None, "half", [], {}])
def test_wrong_rate_is_refused(rate: object) -> None:
    assert refused(layer(type="dropout", rate=rate)).startswith(
        f"net.json: layers[2].rate={rate!r} is not allowed; allowed: a number from 0 up to, not including, 1"
    )


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 5000])
def test_numbers_that_json_should_not_have_are_refused(number: str) -> None:
    for keys in (f'"type":"dropout","rate":{number}', f'"type":"linear","size":{number}'):
        refused('{"layers":[{' + keys + "}]}")


def test_missing_keys_are_named() -> None:
    line = refused(layer(size=5))
    assert line.startswith("net.json: layers[2]: ")
    assert "type" in line
    assert all(name in line for name in TYPES)
    line = refused(layer(type="linear"))
    assert line.startswith("net.json: layers[2].size")
    assert "missing" in line
    assert "whole number from 1" in line
    line = refused({"input_size": 784})
    assert line.startswith("net.json: layers")
    assert "missing" in line


# `dropout` beside a size is what someone writes who knows the MLP's parameters; it is also the name of a type
@pytest.mark.parametrize("key", ["rate", "units", "Size", "dropout", "relu", "a.b", "a\n.b", "", "0", "é"])
def test_extra_key_of_a_layer_is_named(key: str) -> None:
    line = refused(layer(type="linear", size=5, **{key: 1}))
    assert line.startswith("net.json: layers[2]")
    assert not line.startswith("net.json: layers[2].")
    assert repr(key) in line
    assert "size" in line


@pytest.mark.parametrize("key", ["layer", "output_size", "dropout", "relu", "linear", "a.b", "a\n.b", ""])
def test_extra_key_of_the_list_is_named(key: str) -> None:
    line = refused({"layers": [], key: 1})
    assert repr(key) in line
    assert all(name in line for name in ("input_size", "num_classes", "layers"))


def test_extra_key_names_the_nearest() -> None:
    assert refused(layer(type="linear", size=5, sizes=6)).endswith("nearest: size")
    assert refused({"layers": [], "inputsize": 6}).endswith("nearest: input_size")


@pytest.mark.parametrize(
    "value", [[], 1, None, "relu", '"relu"', "[]", "3", "null", True, [{"type": "relu"}], b'{"layers":[]}']
)
def test_what_is_no_object_is_refused(value: object) -> None:
    refused(value)


@pytest.mark.parametrize("layers", [{"type": "relu"}, "relu", None, 3, ["relu"], [None], [[]], [3], [[{"type": "relu"}]]])
def test_what_is_no_list_of_objects_is_refused(layers: object) -> None:
    assert "layers" in refused({"layers": layers})


def test_keys_that_are_not_text_are_refused() -> None:
    refused('{"layers": [], "\\ud800": 1}')
    refused({1: 2, "layers": []})
    refused({"layers": [{"type": "relu", 1: 2}]})


@pytest.mark.parametrize(
    ("text", "line"), [("", 1), ("{", 1), ('{"layers":\n[,]}', 2), ('{\n\n"layers": [],\n}', 4), ("\ufeff{}", 1), ("{}\nx", 2)]
)
def test_text_that_is_not_json_names_its_line(text: str, line: int) -> None:
    assert f"not JSON: line {line}: " in refused(text)


@pytest.mark.parametrize("opening", ["[", '{"layers":', '{"layers":[', '{"layers":[{"type":'])
def test_deep_nesting_is_one_line(opening: str) -> None:
    refused(opening * 10**5)


@pytest.mark.parametrize("depth", [10, 300, 700, 900, 950, 980])
def test_nesting_that_json_can_read_is_one_line_too(depth: int) -> None:
    refused('{"layers":[{"type":"linear","size":' + "[" * depth + "]" * depth + "}]}")


def test_size_too_long_to_print_is_refused() -> None:
    """Python refuses to write integers of more than 4,300 digits; the message must do without."""
    assert "layers[2].size" in refused(layer(type="linear", size=10**5000))


def test_a_file_reads_as_its_text(tmp_path: Path) -> None:
    value = {"input_size": 6, "num_classes": 3, "layers": [{"type": "linear", "size": 4}, {"type": "dropout", "rate": 0.3}]}
    path = tmp_path / "net.json"
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
    assert read(path) == read(str(path)) == parse(value)
    assert isinstance(read(path), LayerList)


def file_refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read(path)
    line = str(error.value)
    assert len(line.splitlines()) == 1, line
    assert path.stem in line
    return line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["not JSON", "line 1"]),
        (b"\x80\x81\x00\xff", ["cannot be read"]),
        (b"PK\x03\x04\x00\x00", ["not JSON"]),
        ("{}".encode("utf-16"), ["cannot be read"]),
        (b'{"layers":\n\n [}', ["not JSON", "line 3"]),
        (
            b'{"layers": [{"type": "relu"}, {"type": " linear", "size": 64}]}',
            ["layers[1].type", "' linear'", "nearest: linear"],
        ),
        (b"[" * 10**5, ["not JSON"]),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "net.json"
    path.write_bytes(content)
    line = file_refused(path)
    assert all(word in line for word in words), line


def test_a_missing_file_says_what_is_allowed(tmp_path: Path) -> None:
    line = file_refused(tmp_path / "nowhere.json")
    assert "no such file" in line
    assert "mlp" in line


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "cannot be read" in file_refused(tmp_path)


def test_a_line_break_in_the_name_of_a_wrong_file_does_not_break_the_line(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines.json"
    path.write_text('{"layers": [{"type": " linear"}]}', encoding="utf-8")
    with pytest.raises(InputError) as error:
        read(path)
    assert len(str(error.value).splitlines()) == 1
