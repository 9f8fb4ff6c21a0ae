"""A network as data: the layer list, validated whole before anything is built from it."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from harness.errors import InputError, refusal
from harness.limits import MOST_LAYERS, MOST_PARAMETERS, MOST_WIDTH, small_text, strict_json

Size = Annotated[int, Field(strict=True, ge=1, le=MOST_WIDTH)]
Rate = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False), AfterValidator(lambda rate: rate + 0.0)]  # no -0
WIDTH = f"a whole number from 1 to {MOST_WIDTH}"
ALLOWED = {
    "size": WIDTH,
    "rate": "a number from 0 up to, not including, 1",
    "input_size": WIDTH,
    "num_classes": WIDTH,
    "layers": "a list of objects, each with a type",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LinearSpec(_Frozen):
    """`{"type": "linear", "size": 256}`: an affine map to `size` features."""

    type: Literal["linear"]
    size: Size


class DropoutSpec(_Frozen):
    """`{"type": "dropout", "rate": 0.3}`: each feature is zeroed with probability `rate`."""

    type: Literal["dropout"]
    rate: Rate = 0.5


class PlainSpec(_Frozen):
    """`{"type": "relu"}`: a layer that needs nothing but its name."""

    type: Literal["relu", "sigmoid", "tanh", "leaky_relu", "silu", "gelu", "batch_norm", "layer_norm"]


LayerSpec = Annotated[LinearSpec | DropoutSpec | PlainSpec, Field(discriminator="type")]
NORM_TYPES = {"batch_norm": "batchnorm", "layer_norm": "layernorm"}  # types that the parameter `norm` has other names for
KEYS = {"linear": ["type", "size"], "dropout": ["type", "rate"]}
TYPES = ["linear", "dropout", *get_args(PlainSpec.model_fields["type"].annotation)]


class LayerList(_Frozen):
    """Layers from input to logits; an output linear to `num_classes` is appended by the builder."""

    input_size: Size = 784
    num_classes: Size = 10
    layers: tuple[LayerSpec, ...]

    def text(self) -> str:
        """The canonical JSON text; `parse(text)` gives an equal list."""
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"))

    @property
    def parameters(self) -> int:
        """How many numbers the network learns, the appended linear among them."""
        count, features = 0, self.input_size
        for layer in (*self.layers, LinearSpec(type="linear", size=self.num_classes)):
            if isinstance(layer, LinearSpec):
                count, features = count + (features + 1) * layer.size, layer.size
            elif layer.type in NORM_TYPES:
                count += 2 * features
        return count

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical text."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def parse(value: object, source: str = "network") -> LayerList:
    """The layer list that a JSON object (or its text) describes.

    Raises InputError with one line that names `source`, the index of the layer, what was given and what is allowed.
    """
    if isinstance(value, str):
        try:
            value = strict_json(value)
        except ValueError as error:
            raise InputError(f"{source}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{source}: not a layer list; allowed: an object with the key layers")
    if isinstance(layers := value.get("layers"), list | tuple) and len(layers) > MOST_LAYERS:
        raise InputError(f"{source}: {len(layers)} layers; allowed: at most {MOST_LAYERS}")
    try:
        found = LayerList.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{source}: {_line(error.errors()[0], value)}") from None
    if found.parameters > MOST_PARAMETERS:
        raise InputError(f"{source}: {found.parameters} parameters; allowed: at most {MOST_PARAMETERS}")
    return found


def read(path: str | Path) -> LayerList:
    """The layer list in a JSON file. Raises InputError when the file is missing, unreadable or wrong."""
    try:
        text = small_text(Path(path).expanduser())
    except FileNotFoundError:
        raise InputError(f"network={str(path)!r}: no such file; allowed: mlp, or the path of a JSON layer list") from None
    except (OSError, ValueError, RuntimeError) as error:  # also too long, not UTF-8, a zero byte, ~nobody
        raise InputError(f"network={str(path)!r}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return parse(text, str(path))


def _line(error: Any, value: dict[str, Any]) -> str:
    """One line for the first thing that pydantic found wrong."""
    place = [part for depth, part in enumerate(error["loc"]) if depth != 2]  # layers, index, the chosen type, key
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    field = str(place[-1]) if place else ""
    match error["type"]:
        case "union_tag_invalid":
            return refusal(f"{name}.type", value["layers"][place[1]]["type"], TYPES)
        case "union_tag_not_found":
            return f"{name}: the key type is missing; allowed: {', '.join(TYPES)}"
        case "extra_forbidden" if len(place) == 1:
            return refusal("key", field, list(LayerList.model_fields))
        case "extra_forbidden":
            return refusal(f"layers[{place[1]}]: key", field, KEYS.get(value["layers"][place[1]]["type"], ["type"]))
        case "missing":
            return f"{name}: is missing; allowed: {ALLOWED[field]}"
        case _:
            return refusal(name, error["input"], ALLOWED.get(field, "an object with the key type"))
