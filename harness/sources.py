"""What a run's numbers depend on in the code: a digest that moves when they may, and stays when they cannot.

From the functions that load, build and train, names are followed through the sources of harness, definition by definition.
Of a table of levels only the rows that the config uses count, so a new norm makes no finished run stale; neither does a
docstring, a comment or the command line. The versions of torch, numpy and scipy count as code.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources

from harness import numerics
from harness.config import CHOICES, RunConfig
from harness.layerlist import NORM_TYPES

ROOTS = (
    ("training", "train"),
    ("training", "exact_arithmetic"),
    ("training", "finals"),
    ("architecture", "architecture"),
    ("data", "load"),
)
TABLES = {tuple(table.replace("/", ".").rsplit(".", 1)): field for field, table in CHOICES.items() if isinstance(table, str)}
VALUES = ("errors", "config", "layerlist")  # what they say, the config digest holds
PACKAGES = ("torch", "numpy", "scipy")
Place = tuple[str, str]  # module, name


@dataclass(frozen=True)
class Module:
    """The top level of one source file: what it defines, and what it imports from harness."""

    defined: Mapping[str, ast.stmt]
    imported: Mapping[str, Place]  # a local name -> where it is defined; the name is empty for a whole module
    rest: Sequence[ast.stmt]  # what else it does when it is imported


def code_digest(config: RunConfig) -> str:
    """SHA-256 of all that can move the numbers of a run with this config: definitions, used rows, versions, numerics."""
    lines = [f"{name} {digest}\n" for name, digest in definitions(config).items()]
    lines += [f"{package} {version}\n" for package, version in _versions().items()]
    lines += ["numerics portable\n"] if numerics.current() == "portable" else []
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def definitions(config: RunConfig) -> Mapping[str, str]:
    """`training.train` -> SHA-256 of its source, for every definition that a run with this config uses."""
    return _definitions(_levels(config))


@cache
def _versions() -> Mapping[str, str]:
    return {package: metadata.version(package) for package in PACKAGES}  # it looks through all that is installed


def _levels(config: RunConfig) -> frozenset[tuple[str, str]]:
    """The rows of tables that a config uses, as (field, level)."""
    used = {(field, str(getattr(config, field))) for field in ("init", "optimizer", "dataset")}
    layers = config.layers()
    if layers is None:
        return frozenset(used | {("act", config.act), ("norm", config.norm)})
    types = {layer.type for layer in layers.layers}
    return frozenset(used | {("norm", NORM_TYPES[t]) if t in NORM_TYPES else ("act", t) for t in types})


@cache
def _definitions(levels: frozenset[tuple[str, str]]) -> Mapping[str, str]:
    found: dict[Place, str] = {}
    todo = list(ROOTS)
    while todo:
        place = todo.pop()
        if place in found or place[0] in VALUES:
            continue
        module = _module(place[0])
        if place[1] not in module.defined:  # at most handed on from where it is
            todo += [module.imported[place[1]]] if place[1] in module.imported else []
            continue
        found[place], named = _read(place, levels if place in TABLES else frozenset())
        todo += named
    return {f"{module}.{name}": digest for (module, name), digest in sorted(found.items())}


@cache  # most definitions are in use whatever the levels are
def _read(place: Place, levels: frozenset[tuple[str, str]]) -> tuple[str, Sequence[Place]]:
    """SHA-256 of a definition's source with all that its module does when it is imported, and the definitions they name."""
    module = _module(place[0])
    nodes = [*_used(place, module.defined[place[1]], levels), *module.rest]
    text = "\n".join(ast.unparse(node) for node in nodes)
    return hashlib.sha256(text.encode()).hexdigest(), [there for node in nodes for there in _names(node, place[0], module)]


def _used(place: Place, node: ast.stmt, levels: frozenset[tuple[str, str]]) -> list[ast.AST]:
    """A definition; of a table only the rows in use."""
    if place not in TABLES:
        return [node]
    assert isinstance(node, ast.AnnAssign)
    assert isinstance(node.value, ast.Dict)
    rows = zip(node.value.keys, node.value.values, strict=True)
    return [value for key, value in rows if isinstance(key, ast.Constant) and (TABLES[place], key.value) in levels]


def _names(node: ast.AST, inside: str, module: Module) -> Iterator[Place]:
    """The definitions of harness that a node names, in its own module or through an import."""
    for child in ast.walk(node):
        if isinstance(child, ast.Name) and child.id in module.defined:
            yield inside, child.id
        elif isinstance(child, ast.Name) and module.imported.get(child.id, ("", ""))[1]:
            yield module.imported[child.id]
        elif isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name) and child.value.id in module.imported:
            yield module.imported[child.value.id][0], child.attr


@cache
def _module(name: str) -> Module:
    file = resources.files("harness").joinpath(f"{name.replace('.', '/')}.py")
    tree = _Bare().visit(ast.parse(file.read_text(encoding="utf-8")))
    defined: dict[str, ast.stmt] = {}
    imported: dict[str, Place] = {}
    rest: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and (names := _assigned(node)):
            defined |= dict.fromkeys(names, node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "harness":
            base = (node.module or "").removeprefix("harness").lstrip(".")
            for alias in node.names:
                imported[alias.asname or alias.name] = (base, alias.name) if base else (alias.name, "")
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            rest.append(node)
    return Module(defined, imported, tuple(rest))


def _assigned(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    leaves = [leaf for target in targets for leaf in ast.walk(target)]
    return [leaf.id for leaf in leaves if isinstance(leaf, ast.Name) and isinstance(leaf.ctx, ast.Store)]


class _Bare(ast.NodeTransformer):
    """Takes docstrings away; comments are none of the tree."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._filled(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._filled(node)

    def _filled(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]  # a Protocol's method may have been nothing but its docstring
        return node
