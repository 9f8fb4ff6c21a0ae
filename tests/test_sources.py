"""The code digest: moves with whatever can move a run's numbers, stays with all else. Edits are real, processes fresh."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from harness import data, sources
from harness.architecture import architecture
from harness.config import RunConfig
from harness.sources import code_digest
from harness.training import Stack, evaluate, exact_arithmetic, train

HOUSE = Path(sources.__file__).resolve().parent
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"dataset": "mnist_5k"},
    "other": {"dataset": "mnist_5k", "init": "kaiming", "act": "silu", "norm": "batchnorm", "optimizer": "adam"},
    "gelu": {"dataset": "mnist", "init": "orthogonal", "act": "gelu", "norm": "layernorm", "optimizer": "rmsprop"},
    "list": {
        "dataset": "mnist_5k",
        "init": "torch",
        "network": {"layers": [{"type": "batch_norm"}, {"type": "linear", "size": 4}, {"type": "sigmoid"}, {"type": "gelu"}]},
    },
}
ALL = set(CONFIGS)
SAY = """
import json, sys
from harness.config import RunConfig
from harness.sources import code_digest
print(json.dumps([code_digest(RunConfig.from_json(text)) for text in json.load(sys.stdin)]))
print(sorted({"torch", "mlflow", "pandas", "numpy"} & set(sys.modules)))
"""
EDIT = """
import json, sys
from pathlib import Path

def digests(texts, anew="harness"):
    for name in [name for name in sys.modules if name.startswith(anew)]:
        del sys.modules[name]
    from harness.config import RunConfig
    from harness.sources import code_digest
    return [code_digest(RunConfig.from_json(text)) for text in texts]

texts, edits = json.load(sys.stdin)
before, found = digests(texts), []
for file, edited in edits:
    path = Path("harness") / file
    kept = path.read_text(encoding="utf-8")
    path.write_text(edited, encoding="utf-8")
    found.append(digests(texts, "harness" if file == "layerlist.py" else "harness.sources"))
    path.write_text(kept, encoding="utf-8")
    if file == "layerlist.py":
        digests(texts)
