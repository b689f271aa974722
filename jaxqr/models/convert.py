"""Hugging Face folders in and out: config.json with safetensors, bit for bit.

What one family has and another has not is in `jaxqr.models.families`. Folders of any
size are read and written a tensor at a time.
"""

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding, SingleDeviceSharding
from jaxtyping import Array, Key
from safetensors.numpy import save_file

from jaxqr.models.compatibility import (
    Wanted,
    check_tensors,
    check_ties,
    untie,
    without_other_head,
)
from jaxqr.models.config import Dtype, LanguageModelConfig
from jaxqr.models.depth import cut
from jaxqr.models.families import Family, Shape, TensorMap, family_of
from jaxqr.models.layers import init
from jaxqr.models.stored import (
    CONFIG,
    INDEX,
    WEIGHTS,
    family_in,
    open_tensors,
    read_settings,
)
from jaxqr.models.value import without_value
from jaxqr.types import Params

OURS_ALONE = {field.name for field in dataclasses.fields(LanguageModelConfig)}
"""Config fields that config.json lacks, or has in another sense."""

NUMBERS: dict[Any, tuple[type, ...]] = {int: (int,), float: (float, int), bool: (bool,)}
"""What config.json may have for a field of a type."""

Place = Callable[[jax.ShapeDtypeStruct], Sharding]


def load_pretrained(
    path: str | Path,
    *,
    dtype: Dtype = "float32",
    key: Key[Array, ""] | None = None,
    place: Place | None = None,
    layers: int | None = None,
    **overrides: Any,
) -> tuple[Any, Params]:
    """Read a Hugging Face folder: config.json and safetensors, in one file or many.

    Args:
        path: the folder.
        dtype: dtype of the computation. Parameters are float32, however stored.
        key: what to draw parameters from that the folder has not: a pooler or
            classifier, when a plain language model or a classifier of another number
            of classes is loaded with `num_labels=4`, say, and adapters
            (`lora_rank=8`). Without a key they are an error.
        place: the sharding of a parameter of a given shape, such as
            `partial(sharding.placed, mesh=mesh)`; the first device if it is None.
            Every device's part is read for itself: the host never holds a whole model.
        layers: keep so many of every stack, evenly spaced (`depth.cut`); None: all.
        **overrides: config fields to set in place of the folder's.

    Returns:
        The module and its parameters, as `models.build` and `models.init` give them.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder has an unknown `model_type`, a setting that the
            module does not have, weights that are quantized or an adapter's, fewer
            layers than `layers`, or tensors that are not exactly the model's.
    """
    folder = Path(path)
    settings = read_settings(folder)
    family = family_in(settings, folder)
    if place is None:
        here = SingleDeviceSharding(jax.devices()[0])
        place = lambda x: here  # noqa: E731 - as a default
    with ExitStack() as files:
        stored = open_tensors(folder, family, files)
        if layers is not None:
            stored, depths = cut(stored, family.config, layers)
            overrides = depths | overrides
        shapes = {name: tuple(x.get_shape()) for name, x in stored.items()}
        model = family.module(
            _config(family, settings, shapes, folder, {"dtype": dtype} | overrides)
        )
        config, draw = model.config, key is not None
        wanted, adapters = _wanted(family, model)
        if adapters and not draw:
            raise ValueError(
                f"lora_rank={config.lora_rank}: pass `key=` to draw the adapters"
            )
        stored = without_other_head(
            folder, family, stored, config.num_labels, draw=draw
        )
        ties, tied = family.ties(config), stored
        stored, names = untie(tied, ties)
        check_tensors(
            folder, family, wanted, stored, names, config.vocab_size, draw=draw
        )
        check_ties(folder, tied, ties)
        missing = [n for n, (row, _) in wanted.items() if row.theirs not in stored]
        flat = _fresh(model, key, [*missing, *adapters], place)
        flat |= {
            ours: _placed(stored[row.theirs], row, shape, place)
            for ours, (row, shape) in wanted.items()
            if row.theirs in stored
        }
    return model, unflatten_dict(flat, sep="/")


def load_config(path: str | Path) -> Any:
    """Read what a Hugging Face folder holds, and none of its numbers.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if `load_pretrained` would refuse the folder's config.
    """
    folder = Path(path)
    settings = read_settings(folder)
    family = family_in(settings, folder)
    with ExitStack() as files:
        stored = open_tensors(folder, family, files)
        shapes = {name: tuple(x.get_shape()) for name, x in stored.items()}
    return _config(family, settings, shapes, folder, {})


