"""One checkpoint: the train state, the place in the data, queued rollouts.

A checkpoint appears whole or not at all: it is written beside its place and renamed.
Of a model with adapters it holds the adapters; the rest is as it was loaded.
"""

import base64
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxqr.train.state import joined, split
from jaxqr.types import Params, TrainState


class Checkpoints:
    """The checkpoints of one run, in `folder/STEP`.

    Args:
        folder: made if missing; a killed save's remains in it are removed.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: str | Path, *, keep: int = 1):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
        )
        self._folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: TrainState, host: dict[str, Any]) -> None:
        """Saves after `step`; `host` may hold JSON values and numpy arrays."""
        if step in self._manager.all_steps():
            return
        trained, kept = split(state.params)
        state = state._replace(params=trained)
        described = {"arrays": _described(state), "kept": _fingerprint(kept)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                host=ocp.args.JsonSave(described | {"host": _to_json(host)}),
            ),
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint with the shapes and shardings of `like`, or None.

        Raises:
            ValueError: the checkpoint holds a state of other names, shapes or dtypes,
                or adapters of another model.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        trained, kept = split(like.params)
        like = like._replace(params=trained)
        args = ocp.args.Composite(host=ocp.args.JsonRestore())
        host = self._manager.restore(step, args=args)["host"]
        # Ourselves, beforehand: orbax casts other dtypes, and refuses other shapes
        # in the midst of reading.
        there, here = host["arrays"], _described(like)
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                raise ValueError(
                    f"{self._folder / str(step)} holds {name} = {there.get(name)}, "
                    f"expected {here.get(name)}: it is of another model or optimiser; "
                    "use another folder, or remove this one to start anew"
                )
        if host.get("kept", []) != _fingerprint(kept):
            raise ValueError(
                f"{self._folder / str(step)} holds adapters of a model that has other "
                "weights than the one that was loaded: give back the folder that the "
                "run began with, or remove this one to start anew"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        state = self._manager.restore(step, args=args)["state"]
        state = state._replace(params=joined(state.params, kept))
        return state, _from_json(host["host"])

    def close(self) -> None:
        """Releases the folder."""
        self._manager.close()


def _described(state: TrainState) -> dict[str, str]:
    """Each array's name, dtype and shape."""
    arrays = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{x.dtype}{x.shape}"
        for path, x in arrays
    }


def _fingerprint(params: Params) -> list[int]:
    """A number for each array, in which every bit counts; the devices do not."""

    def number(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        for axis in range(x.ndim):  # odd factors: no bit of a number is lost
            place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            bits = bits * (2 * place + 1)
        return jnp.sum(bits, dtype=jnp.uint32)

    numbers = jax.jit(lambda params: jax.tree.map(number, params))(params)
    return [int(x) for x in jax.tree.leaves(jax.device_get(numbers))]


def _to_json(value: Any) -> Any:
    """Numpy arrays become tagged base64 of the .npy format; the rest is kept."""
    if isinstance(value, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return {"__npy__": base64.b64encode(buffer.getvalue()).decode()}
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if "__npy__" in value:
            return np.load(io.BytesIO(base64.b64decode(value["__npy__"])))
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return value