assert digests(texts) == before
print(json.dumps(found))
"""


def said(folder: Path, code: str, given: object, hash_seed: str = "0") -> list[str]:
    """The lines that a fresh process prints, with the package in `folder`."""
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONHASHSEED": hash_seed, "PYTHONDONTWRITEBYTECODE": "1"}
    command, text = [sys.executable, "-c", code], json.dumps(given)
    done = subprocess.run(command, env=env, cwd=folder, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


TEXTS = [RunConfig(**values).json_text() for values in CONFIGS.values()]


def digests(folder: Path) -> dict[str, str]:
    """The digest of each config by the package in `folder`."""
    return dict(zip(CONFIGS, json.loads(said(folder, SAY, TEXTS)[0]), strict=True))


def package(folder: Path) -> Path:
    """A folder with a copy of the package, to be edited."""
    shutil.copytree(HOUSE, folder / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    """The digests of the package as it is."""
    return digests(HOUSE.parent)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return package(tmp_path)


def edited(folder: Path, file: str, old: str, new: str) -> str:
    """The text of a file after an edit."""
    text = (folder / "harness" / file).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file} has {old!r} {text.count(old)} times"
    return text.replace(old, new)


def moved(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """The configs whose digests differ."""
    return {name for name in before if before[name] != after[name]}


# what cannot move a number

ROW_IN = {
    "components/activations.py": ('    "relu": Activation(', '    "mine": Activation(nn.Mish),\n    "relu": Activation('),
    "components/norms.py": ('"none": None,', '"mine": LayerNormScratch(1e-3),\n    "none": None,'),
    "components/inits.py": ('    "lecun": Init(', '    "mine": Init(_normal),\n    "lecun": Init('),
    "components/optimizers.py": ('    "adam": Adam(),', '    "mine": SGD(momentum=0.5),\n    "adam": Adam(),'),
    "data.py": ('    "kmnist": Source(', '    "mine": Source({}, 0.5, 0.5),\n    "kmnist": Source('),
}
HARMLESS: dict[str, tuple[str, str, str]] = {
    "a comment": ("training.py", "        stack.epoch += 1\n", "        # onwards\n        stack.epoch += 1  # by one\n"),
    "a docstring of a function": ("training.py", '    """Train all lanes to the last epoch;', '    """Trains every lane;'),
    "a docstring of a class": ("components/layers.py", '    """y = x W + b;', '    """The affine map y = x W + b;'),
    "a docstring more": (
        "components/activations.py",
        "    def parameters(self, features: int) -> Shapes:\n        return {}\n",
        '    def parameters(self, features: int) -> Shapes:\n        """None."""\n        return {}\n',
    ),
    "a docstring of a module": ("seeding.py", '"""Named streams of randomness:', '"""Streams of randomness, by name:'),
    "line breaks and brackets": (
        "training.py",
        "        means = [batches.curves(lane) for lane in range(lanes)]\n",
        "        means = [\n            (batches.curves(lane))\n            for lane in range(lanes)\n        ]\n\n",
    ),
    "quotes": ("seeding.py", '{"init": 0,', "{'init': 0,"),
    "an import more": ("training.py", "import time\n", "import math\nimport time\n"),
    "a function that nobody calls": (
        "training.py",
        "\ndef measured(",
        "\ndef nobody_calls_this() -> int:\n    return 1\n\n\ndef measured(",
    ),
    "the check before training": ("training.py", "if config.batch_size > learned:", "if config.batch_size >= learned + 1:"),
    "a message": ("errors.py", "is not allowed; allowed: {", "is refused; allowed: {"),
    "an option of the command line": ("commands.py", '"""Train one combination of', '"""Train a combination of'),
    "how results are stored": ("tracking.py", "value[:6000]) for key", "value[:5000]) for key"),
    "how cells are stacked": ("stacks.py", "MOST_LANES = 16", "MOST_LANES = 15"),
    "a row that no config uses": ("components/norms.py", '"rmsnorm": RMSNorm(),', '"rmsnorm": RMSNorm(1e-6),'),
    "the code of a row that no config uses": ("components/norms.py", "torch.mul(x, x, out=at.t)", "torch.square(x, out=at.t)"),
    "a constant of a row that no config uses": ("components/activations.py", "SELU_SCALE = 1.67", "SELU_SCALE = 1.68"),
    **{f"a new row in {file}": (file, old, new) for file, (old, new) in ROW_IN.items()},
}


def test_digest_stays_with_what_cannot_move_a_number(before: dict[str, str], copy: Path) -> None:
    """All edits at once; where that moves a digest, each alone tells which."""
    texts = {case: edited(copy, *HARMLESS[case]) for case in HARMLESS}
    for file, old, new in HARMLESS.values():
        (copy / "harness" / file).write_text(edited(copy, file, old, new), encoding="utf-8")
    if not moved(before, digests(copy)):
        return
    shutil.rmtree(copy / "harness")
    edits = [(HARMLESS[case][0], text) for case, text in texts.items()]
    found = json.loads(said(package(copy), EDIT, [TEXTS, edits])[0])
    assert not [case for case, after in zip(texts, found, strict=True) if after != list(before.values())]


# what can

MOVING: dict[str, tuple[str, str, str, set[str]]] = {
    "the loop": ("training.py", "    stack.steps += 1\n", "    stack.steps += 2\n", ALL),
    "the shuffle": ("training.py", 'stream(seed, "shuffle", self.epoch)', 'stream(seed, "shuffle", self.epoch + 1)', ALL),
    "the batch of evaluation": ("training.py", "EVALUATION_BATCH = 1000", "EVALUATION_BATCH = 500", ALL),
    "denormals": ("training.py", "torch.set_flush_denormal(True)", "torch.set_flush_denormal(False)", ALL),
    "threads": ("training.py", "torch.set_num_threads(1)", "torch.set_num_threads(2)", ALL),
    "a constant of streams": ("seeding.py", "\nVERSION = 1", "\nVERSION = 2", ALL),
    "the number of a stream": ("seeding.py", '"init": 0, "shuffle": 1', '"init": 1, "shuffle": 0', ALL),
    "the loss": ("components/layers.py", "(logits, 1, False, out=out)", "(logits, 2, False, out=out)", ALL),
    "a helper of a layer": ("components/layers.py", "share = 1 if 1 in", "share = 2 if 1 in", ALL),
    "the padding of lanes": ("network.py", "CACHE_LINE = 16", "CACHE_LINE = 8", ALL),
    "the health probe": ("health.py", "PROBE_SAMPLES = 256", "PROBE_SAMPLES = 128", ALL),
    "what counts as diverged": ("results.py", "DIVERGED = 1e4", "DIVERGED = 1e5", ALL),
    "the size of networks": ("architecture.py", "PIXELS, CLASSES = 784, 10", "PIXELS, CLASSES = 784, 11", ALL),
    "how pixels are scaled": ("data.py", "BRIGHTEST = torch.tensor(255.0)", "BRIGHTEST = torch.tensor(256.0)", ALL),
    "how data is split": ("data.py", "len(rows) * 4 // 5 :]", "len(rows) * 3 // 4 :]", ALL),
    "a row of a dataset": ("data.py", "std=0.3081,\n        torchvision=", "std=0.5,\n        torchvision=", {"gelu"}),
    "types of lists": ("layerlist.py", '"batch_norm": "batchnorm"', '"batch_norm": "batchnorm_scratch"', {"list"}),
    "a row of an init": ("components/inits.py", '(2 / fan_in) ** 0.5', '(3 / fan_in) ** 0.5', {"other"}),
    "the function of an init": ("components/inits.py", "r.diagonal().sign()", "r.diagonal().sgn()", {"gelu"}),
    "a row of an activation": ("components/activations.py", "aten.silu.out, z, out", "aten.selu.out, z, out", {"other"}),
    "the function of an activation": ("components/activations.py", "mul_(0.5).mul_(z)", "mul_(z)", {"gelu", "list"}),
    "an activation of a list": ("components/activations.py", "nn.Sigmoid,", "nn.Hardsigmoid,", {"list"}),
    "a row of a norm": ("components/norms.py", '"layernorm": LayerNorm(),', '"layernorm": LayerNorm(1e-6),', {"gelu"}),
    "the class of a norm": ("components/norms.py", "native_batch_norm.out, ", "batch_norm.out, ", {"other", "list"}),
    "the parent of a norm": ("components/norms.py", "torch.mean(x, 2,", "torch.mean(x, -1,", {"gelu"}),
    "the parent of another": ("components/norms.py", "momentum: float = 0.1", "momentum: float = 0.2", {"other", "list"}),
    "a row of an optimizer": ("components/optimizers.py", '"adam": Adam(),', '"adam": Adam(eps=1e-7),', {"other"}),
    "the class of an optimizer": ("components/optimizers.py", "alpha: float = 0.99", "alpha: float = 0.9", {"gelu"}),
    "the class of several": ("components/optimizers.py", "dampening=0.0", "dampening=0.1", {"plain", "list"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The digests after each edit; what reads it is imported anew for each, in one process."""
    folder = package(tmp_path_factory.mktemp("moving"))
    edits = [(file, edited(folder, file, old, new)) for file, old, new, _ in MOVING.values()]
    found = json.loads(said(folder, EDIT, [TEXTS, edits])[0])
    return {case: dict(zip(CONFIGS, came, strict=True)) for case, came in zip(MOVING, found, strict=True)}


