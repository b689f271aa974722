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
ADAPTER = "adapter_config.json"

POINTER = b"version https://git-lfs"
"""What the text file begins with that Git LFS leaves in place of a large file."""

RESAVE = "load the folder with transformers and save it again with `save_pretrained`"
OTHER_FORMATS = {
    "*.safetensors.index.json": f"rename the index to {INDEX}",
    "model-*-of-*.safetensors": f"download {INDEX} too, which lists the parts",
    "*.safetensors": f"if it holds the whole model, rename it to {WEIGHTS}",
    "pytorch_model*.bin*": f"pickled weights are not read: {RESAVE}",
    "tf_model*.h5": f"TensorFlow's weights are not read: {RESAVE}",
    "flax_model*.msgpack": f"Flax's weights are not read: {RESAVE}",
    "consolidated*.pth": f"these weights are not read: {RESAVE}",
    "*.gguf": "GGUF weights are quantized: load them with transformers "
    "(`from_pretrained(folder, gguf_file=...)`), which dequantizes them, and save the "
    "model again with `save_pretrained`",
}
"""Files that hold weights in another way, and what to do with them."""


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a folder that holds a whole model in floating point.

    Raises:
        FileNotFoundError: if there is no config.json.
        ValueError: if it is not JSON, if the folder holds an adapter, or if the
            weights are quantized.
    """
    if (folder / ADAPTER).exists():
        raise ValueError(
            f"{folder} holds a PEFT adapter ({ADAPTER}), which is not applied here: "
            "merge it into its base model (`merge_and_unload()` of peft), save that "
            "with `save_pretrained`, and give the new folder"
        )
    settings = read_json(folder / CONFIG)
    for name in ("quantization_config", "compression_config"):
        if how := settings.get(name):
            method = how.get("quant_method") if isinstance(how, dict) else how
            raise quantized(folder, f"{name} in {CONFIG}: {method or 'bitsandbytes'}")
    return settings


def quantized(folder: Path, how: str) -> ValueError:
    """The refusal of a folder whose weights are not stored in floating point."""
    return ValueError(
        f"{folder}: the weights are stored quantized ({how}), and only floating point "
        "is read: load the folder with transformers, call `dequantize()` on the model, "
        "and save it again with `save_pretrained`"
    )


def read_json(file: Path) -> dict[str, Any]:
    """One of a folder's JSON files.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is not a JSON object.
    """
    if not file.exists():
        gguf = ", ".join(sorted(x.name for x in file.parent.glob("*.gguf"))[:2])
        raise FileNotFoundError(
            f"{file} does not exist: expected a Hugging Face folder, with {CONFIG} "
            f"and {WEIGHTS} in it"
            + (f"; there is {gguf}: {OTHER_FORMATS['*.gguf']}" if gguf else "")
        )
    _refuse_pointer(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{file} is not JSON ({error}): download it again") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{file} is a JSON {type(found).__name__}, expected an object: download it "
            "again"
        )
    return found


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

    As in transformers, model.safetensors is read where there is an index as well. Of
    a tensor that is in several files the index says which one counts; files that the
    index does not name are left over from an earlier save and not opened.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not whole, or a tensor is stored twice.
    """
    shards, index = _shards(folder)
    opened = {shard: _open(folder / shard, files) for shard in shards}
    holders: dict[str, list[str]] = {}
    for shard, file in opened.items():
        for full in file.keys():  # noqa: SIM118 - not a dict
            holders.setdefault(full, []).append(shard)
    stored, names = {}, {}
    for full, shards in holders.items():
        name = full.removeprefix(family.prefix)
        # Checkpoints of 2018 call the scale gamma and the bias beta.
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        if re.fullmatch(family.ignored, name):
            continue
        if name in stored:
            raise ValueError(
                f"{folder} stores {name} twice, as {names[name]} and as {full}: load "
                "it with transformers and save it again"
            )
        if index.get(full) in shards:
            shards = [index[full]]
        if len(shards) > 1:
            raise ValueError(
                f"{folder} stores {full} in {shards[0]} and in {shards[1]}, and "
                f"{INDEX} does not say which one counts: download the folder again"
            )
        stored[name], names[name] = opened[shards[0]].get_slice(full), full
    return stored


def same(one: Any, other: Any, rows: int = 4096) -> bool:
    """Whether two stored tensors are equal, some rows at a time."""
    if one.get_shape() != other.get_shape():
        return False
    length = one.get_shape()[0]
    parts = (slice(i, min(i + rows, length)) for i in range(0, length, rows))
    return all(np.array_equal(one[part], other[part]) for part in parts)


def _shards(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The files that hold the weights, and the index: in which file each tensor is."""
    if (folder / WEIGHTS).exists():
        return [WEIGHTS], {}
    if not (folder / INDEX).exists():
        raise FileNotFoundError(
            f"neither {WEIGHTS} nor {INDEX} is in {folder}" + _other_formats(folder)
        )
    index = read_json(folder / INDEX).get("weight_map")
    if not (isinstance(index, dict) and index):
        raise ValueError(f"{folder / INDEX} names no files: download it again")
    shards = sorted({str(shard) for shard in index.values()})
    for shard in shards:
        if not (folder / shard).exists():
            raise FileNotFoundError(
                f"{INDEX} names {shard}, which is not in {folder}: download it again"
            )
    return shards, index


def _other_formats(folder: Path) -> str:
    """What there is instead of the weights, and what to do."""
    for pattern, advice in OTHER_FORMATS.items():
        if found := sorted(file.name for file in folder.glob(pattern)):
            more = f" and {len(found) - 2} more" if len(found) > 2 else ""
            return f", only {', '.join(found[:2])}{more}: {advice}"
    return f": download the folder's safetensors files, or {RESAVE}"


def _open(file: Path, files: ExitStack) -> Any:
    _refuse_pointer(file)
    try:
        return files.enter_context(safe_open(file, framework="numpy"))
    except SafetensorError as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}): download it again"
        ) from error


def _refuse_pointer(file: Path) -> None:
    with file.open("rb") as stream:
        start = stream.read(len(POINTER))
    if start == POINTER:
        raise ValueError(
            f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in "
            "its folder, or download it again"
        )
