"""A Hugging Face folder on the disk: its settings, and its tensors unread."""

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxqr.models.families import FAMILIES, Family

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_json(file: Path) -> dict[str, Any]:
    """One of a folder's JSON files.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is not JSON.
    """
    if not file.exists():
        raise FileNotFoundError(
            f"{file} does not exist: expected a Hugging Face folder, with {CONFIG} "
            f"and {WEIGHTS} in it"
        )
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}): download it again") from error


def family_in(settings: Mapping[str, Any], folder: Path) -> Family:
    """The family of a folder whose settings our module can represent.

    Raises:
        ValueError: if there is none, or it cannot.
    """
    model_type = settings.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"{folder / CONFIG} has model_type {model_type!r}; supported are "
            + ", ".join(sorted(FAMILIES))
        )
    family = FAMILIES[model_type]
    for name, accepted in family.fixed.items():
        if settings.get(name, accepted[0]) not in accepted:
            raise ValueError(
                f"{folder / CONFIG} has {name} {settings[name]!r}; supported is "
                + " or ".join(map(repr, accepted))
            )
    return family


def open_tensors(folder: Path, family: Family, files: ExitStack) -> dict[str, Any]:
    """Every stored tensor that may matter, unread, under its name without prefix.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not whole.
    """
    if (folder / WEIGHTS).exists():
        shards = [WEIGHTS]
    elif (folder / INDEX).exists():
        index = read_json(folder / INDEX).get("weight_map")
        if not index:
            raise ValueError(f"{folder / INDEX} names no files: download it again")
        shards = sorted({*index.values()})
    else:
        raise FileNotFoundError(
            f"neither {WEIGHTS} nor {INDEX} is in {folder}: download the folder's "
            "safetensors files, or load it with transformers and save it again"
        )
    stored = {}
    for shard in shards:
        if not (folder / shard).exists():
            raise FileNotFoundError(
                f"{INDEX} names {shard}, which is not in {folder}: download it again"
            )
        try:
            file = files.enter_context(safe_open(folder / shard, framework="numpy"))
        except SafetensorError as error:
            raise ValueError(
                f"{folder / shard} is not a whole safetensors file ({error}): "
                "download it again"
            ) from error
        for full in file.keys():  # noqa: SIM118 - not a dict
            name = full.removeprefix(family.prefix)
            # Checkpoints of 2018 call the scale gamma and the bias beta.
            name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
            if not re.fullmatch(family.ignored, name):
                stored[name] = file.get_slice(full)
    return stored


def same(one: Any, other: Any, rows: int = 4096) -> bool:
    """Whether two stored tensors are equal, some rows at a time."""
    if one.get_shape() != other.get_shape():
        return False
    length = one.get_shape()[0]
    parts = (slice(i, min(i + rows, length)) for i in range(0, length, rows))
    return all(np.array_equal(one[part], other[part]) for part in parts)