@pytest.mark.parametrize("case", MOVING)
def test_digest_moves_with(case: str, before: dict[str, str], after: dict[str, dict[str, str]]) -> None:
    assert moved(before, after[case]) == MOVING[case][3]


@pytest.mark.parametrize("name", ["torch", "numpy", "scipy"])
def test_digest_moves_with_the_version_of(name: str, before: dict[str, str], copy: Path) -> None:
    """A package's metadata that comes first on the path is the one that is found."""
    metadata = copy / f"{name}-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n", encoding="utf-8")
    assert moved(before, digests(copy)) == ALL


def defined(tree: ast.Module, name: str) -> ast.FunctionDef | ast.ClassDef:
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name)


def trained_definitions(config: RunConfig) -> set[tuple[str, str]]:
    """(file, name) of all functions and classes at the top of a module that run while data are loaded and a run trains."""
    seen: set[tuple[str, str]] = set()

    def look(frame: FrameType, event: str, argument: object) -> None:
        file, name = frame.f_code.co_filename, frame.f_code.co_qualname.split(".")[0]
        if event == "call" and file.startswith(str(HOUSE)) and not name.startswith("<"):
            seen.add((Path(file).relative_to(HOUSE).as_posix(), name))

    sys.setprofile(look)
    try:
        with exact_arithmetic():
            stack = Stack.of(architecture(config), [config], data.load(config.dataset, config.data_dir, config.normalize))
            list(train(stack))
            evaluate(stack, 0, "train")
    finally:
        sys.setprofile(None)
    return {(file, name) for file, name in seen if file not in ("config.py", "layerlist.py", "errors.py")}


