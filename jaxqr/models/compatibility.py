"""Whether the tensors of a folder are those of a model, and what is wrong if not."""

import re
from collections.abc import Iterable, Mapping
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from jaxqr.models.families import Family, Shape, TensorMap
from jaxqr.models.stored import CONFIG, quantized, same

MOST = 5
"""Tensors that a message names; the others are counted."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes of safetensors that are read; each becomes float32."""

PACKED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|weight_format|absmax|quant_map|nested_absmax"
    r"|quant_state\..+|weight_scale(_inv)?|input_scale|weight_packed|weight_shape"
    r"|weight_zero_point)$"
)
"""Tensors of GPTQ, AWQ, bitsandbytes, fp8 and compressed-tensors."""

Wanted = Mapping[str, tuple[TensorMap, Shape]]


def untie(
    stored: Mapping[str, Any], ties: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Each tied tensor once, under the name that the model has for it.

    Of several names of one tensor a folder may have any: transformers drops the tied
    ones, safetensors' `save_model` keeps the alphabetically first, torch keeps all.

    Args:
        stored: tensors by their stored names, without prefix.
        ties: other names, and the model's name for each.

    Returns:
        The tensors, and the names that they are stored under where those are others.
    """
    once, names = dict(stored), {}
    for other, name in ties.items():
        if other in once:
            tensor = once.pop(other)
            if name not in once:
                once[name], names[name] = tensor, other
    return once, names


def check_ties(
    folder: Path, stored: Mapping[str, Any], ties: Mapping[str, str]
) -> None:
    """Refuse tied tensors that are stored under several names and differ.

    Raises:
        ValueError: two do.
    """
    once, names = untie(stored, ties)
    for other, name in ties.items():
        if other in stored and not same(stored[other], once[name]):
            raise ValueError(
                f"{folder}: {other} differs from {names.get(name, name)}; only models "
                "that share them can be loaded"
            )


def without_other_head(
    folder: Path,
    family: Family,
    stored: Mapping[str, Any],
    num_labels: int,
    *,
    draw: bool,
) -> dict[str, Any]:
    """The tensors, without a classification head of another number of classes.

    Raises:
        ValueError: if there is such a head and no new one may be drawn.
    """
    head = stored.get(f"{family.classifier}weight")
    classes = 0 if head is None else head.get_shape()[0]
    if not num_labels or classes in (0, num_labels):
        return dict(stored)
    if not draw:
        raise ValueError(
            f"{folder} has a classification head of {classes} "
            f"class{'es' * (classes != 1)}, and num_labels={num_labels}: pass `key=` "
            f"to draw a new head, or num_labels={classes} to keep the old one"
        )
    return {k: x for k, x in stored.items() if not k.startswith(family.classifier)}


def check_tensors(
    folder: Path,
    family: Family,
    wanted: Wanted,
    stored: Mapping[str, Any],
    names: Mapping[str, str],
    vocab_size: int,
    *,
    draw: bool,
) -> None:
    """Refuse tensors that are not exactly those of a model.

    Args:
        folder: for messages.
        family: the family of the model.
        wanted: each parameter with its tensor and its own shape.
        stored: the folder's tensors, as `untie` returns them.
        names: where a tensor is stored under another name, as `untie` returns them.
        vocab_size: rows of stored embeddings.
        draw: whether parameters that may be drawn at random may be missing.

    Raises:
        ValueError: a tensor is missing, of another shape, unknown or quantized; at most
            `MOST` of them are named.
    """
    shapes = {name: tuple(x.get_shape()) for name, x in stored.items()}
    expected = {
        tensor.theirs: tensor.stored(ours, vocab_size)
        for tensor, ours in wanted.values()
    }
    # Parts that were not asked for, such as a head.
    idle = tuple(p for p in family.parts if not any(n.startswith(p) for n in expected))
    unknown = [n for n in sorted(shapes.keys() - expected) if not n.startswith(idle)]
    for name in unknown:
        if PACKED.search(name):
            raise quantized(folder, f"it has {name}")
    for name in expected:
        if name in stored and (dtype := stored[name].get_dtype()) not in FLOATS:
            raise quantized(folder, f"{names.get(name, name)} is {dtype}")

    def phrase(name: str) -> str:
        shape, found = (x.get(name, "none") for x in (expected, shapes))
        return f"{names.get(name, name)}: expected {shape}, found {found}"

    other = [n for n in expected if shapes.get(n, expected[n]) != expected[n]]
    absent = [n for n in expected if n not in shapes]
    fresh = [n for n in absent if n.startswith(family.fresh)]
    missing = [n for n in absent if n not in fresh]
    if wrong := [*_by_turns(other, missing, unknown)]:
        kinds = {"missing": missing, "of another shape": other, "unknown": unknown}
        counts = ", ".join(f"{len(n)} {kind}" for kind, n in kinds.items() if n)
        raise ValueError(
            f"the tensors in {folder} are not those of the model that its {CONFIG} "
            f"describes ({counts}): {_some(map(phrase, wrong))}. Give a config.json "
            "and tensors of one model, or download the folder again"
        )
    if fresh and not draw:
        raise ValueError(
            f"{folder}: {_some(map(phrase, fresh))} (pass `key=` to draw at random "
            "what is missing)"
        )


def _by_turns(*lists: list[str]) -> Iterable[str]:
    """One of each list, then a second of each, and so on."""
    return (x for x in chain.from_iterable(zip_longest(*lists)) if x is not None)


def _some(phrases: Iterable[str]) -> str:
    """The first `MOST` phrases, and how many there are more."""
    phrases = list(phrases)
    more = f"; and {len(phrases) - MOST} more" if len(phrases) > MOST else ""
    return "; ".join(phrases[:MOST]) + more
