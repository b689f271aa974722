"""A shallower model, of some of a stored model's layers."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

DEPTHS = ("n_layer", "num_hidden_layers", "num_layers", "num_decoder_layers")
"""What configs call the number of layers of a stack."""


def cut(
    stored: Mapping[str, Any], config: type, layers: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """Keeps `layers` of every stack, evenly spaced, the first and the last among them.

    Of N layers numbered from 0 it keeps `round(j (N - 1) / (layers - 1))` for j from 0
    to `layers - 1`, and numbers them afresh.

    Args:
        stored: tensors by name, such as `layers.3.mlp.up_proj.weight`.
        config: the class of the model's config.
        layers: of each stack, 2 or more.

    Returns:
        The tensors that are left, and the config fields that have changed.

    Raises:
        ValueError: a stack has fewer layers.
    """
    numbered = {name: re.match(r"(\D+)\.(\d+)\.", name) for name in stored}
    depths: dict[str, int] = {}
    for found in filter(None, numbered.values()):
        stack, i = found.groups()
        depths[stack] = max(depths.get(stack, 0), 1 + int(i))
    if layers < 2 or any(depth < layers for depth in depths.values()):
        raise ValueError(
            f"{layers} layers cannot be kept of {sorted(depths.values())}: expected 2 "
            "or more, and no more than there are"
        )
    kept = {
        stack: np.linspace(0, depth - 1, layers).round().astype(int).tolist()
        for stack, depth in depths.items()
    }
    left = {}
    for name, found in numbered.items():
        if not found:
            left[name] = stored[name]
        elif int(found[2]) in kept[found[1]]:
            stack, rest = found[1], name[found.end() :]
            left[f"{stack}.{kept[stack].index(int(found[2]))}.{rest}"] = stored[name]
    fields = {field.name for field in dataclasses.fields(config)}
    return left, {name: layers for name in DEPTHS if name in fields}
