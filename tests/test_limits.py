"""Limits: whatever a file holds, it is a value or one line, in under a second and a bounded memory."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_layerlist import LISTS

from harness import limits
from harness.config import FIELDS, RunConfig
from harness.errors import LONGEST, HarnessError, InputError, refusal
from harness.layerlist import parse, read
from harness.limits import MOST_BYTES, MOST_CELLS, MOST_LAYERS, MOST_PARAMETERS, MOST_VARIANTS, MOST_WIDTH
from harness.study import Study, parse_seeds

ROOT = Path(limits.__file__).resolve().parents[1]
GIGABYTE = 2**30
FILES = int(os.environ.get("HARNESS_FILES", "2500"))  # of each kind; 10,000 take a minute or two
HEAD = 'name = "x"\nquestion = "q"\nseeds = [0]\n'
LIST = f'{HEAD}design = "list"\n'
FACTORIAL = f'{HEAD}design = "factorial"\n[factors]\n'


def refused(call: Callable[[], object]) -> str:
    """The one line that refuses what a call was given."""
    with pytest.raises(InputError) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# files as Hypothesis draws them, as text: values of Python could not say a key twice

WORDS = [
    "linear",
    "relu",
    "dropout",
    "batch_norm",
    " linear",
    "mlp",
    "tanh",
    "none",
    "sgd",
    "list",
    "factorial",
    "final/val_loss",
]
TEXTS = (
    st.sampled_from(WORDS)
    | st.text(max_size=8)
    | st.sampled_from(["", "\0", "\x1b[31m", "‮", "é", "\ud800", "x" * 3000, "../" * 90])
)
STRINGS = TEXTS.map(lambda text: json.dumps(text)) | TEXTS.map(lambda text: f'"{text}"')  # the second as it comes
NUMBERS = st.sampled_from(
    ["0", "1", "64", "-1", "0.3", "-0.0", "1e999", "nan", "-inf", "NaN", "0x1F", "07", "9" * 30, "1" * 5000, f"0x{'f' * 5000}"]
)
SCALARS = STRINGS | NUMBERS | st.integers().map(str) | st.sampled_from(["true", "null", "false", "1979-05-27", "07:32:00", ""])
LIST_KEYS = ["type", "size", "rate", "layers", "input_size", "num_classes"]


def of_pairs(equals: str, keys: st.SearchStrategy[str], inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Objects whose keys may stand twice."""
    pairs = st.lists(st.tuples(keys, inner), max_size=4)
    return pairs.map(lambda found: "{" + ", ".join(f"{key}{equals}{value}" for key, value in found) + "}")


