"""What a run is: one frozen, flat value that the command line, MLproject and the store all speak."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from sys import float_info
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from harness import layerlist
from harness.errors import InputError, refusal
from harness.layerlist import LayerList
from harness.limits import LONGEST_PATH, MOST_WIDTH, strict_json


@lru_cache
def levels(table: str) -> tuple[str, ...]:
    """The names of a table such as `components/norms.NORMS`, read from its source.

    Importing the table would import torch, two seconds for a typing error; its source takes milliseconds
    and leaves the table the one place where a level is declared.
    """
    file, name = table.split(".")
    tree = ast.parse(resources.files("harness").joinpath(f"{file}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            assert isinstance(node.value, ast.Dict)
            return tuple(key.value for key in node.value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
    raise LookupError(f"no table {name} in {file}.py")


CHOICES: Mapping[str, str | tuple[str, ...]] = {
    "init": "components/inits.INITS",
    "act": "components/activations.ACTIVATIONS",
    "norm": "components/norms.NORMS",
    "optimizer": "components/optimizers.OPTIMIZERS",
    "dataset": "data.DATASETS",
    "normalize": ("unit", "standard"),
    "device": ("cpu", "cuda", "auto"),
}


def choices(field: str) -> tuple[str, ...]:
    """The names that a parameter of names takes, in the order of its table."""
    names = CHOICES[field]
    if isinstance(names, tuple):
        return names
    return (*(("auto",) if field == "dataset" else ()), *levels(names))


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a truth value is not a number")
    return value


def _normal(value: float) -> float:
    """0 for a denormal, which a process that flushes those, as one that trains does, reads as 0; and for -0."""
    return value if abs(value) >= float_info.min else 0.0


def _network(value: object) -> object:
    """A path (or `mlp`) stays text; a JSON object, or its text, becomes a LayerList."""
    if isinstance(value, Mapping) or (isinstance(value, str) and value.lstrip().startswith("{")):
        return layerlist.parse(dict(value) if isinstance(value, Mapping) else value)
    return str(value) if isinstance(value, Path) else value


# le: spawn keys, epochs and sizes beyond these bounds are typing errors, and none of them would ever finish
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=10**9)]
Natural = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=2**63 - 1)]
Real = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False), AfterValidator(_normal)]


def _field(default: Any, about: str, allowed: str = "", **bounds: Any) -> Any:
    return Field(default, description=about, json_schema_extra={"allowed": allowed}, **bounds)


class RunConfig(BaseModel):
    """One combination to train. Frozen; equal values train to equal bits on equal data.

    Raises InputError (a ValueError) in one line for any value that is not allowed, also for unknown names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    init: str = _field("normal", "how parameters start")
    act: str = _field("tanh", "activation of the hidden layer")
    norm: str = _field("none", "normalization before the activation")
    optimizer: str = _field("sgd", "update rule")
    seed: Natural = _field(0, "root of every stream of randomness", "a whole number from 0 to 9223372036854775807")
    lr: Real = _field(0.01, "learning rate", "a finite number above 0, no denormal", ge=float_info.min)
    weight_decay: Real = _field(0.0, "L2 penalty; decoupled for adamw", "a finite number from 0", ge=0)
    dropout: Real = _field(0.0, "share of hidden features zeroed", "a number from 0 up to, not including, 1", ge=0, lt=1)
    epochs: Count = _field(10, "passes over the training set", "a whole number from 1 to 1000000000")
    batch_size: Count = _field(32, "samples a step", "a whole number from 1 to 1000000000")
    hidden_dim: Count = _field(128, "width of the hidden layer", f"a whole number from 1 to {MOST_WIDTH}", le=MOST_WIDTH)
    max_batches: Natural = _field(
        0, "minibatches an epoch, train and test alike; 0 = all", "a whole number from 0 to 9223372036854775807"
    )
    network: str | LayerList = _field("mlp", "mlp, or the path of a JSON layer list")
    dataset: str = _field("auto", "what to learn; auto = mnist, else mnist_5k")
    normalize: str = _field("unit", "pixels in [0,1], or standardized")
    validation: Real = _field(0.0, "share of the training set held out", "a number from 0 up to, not including, 1", ge=0, lt=1)
    device: str = _field("cpu", "where to train")
    data_dir: str = _field(
        "~/.cache/harness/data",
        "torchvision root of the data files",
        f"a folder's path of at most {LONGEST_PATH} characters",
        max_length=LONGEST_PATH,
    )

    def __init__(self, /, **values: Any) -> None:
        for name in values:
            if name not in FIELDS:
                raise InputError(refusal("parameter", name, FIELDS))
        if "network" in values:
            values["network"] = _network(values["network"])
        if isinstance(values.get("data_dir"), Path):
            values["data_dir"] = str(values["data_dir"])
        for name in CHOICES:
            if name in values and not (isinstance(values[name], str) and values[name] in choices(name)):
                raise InputError(refusal(name, values[name], choices(name)))
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            raise InputError(refusal(name, values[name], allowed(name))) from None
        ignored = [
            name
            for name in ("act", "norm", "dropout", "hidden_dim")
            if self.network != "mlp" and getattr(self, name) != FIELDS[name].default
        ]
        if ignored:
            raise InputError(
                f"{ignored[0]}={_text(getattr(self, ignored[0]))} says nothing beside a layer list, "
                f"which names its own layers; leave it out, or use network=mlp"
            )

    def changed(self) -> dict[str, str]:
        """The text of the fields that differ from their defaults."""
        return {name: text for name, text in self.text().items() if getattr(self, name) != FIELDS[name].default}

    def text(self) -> dict[str, str]:
        """The canonical text of every field: `RunConfig(**config.text()) == config`."""
        return {name: _text(getattr(self, name)) for name in FIELDS}

    def replace(self, **values: Any) -> Self:
        """A checked copy with some fields changed."""
        return type(self)(**{**{name: getattr(self, name) for name in FIELDS}, **values})

    def layers(self) -> LayerList | None:
        """The layer list that `network` names, read from its file if need be; None for `mlp`."""
        if isinstance(self.network, LayerList):
            return self.network
        return None if self.network == "mlp" else layerlist.read(self.network)

    def with_layers(self) -> Self:
        """A copy that holds the layer list itself where this one names a file."""
        layers = self.layers()
        return self if layers is None else self.replace(network=layers)

    def json_text(self) -> str:
        """The typed value as JSON text, keys in the order of the table; `from_json` reads it back."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The config that `json_text` wrote. Raises InputError when the text is not one."""
        try:
            values = strict_json(text if isinstance(text, str) else text.decode())
        except ValueError as error:
            raise InputError(f"config.json is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise InputError("config.json is not an object of parameters")
        return cls(**values)

    @property
    def digest(self) -> str:
        """SHA-256 of the resolved config. Where the data lies is left out; what it is, `data_digest` says."""
        values = self.model_dump(mode="json", exclude={"data_dir"})
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def label(self, name: str) -> str:
        """A field's text in the alphabet of tags; a network goes by the stem of its file."""
        value = getattr(self, name)
        if isinstance(value, LayerList):
            return f"layers-{value.digest[:8]}"
        return slug(Path(value).stem or "file") if name == "network" else slug(_text(value))

    def differs(self) -> dict[str, str]:
        """What differs from the defaults, seed and machine aside: `{"act": "relu"}`."""
        return {name: self.label(name) for name in self.changed() if name not in ("seed", "device", "data_dir")}

    @property
    def condition(self) -> str:
        """`differs` as text, `act=relu norm=layernorm`; `base` where nothing does."""
        return " ".join(f"{name}={text}" for name, text in self.differs().items()) or "base"


FIELDS = RunConfig.model_fields


def allowed(field: str) -> str:
    """What a parameter takes, in words."""
    if field in CHOICES:
        return ", ".join(choices(field))
    extra = FIELDS[field].json_schema_extra
    return (str(extra["allowed"]) if isinstance(extra, dict) else "") or FIELDS[field].description or "text"


def slug(text: str) -> str:
    """`text` in the alphabet of tags and run names, `[a-z0-9 ._=-]`."""
    return re.sub(r"[^a-z0-9 ._=-]+", "-", text.lower())


def _text(value: object) -> str:
    """One spelling for each value: 0.1, 1e-05, 0 (never 0.0), canonical JSON for a layer list."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0").replace("e+", "e")  # a tag has no plus sign
    return value.text() if isinstance(value, LayerList) else str(value)