def save_pretrained(
    path: str | Path, model: Any, params: Params, *, shard_bytes: int = 5 * 10**9
) -> None:
    """Write config.json and safetensors (float32) so that transformers can load them.

    Everything is complete before any of it appears under its name. `load_pretrained`
    reads back what was written bit for bit, adapters excepted: they are merged into
    their linear maps, W + (alpha / rank) A B. A decoder's classifier is
    exported with EOS for padding, by which transformers finds a row's last token; of
    rows that end in EOS it reads the token before. A value head is left out.

    Args:
        path: the folder; it is created where it does not exist.
        model: the module, from `models.build` or `load_pretrained`.
        params: its parameters, on any number of devices.
        shard_bytes: tensors are written to files of about this size, and the host
            holds one file's at a time.

    Raises:
        ValueError: if the parameters are not those of the module.
    """
    config, folder = model.config, Path(path)
    flat = _flatten(without_value(params))
    if (found := {k: np.shape(x) for k, x in flat.items()}) != (asked := _asked(model)):
        wrong = sorted(dict(asked.items() ^ found.items()))
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"params are not those of this {type(model).__name__}: "
            f"{', '.join(wrong[:5])}{more} differ; pass what `models.init` or "
            "`load_pretrained` returned, or a state's `params`"
        )
    model_type, family = family_of(config)
    architecture, prefix = family.architecture(config)
    names = {f.name for f in dataclasses.fields(config)} - OURS_ALONE
    settings = {name: getattr(config, name) for name in names - {*family.derived}}
    settings |= {name: accepted[0] for name, accepted in family.fixed.items()}
    settings |= {"model_type": model_type, "architectures": [architecture]}
    settings |= {"dtype": "float32"} | family.written(config)
    wanted, _ = _wanted(family, model)

    def full(name: str) -> str:
        return name if name.startswith(family.heads) else prefix + name

    def tensor(ours: str) -> np.ndarray:
        row, _ = wanted[ours]
        x = np.asarray(_merged(flat, ours, config), np.float32)
        x = x[: config.vocab_size] if row.vocabulary else x
        return np.ascontiguousarray(x.T if row.transpose else x)

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        written = Path(temporary)
        shards = list(_shards(wanted, shard_bytes))
        where = {}
        for i, shard in enumerate(shards, 1):
            file = WEIGHTS
            if len(shards) > 1:
                file = f"model-{i:05}-of-{len(shards):05}.safetensors"
            tensors = {full(wanted[ours][0].theirs): tensor(ours) for ours in shard}
            save_file(tensors, written / file, metadata={"format": "pt"})
            where |= dict.fromkeys(tensors, file)
            del tensors  # before the next file's are made
        files = [*dict.fromkeys(where.values())]
        if len(shards) > 1:
            total = sum(4 * int(np.prod(shape)) for _, shape in wanted.values())
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (written / INDEX).write_text(_json(index), encoding="utf-8")
            files.append(INDEX)
        (written / CONFIG).write_text(_json(settings), encoding="utf-8")
        for name in files:
            os.replace(written / name, folder / name)
        for old in (*folder.glob("model*.safetensors"), folder / INDEX):
            if old.name not in files:  # of an earlier save in another number of files
                old.unlink(missing_ok=True)
        os.replace(written / CONFIG, folder / CONFIG)


