"""Hugging Face folders in and out: config.json with safetensors, bit for bit.

What one family has and another has not is in `jaxqr.models.families`.
"""

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxqr.models.families import FAMILIES, Family, Shape, Tensor, family_of
from jaxqr.models.layers import Dtype, init
from jaxqr.types import Params

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

OURS_ALONE = ("dtype", "remat", "add_pooler", "num_labels")
"""Config fields that config.json lacks, or has in another sense."""


def load_pretrained(
    path: str | Path,
    *,
    dtype: Dtype = "float32",
    key: Key[Array, ""] | None = None,
    **overrides: Any,
) -> tuple[Any, Params]:
    """Read a Hugging Face folder: config.json and safetensors, in one file or many.

    Args:
        path: the folder.
        dtype: dtype of the computation. Parameters are float32, however stored.
        key: what to draw a missing pooler or classifier from. They are missing when
            a plain encoder is loaded with `num_labels=4`, say; without a key that
            is an error.
        **overrides: config fields to set in place of the folder's.

    Returns:
        The module and its parameters, as `models.build` and `models.init` give them.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder has an unknown `model_type`, a setting that the
            module does not have, or tensors that are not exactly the model's.
    """
    folder = Path(path)
    settings = _read_json(folder / CONFIG)
    family = _family(settings, folder)
    with ExitStack() as files:
        stored = _open(folder, family, files)
        shapes = {name: tuple(x.get_shape()) for name, x in stored.items()}
        names = {f.name for f in dataclasses.fields(family.config)} - {*OURS_ALONE}
        chosen = {name: settings[name] for name in names & settings.keys()}
        chosen |= family.read(settings, shapes) | {"dtype": dtype} | overrides
        model = family.module(family.config(**chosen))

        wanted = _wanted(family, model)
        ties = family.ties(model.config)
        problems = _mismatches(family, wanted, shapes, ties, fresh=key is not None)
        if problems:
            raise ValueError(
                f"the tensors in {folder} are not those of {model.config}: "
                + "; ".join(problems)
            )
        for tied, name in ties.items():
            if tied in stored and not np.array_equal(stored[tied][:], stored[name][:]):
                raise ValueError(
                    f"{folder}: {tied} differs from {name}; only models that share "
                    "them can be loaded"
                )
        flat = init(model, key) if key is not None else {}
        flat = _flatten(flat) | {
            ours: jnp.asarray(_oriented(stored[tensor.theirs][:], tensor))
            for ours, (tensor, _) in wanted.items()
            if tensor.theirs in stored
        }
    return model, {"params": unflatten_dict(flat, sep="/")}


def save_pretrained(path: str | Path, model: Any, params: Params) -> None:
    """Write config.json and model.safetensors so that transformers can load them.

    Both are complete before either appears under its name. `load_pretrained` reads
    back what was written bit for bit.

    Args:
        path: the folder; it is created where it does not exist.
        model: the module, from `models.build` or `load_pretrained`.
        params: its parameters.

    Raises:
        ValueError: if the parameters are not those of the module.
    """
    config, folder = model.config, Path(path)
    model_type, family = family_of(config)
    wanted, flat = _wanted(family, model), _flatten(params)
    expected = {ours: shape for ours, (_, shape) in wanted.items()}
    if (found := {ours: np.shape(x) for ours, x in flat.items()}) != expected:
        wrong = sorted(dict(expected.items() ^ found.items()))
        raise ValueError(
            f"params are not those of {config}: {', '.join(wrong[:5])} differ; pass "
            "what `models.init` or `load_pretrained` returned, or a state's `params`"
        )
    architecture, prefix = family.architecture(config)
    settings = {
        k: v for k, v in dataclasses.asdict(config).items() if k not in OURS_ALONE
    }
    settings |= {name: accepted[0] for name, accepted in family.fixed.items()}
    settings |= {"model_type": model_type, "architectures": [architecture]}
    settings |= {"dtype": "float32"} | family.written(config)
    tensors = {}
    for ours, (tensor, _) in wanted.items():
        name = tensor.theirs
        name = name if name.startswith(family.heads) else prefix + name
        tensors[name] = _oriented(np.asarray(flat[ours]), tensor)

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        written = Path(temporary)
        save_file(tensors, written / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (written / CONFIG).write_text(text, encoding="utf-8")
        for name in (WEIGHTS, CONFIG):
            os.replace(written / name, folder / name)


def _flatten(params: Params) -> dict[str, Any]:
    """One name per parameter, as in the tables."""
    return flatten_dict(params["params"], sep="/") if params else {}


def _oriented(x: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The other side's layout of a tensor, in float32."""
    x = x.astype(np.float32, copy=False)
    return np.ascontiguousarray(x.T) if tensor.transpose else x


def _wanted(family: Family, model: nn.Module) -> dict[str, tuple[Tensor, Shape]]:
    """Each parameter of `model`, with its tensor and its own shape."""
    rows = {row.ours: row for row in family.tensors}
    shapes = _flatten(jax.eval_shape(partial(init, model), jax.random.key(0)))
    return {ours: (_tensor(ours, rows), x.shape) for ours, x in shapes.items()}


def _tensor(ours: str, rows: Mapping[str, Tensor]) -> Tensor:
    """The row of a parameter: that of `h_3/c_fc/bias` is `h_{i}/c_fc/bias`."""
    numbered = re.fullmatch(r"(\w+)_(\d+)/(.+)", ours)
    if numbered is None:
        return rows[ours]
    stack, i, rest = numbered.groups()
    row = rows[f"{stack}_{{i}}/{rest}"]
    return row._replace(ours=ours, theirs=row.theirs.format(i=i))


def _mismatches(
    family: Family,
    wanted: Mapping[str, tuple[Tensor, Shape]],
    shapes: Mapping[str, Shape],
    ties: Mapping[str, str],
    *,
    fresh: bool,
) -> list[str]:
    """What is missing, of another shape, or not known, one phrase for each tensor."""
    problems = []
    for tensor, ours in wanted.values():
        name, shape = tensor.theirs, tensor.shape(ours)
        optional = name.startswith(family.fresh)
        if name in shapes and shapes[name] != shape:
            problems.append(f"{name}: expected {shape}, found {shapes[name]}")
        elif name not in shapes and not (optional and fresh):
            remedy = " (pass `key=` to draw it at random)" if optional else ""
            problems.append(f"{name}: expected {shape}, found none{remedy}")
    known = {tensor.theirs for tensor, _ in wanted.values()} | ties.keys()
    known |= {row.theirs for row in family.tensors}  # a head that was not asked for
    for name in sorted(shapes.keys() - known):
        problems.append(f"{name}: expected none, found {shapes[name]}")
    return problems


def _open(folder: Path, family: Family, files: ExitStack) -> dict[str, Any]:
    """Every stored tensor that may matter, unread, under its name without prefix."""
    if (folder / WEIGHTS).exists():
        shards = [WEIGHTS]
    elif (folder / INDEX).exists():
        shards = sorted({*_read_json(folder / INDEX)["weight_map"].values()})
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


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise FileNotFoundError(
            f"{file} does not exist: expected a Hugging Face folder, with {CONFIG} "
            f"and {WEIGHTS} in it"
        )
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}): download it again") from error


def _family(settings: Mapping[str, Any], folder: Path) -> Family:
    """The family of a folder whose settings our module can represent."""
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