@pytest.mark.slow
def test_every_definition_that_runs_in_training_moves_the_digest(tmp_path: Path, copy: Path) -> None:
    """What ran is found by watching a run, not by following names. What values say, the config digest holds."""
    values = {
        "act": "gelu",
        "norm": "batchnorm",
        "optimizer": "adam",
        "dropout": 0.1,
        "validation": 0.1,
        "normalize": "standard",
    }
    config = RunConfig(dataset="mnist_5k", epochs=1, max_batches=2, hidden_dim=8, data_dir=str(tmp_path), **values)
    ran = trained_definitions(config)
    assert {("training.py", "train"), ("data.py", "_stratified"), ("components/layers.py", "Dropout")} <= ran
    assert len(ran) > 25
    edits = []
    for file, name in sorted(ran):
        text = (HOUSE / file).read_text(encoding="utf-8")
        body = defined(ast.parse(text), name).body
        at = body[1] if ast.get_docstring(defined(ast.parse(text), name)) is not None and len(body) > 1 else body[0]
        lines = text.splitlines(keepends=True)
        first = min([at.lineno, *(node.lineno for node in getattr(at, "decorator_list", []))]) - 1
        lines.insert(first, f"{' ' * at.col_offset}moved = 1\n")
        edits.append((file, "".join(lines)))
    (now,) = json.loads(said(copy, SAY, [config.json_text()])[0])
    found = json.loads(said(copy, EDIT, [[config.json_text()], edits])[0])
    assert [name for name, came in zip(sorted(ran), found, strict=True) if came == [now]] == []


# what the following of names relies on

PATH = ("data", "seeding", "results", "architecture", "network", "health", "training")
FILES = [HOUSE / f"{name}.py" for name in PATH] + sorted((HOUSE / "components").glob("[a-z]*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_on_the_way_of_training_is_said_where_it_is_not_looked_for(path: Path) -> None:
    """Statements other than definitions, imports of harness inside a function, and names taken from a second hand."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    plain = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
    for node in tree.body:
        assert isinstance(node, plain) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)), ast.unparse(
            node
        )
    inside = [node for top in tree.body for node in ast.walk(top) if node is not top]
    assert not [node for node in inside if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("harness")]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import) and node.names[0].name.startswith("harness")]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("harness."):
            found = importlib.import_module(str(node.module))
            own = ast.parse(Path(str(found.__file__)).read_text(encoding="utf-8"))
            names = {leaf.id for top in own.body for leaf in ast.walk(top) if isinstance(leaf, ast.Name)}
            names |= {top.name for top in own.body if isinstance(top, ast.FunctionDef | ast.ClassDef)}
            imported = {
                alias.asname or alias.name for top in own.body if isinstance(top, ast.ImportFrom) for alias in top.names
            }
            for alias in node.names:
                assert alias.name in names - imported, f"{path.stem} takes {alias.name} from {node.module}, which imports it"


# what it is the same for


def test_digest_is_the_same_in_any_process_and_place_and_needs_no_torch(before: dict[str, str], copy: Path) -> None:
    for folder, seed in ((HOUSE.parent, "1"), (copy, "2")):
        line, heavy = said(folder, SAY, TEXTS, seed)
        assert json.loads(line) == list(before.values())
        assert heavy == "[]"
    assert {name: code_digest(RunConfig(**values)) for name, values in CONFIGS.items()} == before
    assert len(set(before.values())) == len(before)


def test_digest_is_the_same_for_what_is_no_code() -> None:
    """Numbers are the config's to tell apart."""
    values = {"lr": 1, "seed": 3, "epochs": 2, "hidden_dim": 7, "dropout": 0.5, "validation": 0.1, "batch_size": 5}
    base = RunConfig(dataset="mnist_5k")
    assert code_digest(base.replace(**values, normalize="standard", data_dir="elsewhere")) == code_digest(base)
    assert code_digest(base.replace(act="relu")) != code_digest(base)


def test_digest_of_a_list_depends_on_its_types_and_not_on_their_order() -> None:
    def digest(*types: str) -> str:
        layers = [{"type": name, **({"size": 3} if name == "linear" else {})} for name in types]
        return code_digest(RunConfig(dataset="mnist_5k", network={"layers": layers}))

    assert digest("linear", "relu", "batch_norm") == digest("batch_norm", "relu", "relu")
    assert digest("relu") != digest("relu", "batch_norm") != digest("relu", "layer_norm")
    assert digest("relu") == digest("dropout", "relu") != digest("tanh")


def test_digest_of_a_file_is_that_of_the_list_in_it(tmp_path: Path) -> None:
    network = CONFIGS["list"]["network"]
    (tmp_path / "net.json").write_text(json.dumps(network), encoding="utf-8")
    config = RunConfig(**{**CONFIGS["list"], "network": str(tmp_path / "net.json")})
    assert code_digest(config) == code_digest(config.with_layers()) == code_digest(RunConfig(**CONFIGS["list"]))