def _flatten(params: Params) -> dict[str, Any]:
    """Every array by its collection and name, as `params/h_0/c_fc/kernel`."""
    return flatten_dict(params, sep="/")  # pyright: ignore[reportReturnType]


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _config(
    family: Family,
    settings: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    folder: Path,
    overrides: dict[str, Any],
) -> Any:
    """The config of a folder, with some fields changed."""
    try:
        chosen = _chosen(family, settings) | family.read(settings, shapes)
        chosen = {k: tuple(v) if type(v) is list else v for k, v in chosen.items()}
        config = family.config(**chosen)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    try:
        return dataclasses.replace(config, **overrides)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _chosen(family: Family, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are fields of the config, by the names that both have.

    Raises:
        ValueError: one is of another type, or of none of the supported kinds.
    """
    chosen = {}
    for field in dataclasses.fields(family.config):
        if field.name in OURS_ALONE or field.name not in settings:
            continue
        value, kind = settings[field.name], field.type
        if value is None and kind in NUMBERS:
            continue  # as if it were not there
        if kind in NUMBERS and type(value) not in NUMBERS[kind]:
            expected = NUMBERS[kind][0].__name__
            raise ValueError(f"{field.name} is {value!r}: expected {expected}")
        if get_origin(kind) is Literal and value not in get_args(kind):
            supported = " or ".join(map(repr, get_args(kind)))
            raise ValueError(f"{field.name} is {value!r}; supported is {supported}")
        chosen[field.name] = value
    return chosen


def _asked(model: nn.Module) -> dict[str, Shape]:
    """The shape of every parameter of `model`, by collection and name."""
    shapes = jax.eval_shape(partial(init, model), jax.random.key(0))
    return {name: x.shape for name, x in _flatten(shapes).items()}


def _wanted(family: Family, model: nn.Module) -> tuple[Wanted, list[str]]:
    """Each parameter with its tensor and its own shape; and the adapters' names."""
    rows = {row.ours: row for row in family.tensors}
    wanted, adapters = {}, []
    for full, shape in _asked(model).items():
        collection, ours = full.split("/", 1)
        if collection == "lora" and ours.endswith(("/a", "/b")):
            adapters.append(full)
        else:
            wanted[full] = (_tensor(ours, rows), shape)
    return wanted, adapters


def _tensor(ours: str, rows: Mapping[str, TensorMap]) -> TensorMap:
    """The row of a parameter: that of `h_3/c_fc/bias` is `h_{i}/c_fc/bias`."""
    numbered = re.fullmatch(r"(\w+)_(\d+)/(.+)", ours)
    if numbered is None:
        return rows[ours]
    stack, i, rest = numbered.groups()
    row = rows[f"{stack}_{{i}}/{rest}"]
    return row._replace(ours=ours, theirs=row.theirs.format(i=i))


def _merged(flat: Mapping[str, Any], ours: str, config: Any) -> Any:
    """A parameter; a map's kernel with the product of its adapters added."""
    x, map_ = flat[ours], ours.removeprefix("params/").removesuffix("/kernel")
    if (a := flat.get(f"lora/{map_}/a")) is None or not ours.endswith("/kernel"):
        return x
    # In full precision: an accelerator's default may be less.
    product = jnp.matmul(a, flat[f"lora/{map_}/b"], precision="highest")
    return x + config.lora_alpha / config.lora_rank * product


def _shards(wanted: Wanted, most: int) -> Iterator[list[str]]:
    """The parameters of each file."""
    shard, size = [], 0
    for ours, (_, shape) in wanted.items():
        bytes_ = 4 * int(np.prod(shape))
        if shard and size + bytes_ > most:
            yield shard
            shard, size = [], 0
        shard.append(ours)
        size += bytes_
    yield shard


def _placed(stored: Any, row: TensorMap, shape: Shape, place: Place) -> Array:
    """A stored tensor as our parameter, each device's part read for itself."""
    parts: dict[tuple, np.ndarray] = {}
    rows = stored.get_shape()[0]

    def part(index: Any) -> np.ndarray:
        bounds = tuple(i.indices(n)[:2] for i, n in zip(index, shape, strict=True))
        if bounds not in parts and row.vocabulary and bounds[0][0] >= rows:
            parts[bounds] = np.zeros([stop - start for start, stop in bounds], "f4")
        if bounds not in parts:
            where = [slice(*bound) for bound in bounds]
            wide, last = 0, where[0].stop
            if row.vocabulary and last > rows:  # rows that only round the number up
                where[0], wide = slice(where[0].start, rows), last - rows
            x = stored[tuple(where[::-1] if row.transpose else where)]
            x = _transposed(x) if row.transpose else x.astype(np.float32, copy=False)
            parts[bounds] = np.pad(x, ((0, wide), (0, 0))) if wide else x
        return parts[bounds]

    sharding = place(jax.ShapeDtypeStruct(shape, jnp.float32))
    return jax.make_array_from_callback(shape, sharding, part)


def _transposed(x: np.ndarray, rows: int = 128) -> np.ndarray:
    """In float32, some rows at a time: they stay in the processor's cache."""
    out = np.empty(x.shape[::-1], np.float32)
    for i in range(0, len(x), rows):
        out[:, i : i + rows] = x[i : i + rows].T
    return out


def _fresh(
    model: nn.Module, key: Key[Array, ""] | None, names: list[str], place: Place
) -> dict[str, Array]:
    """Some parameters of a fresh model, made in their places."""
    if key is None or not names:
        return {}

    def draw(key):
        flat = _flatten(init(model, key))
        return {name: flat[name] for name in names}

    placed = jax.tree.map(place, jax.eval_shape(draw, key))
    return jax.jit(draw, out_shardings=placed)(key)