def nested(equals: str, keys: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    lists = lambda inner: st.lists(inner, max_size=4).map(lambda found: f"[{', '.join(found)}]")  # noqa: E731
    return st.recursive(SCALARS, lambda inner: lists(inner) | of_pairs(equals, keys, inner), max_leaves=8)


JSON_KEYS = (st.sampled_from(LIST_KEYS) | st.text(max_size=4)).map(json.dumps)
JSON = nested(": ", JSON_KEYS)
LAYER = st.sampled_from(
    ['{"type": "linear", "size": 64}', '{"type": "relu"}', '{"type": "dropout", "rate": 0.3}', '{"type": "batch_norm"}']
)
ODD_LAYER = LAYER | LAYER | JSON | of_pairs(": ", JSON_KEYS, JSON)
WITH_LAYERS = st.lists(ODD_LAYER, max_size=5).map(lambda found: f'{{"layers": [{", ".join(found)}]}}')
LAYER_LISTS = LISTS.map(json.dumps) | JSON | WITH_LAYERS

FIELD = st.sampled_from([*FIELDS, "name", "self", "", "a"])
TOML_KEYS = FIELD.map(lambda key: key or '""') | st.lists(FIELD, min_size=1, max_size=4).map(".".join) | STRINGS
TOML = nested(" = ", TOML_KEYS)
GOOD = {
    "lr": "[0.1, 1]", "act": '["tanh", "relu"]', "epochs": "[1, 2]", "network": '["mlp", "net.json"]', "data_dir": '["a", "b"]',
}  # fmt: skip
FACTORS = st.lists(
    st.tuples(st.sampled_from(sorted(GOOD)), st.none() | st.none() | TOML),
    min_size=1,
    max_size=3,
    unique_by=lambda pair: pair[0],
)
TABLES = FACTORS.map(lambda found: "[factors]\n" + "".join(f"{field} = {level or GOOD[field]}\n" for field, level in found))
KEYED = st.tuples(TOML_KEYS | st.sampled_from(sorted(Study.model_fields)), TOML).map(lambda pair: f"{pair[0]} = {pair[1]}\n")
HEADS = st.sampled_from([HEAD, HEAD.replace("[0]", "'0..3'"), ""])
DESIGNS = st.sampled_from(['design = "factorial"\n', 'design = "one_factor_at_a_time"\n'])
ROWS = st.lists(st.tuples(TEXTS.map(json.dumps) | st.just("'a'"), st.just("") | KEYED), max_size=3).map(
    lambda rows: 'design = "list"\n' + "".join(f"[[variants]]\nname = {name}\n{more}" for name, more in rows)
)
LINES = [*HEAD.splitlines(keepends=True), "[base]\n", "[factors]\n", "[[variants]]\n"]
STUDIES = st.one_of(
    st.tuples(HEADS, DESIGNS, TABLES, st.just("") | KEYED).map("".join),
    st.tuples(HEADS, ROWS).map("".join),
    st.lists(KEYED | st.sampled_from(LINES), max_size=8).map("".join),
)


class File(NamedTuple):
    """What is written: Hypothesis keeps all that it draws, and ten million bytes each would be too much."""

    start: bytes
    again: bytes = b""
    times: int = 0
    end: bytes = b""

    def write(self, path: Path) -> None:
        path.write_bytes(self.start + self.again * self.times + self.end)


@st.composite
def hostile(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> File:
    """A text as it is, cut, with junk in it, with a part of it many times over, or deep inside of brackets."""
    content = draw(texts).encode("utf-8", "surrogatepass")
    how = draw(st.sampled_from(["whole", "whole", "whole", "cut", "junk", "again", "deep"]))
    place, end = sorted(draw(st.tuples(st.integers(0, len(content)), st.integers(0, len(content)))))
    size = draw(st.sampled_from([10, 1000, 50_000, MOST_BYTES // 2, MOST_BYTES // 2, 10**7]))
    match how:
        case "cut":
            return File(content[:place])
        case "junk":
            junk = draw(st.binary(max_size=4) | st.sampled_from([b"\xff", b"\0", b"\xef\xbb\xbf", b"\x1b[2J"]))
            return File(content[:place], junk, 1, content[place:])
        case "again" if place < end:
            return File(content[:place], content[place:end], size // (end - place), content[end:])
        case "deep":
            opening = draw(st.sampled_from([b"[", b'{"layers":', b'{"layers":[', b"{a=", b"a.", b'"\'".', b"[["]))
            return File(content[:place], opening, size // len(opening))
    return File(content)


KINDS: dict[str, tuple[st.SearchStrategy[File], Callable[[Path], int]]] = {
    "layers": (hostile(LAYER_LISTS), lambda path: read(path).parameters),
    "studies": (hostile(STUDIES), lambda path: len(Study.read(path).cells)),
}


def fuzz(kind: str, examples: int) -> None:
    """Read so many files; prints how many were values and how many refused, the slowest, the longest line, the memory."""
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTE, GIGABYTE))
    files, reading = KINDS[kind]
    found: Counter[str] = Counter()
    slowest, longest = 0.0, 0
    path = Path(tempfile.mkdtemp()) / "x.toml"

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(files)
    def each(file: File) -> None:
        nonlocal slowest, longest
        file.write(path)
        began = time.process_time()
        try:
            assert reading(path) <= max(MOST_PARAMETERS, MOST_CELLS)
            found["values"] += 1
        except InputError as error:
            line = str(error)
            assert line.isprintable(), line
            assert len(line) <= 800, line
            longest = max(longest, len(line))
            found["refused"] += 1
        seconds = time.process_time() - began
        assert seconds < 1, f"{seconds} s"
        slowest = max(slowest, seconds)

    each()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({**found, "slowest": round(slowest, 3), "longest": longest, "megabytes": peak}))


def in_a_small_process(code: str, timeout: float) -> Any:
    """What a process that may have a gigabyte prints as JSON."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, "\n".join(line[:200] for line in done.stderr.splitlines()[-40:])
    return json.loads(done.stdout)


def fuzzed(kind: str, examples: int, timeout: float) -> None:
    found = in_a_small_process(f"import test_limits; test_limits.fuzz({kind!r}, {examples})", timeout)
    print(kind, found)
    assert found["values"] + found["refused"] >= examples
    assert min(found["values"], found["refused"]) > examples / 50, "of both there must be some"


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_file_holds_is_a_value_or_one_line(kind: str) -> None:
    fuzzed(kind, 300, 60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_thousands_of_files_hold_is_a_value_or_one_line(kind: str) -> None:
    fuzzed(kind, FILES, 900)


# files that would take minutes or gigabytes, were they read to their end


def study(*parts: str) -> Callable[[], object]:
    return partial(Study.parse, "".join(parts), Path("x"))


def keys(*names: object) -> str:
    """An object's keys without its brackets."""
    return ", ".join(f'"{name}": 1' for name in names)


RELUS = json.dumps({"layers": [{"type": "relu"}] * 900})
BOMBS: dict[str, Callable[[], object]] = {
    "a key of 8,000 parts": study("a." * 8000, "b = 1"),
    "a key of 8,000 parts in quotes": study('"\\"".' * 8000, "b = 1"),
    "a key of 8,000 parts in a table": study(LIST, "[base]\nx = {", "a . " * 8000, "b = 1}"),
    "a table of 8,000 parts": study("[", "a." * 8000, "b]\n", *(f"k{k} = 1\n" for k in range(9000))),
    "an integer of 5,000 digits": study("x = ", "1" * 5000),
    "a level of 20,000 bits": study(FACTORIAL, "epochs = [0x1", "0" * 5000, "]\n"),
    "2 to the power of 8,000 variants": study(FACTORIAL, *(f"a{k} = [1, 2]\n" for k in range(8000))),
    "a layer list with 2,000 levels": study(
        FACTORIAL, f"network = ['{RELUS}']\nlr = {list(range(1, 2001))}\noptimizer = ['sgd', 'adm']"
    ),
    "2,500 variants beside a layer list": study(
        LIST, f"base = {{network = '{RELUS}'}}\n", *(f"[[variants]]\nname = 'a{k}'\n" for k in range(2500)), "lr = -1"
    ),
    "seeds that are letters": study(LIST.replace("[0]", f"[{'1.5,' * 30_000}]")),
    "a level of 130,000 letters": study(FACTORIAL, f"act = ['{'ab' * 65_000}']"),
    "a million cells": study(FACTORIAL, f"lr = {list(range(1, 1001))}\nhidden_dim = {list(range(1, 1001))}"),
    "seeds to a billion": partial(parse_seeds, "0..999999999"),
    "a key twice, the last of 10,000": partial(parse, "{" + keys(*range(10_000), 9_999) + "}"),
    "10 MB of keys": partial(parse, "{" + keys(*range(800_000)) + "}"),
    "10,000 keys in a layer": partial(parse, '{"layers": [{"type": "relu", ' + keys(*range(9_000)) + "}]}"),
    "60,000 wrong layers": partial(parse, {"layers": [1] * 60_000}),
    "a type of 10 MB": partial(parse, {"layers": [{"type": "ab" * 5 * 10**6}]}),
    "no end": partial(read, "/dev/zero"),
    "a study without end": partial(Study.read, "/dev/zero"),
}


def refuse_bombs() -> None:
    """Print the seconds and the line of each."""
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTE, GIGABYTE))
    found = {}
    for name, call in BOMBS.items():
        began = time.process_time()
        try:
            line = f"not refused: {call()!r}"[:200]
        except InputError as error:
            line = f"refused: {error}"
        except Exception as error:
            line = f"{type(error).__name__}: {error}"
        found[name] = [time.process_time() - began, line]
        if found[name][0] > 20:
            break
    print(json.dumps(found))


@pytest.fixture(scope="module")
def bombs() -> dict[str, tuple[float, str]]:
    found: dict[str, tuple[float, str]] = in_a_small_process("import test_limits; test_limits.refuse_bombs()", 120)
    return found


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_refused_in_under_a_second_and_a_gigabyte(name: str, bombs: dict[str, tuple[float, str]]) -> None:
    seconds, line = bombs[name]
    assert line.startswith("refused: "), line
    assert len(line) < 520, line
    assert seconds < 1


# each limit is where it is said to be


def test_as_many_layers_as_allowed_are_a_list_and_one_more_is_none() -> None:
    layers = [{"type": "relu"}] * MOST_LAYERS
    assert len(parse({"layers": layers}).layers) == MOST_LAYERS
    for value in ({"layers": [*layers, layers[0]]}, json.dumps({"layers": [*layers, layers[0]]})):
        assert refused(lambda given=value: parse(given, "n.json")) == "n.json: 1001 layers; allowed: at most 1000"


def test_a_thousand_layers_fit_in_a_file_however_they_are_written(tmp_path: Path) -> None:
    layers = parse({"layers": [{"type": "linear", "size": 300}, {"type": "dropout", "rate": 0.1 + 0.2}] * (MOST_LAYERS // 2)})
    path = tmp_path / "net.json"
    path.write_text(json.dumps(json.loads(layers.text()), indent=4), encoding="utf-8")
    assert read(path) == layers
    assert RunConfig.from_json(RunConfig(network=layers).json_text()).network == layers


def test_file_of_the_largest_size_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    content = f"{LIST}[[variants]]\nname = 'a'\n"
    path.write_text(content + "\n" * (MOST_BYTES - len(content)), encoding="utf-8")
    assert Study.read(path).name == "x"
    path.write_text(content + "\n" * (MOST_BYTES - len(content) + 1), encoding="utf-8")
    assert refused(lambda: Study.read(path)).endswith("cannot be read: too long; allowed: at most 131072 bytes")
    path.write_text('{"layers": []' + " " * MOST_BYTES + "}", encoding="utf-8")
    assert refused(lambda: read(path)).endswith("cannot be read: too long; allowed: at most 131072 bytes")
    assert refused(lambda: RunConfig(network=path.read_text())) == "network: not JSON: too long; allowed: at most 131072 bytes"


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """To open a pipe that nobody writes to takes for ever."""
    os.mkfifo(pipe := tmp_path / "pipe.toml")
    for path in (pipe, Path("/dev/null"), tmp_path):
        for call in (lambda given=path: read(given), lambda given=path: Study.read(f"{given}")):
            refused(call)
    assert "a directory or device, not a file" in refused(lambda: read(pipe))
    assert "a directory or device, not a file" in refused(lambda: Study.read(pipe))


@given(LISTS)
def test_parameters_of_a_list_are_those_of_its_network(value: dict[str, object]) -> None:
    from harness.architecture import architecture

    layers = parse(value)
    assert layers.parameters == architecture(layers).parameters


def test_as_many_parameters_as_allowed_are_a_list_and_more_are_none() -> None:
    def of(size: int) -> dict[str, Any]:
        return {"input_size": 9_998, "num_classes": 1, "layers": [{"type": "linear", "size": size}]}

    largest = max(size for size in range(9_000, 11_000) if 9_999 * size + size + 1 <= MOST_PARAMETERS)
    assert parse(of(largest)).parameters <= MOST_PARAMETERS
    line = refused(lambda: parse(of(largest + 1), "n.json"))
    assert line == f"n.json: {9_999 * (largest + 1) + largest + 2} parameters; allowed: at most 100000000"


def test_every_mlp_that_is_allowed_has_fewer_parameters_than_a_list_may_have() -> None:
    from harness.architecture import architecture

    assert architecture(RunConfig(hidden_dim=MOST_WIDTH, norm="batchnorm")).parameters < MOST_PARAMETERS


def test_variants_and_cells_end_where_they_are_said_to() -> None:
    def of(variants: int, seeds: int) -> Study:
        factors = {"lr": list(range(1, variants + 1))}
        return Study(name="x", question="q", design="factorial", seeds=list(range(seeds)), factors=factors)

    assert len(of(MOST_VARIANTS, 10).cells) == MOST_CELLS
    for variants, seeds in ((MOST_VARIANTS + 1, 1), (MOST_VARIANTS, 11)):
        line = refused(lambda v=variants, s=seeds: of(v, s))
        assert line == f"study x: {variants} variants x {seeds} seeds; allowed: at most 10000 variants and 100000 cells"


def test_long_text_of_seeds_is_read_to_its_end() -> None:
    """It was once cut after 100,000 characters, in the middle of a seed."""
    seeds = list(range(10**6, 10**6 + 16_000))
    assert parse_seeds(",".join(map(str, seeds))) == seeds
    assert "seeds=" in refused(lambda: parse_seeds(",".join(map(str, range(10**6, 10**6 + 20_000)))))


def test_names_that_a_database_would_not_keep_are_refused() -> None:
    values: dict[str, Any] = {"name": "x", "question": "q", "design": "factorial", "seeds": [0]}
    assert Study(**values, factors={"data_dir": ["x" * 191]}).rows[0].name == f"data_dir={'x' * 191}"
    assert "at most 200 characters" in refused(lambda: Study(**values, factors={"data_dir": ["x" * 192]}))


def test_a_run_that_would_not_fit_in_memory_is_refused() -> None:
    from harness.architecture import architecture
    from harness.data import load
    from harness.training import check

    data = load("mnist_5k", "unused")
    wide = {"layers": [{"type": "linear", "size": 60_000}, *[{"type": "relu"}] * 500]}
    for config in (RunConfig(hidden_dim=MOST_WIDTH, optimizer="adam"), RunConfig(batch_size=4000, hidden_dim=10_000)):
        check(architecture(config), config, data)
    for config in (RunConfig(hidden_dim=MOST_WIDTH, batch_size=4000), RunConfig(network=wide)):
        line = refused(lambda given=config: check(architecture(given), given, data))
        assert f"batch_size={config.batch_size}" in line
        assert line.endswith("in memory; allowed: at most 1000000000")


@pytest.mark.parametrize(
    "text", ['{"lr": 1, "lr": 2}', '{"act": "relu", "seed": 1, "act": "tanh"}', '{"network": {"a": 1, "a": 1}}']
)
def test_config_that_says_something_twice_is_refused(text: str) -> None:
    assert "stands twice" in refused(lambda: RunConfig.from_json(text))


# errors


@given(st.text())
def test_an_error_is_one_printable_line(text: str) -> None:
    for error in (HarnessError(text), InputError(refusal("act", text, ["relu"]))):
        assert str(error).isprintable()
        assert type(error)(str(error)).args == error.args


def test_an_error_leaves_out_the_middle_of_what_is_too_long() -> None:
    line = str(InputError(f"begin {'x' * 10**6} end"))
    assert len(line) <= LONGEST
    assert re.fullmatch(r"begin x+ \.\.\. x+ end", line)


# the docs say so


def test_docs_say_the_limits() -> None:
    networks = (ROOT / "experiments" / "networks" / "README.md").read_text(encoding="utf-8")
    for limit in (MOST_LAYERS, MOST_WIDTH, MOST_PARAMETERS, MOST_BYTES):
        assert f"{limit:,}" in networks
    studies = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for limit in (MOST_VARIANTS, MOST_CELLS, MOST_BYTES, limits.MOST_NUMBERS, limits.LONGEST_NAME):
        assert f"{limit:,}" in studies
