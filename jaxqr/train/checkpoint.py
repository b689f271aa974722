"""One checkpoint: the train state, the place in the data, queued rollouts.

A checkpoint appears whole or not at all: it is written under a temporary name and
renamed. Frozen parameters are not in it, only a fingerprint of them, so that a run does
not go on with another base, teacher or reference than it began with.
"""

import base64
import errno
import io
import json
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqr.types import Params, TrainState

OVERHEAD_BYTES = 1 << 16
"""What orbax writes besides the numbers, at least."""


class Checkpoints:
    """The checkpoints of one run, in `folder/STEP`.

    Args:
        folder: created if missing; what a killed save left in it is removed.
        frozen: the parameters that the run's steps take and do not change.
        keep: how many of the newest stay.
    """

    def __init__(
        self, folder: str | Path, *, frozen: tuple[Params, ...] = (), keep: int = 1
    ):
        import orbax.checkpoint as ocp  # takes a second

        self._ocp = ocp
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
        )
        self._folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._frozen = _fingerprint(frozen)

    def save(self, step: int, state: TrainState, host: dict[str, Any]) -> None:
        """Saves after `step`.

        Args:
            step: which one.
            state: what the next step takes.
            host: JSON values, numpy arrays, and named tuples of these.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        if step in self._manager.all_steps():
            return
        described = {"arrays": _described(state), "frozen": self._frozen}
        described |= {"host": _to_json(host)}
        _check_room(self._folder, state, described, step)
        try:
            self._manager.save(
                step,
                args=self._ocp.args.Composite(
                    state=self._ocp.args.StandardSave(state),
                    host=self._ocp.args.JsonSave(described),
                ),
            )
        except Exception as error:
            raise _disk_error(error, self._folder / str(step)) from error

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint with the shapes and shardings of `like`, or None.

        Raises:
            ValueError: the checkpoint holds a state of other names, shapes or dtypes,
                or was made with other frozen parameters.
        """
        step, ocp = self._manager.latest_step(), self._ocp
        if step is None:
            return None
        args = ocp.args.Composite(host=ocp.args.JsonRestore())
        host = self._manager.restore(step, args=args)["host"]
        # Checked here first: orbax casts other dtypes, and refuses other shapes only
        # in the middle of reading.
        there, here = host["arrays"], _described(like)
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                raise ValueError(
                    f"{self._folder / str(step)} holds {name} = {there.get(name)}, "
                    f"expected {here.get(name)}: it is of another model or optimizer; "
                    "use another folder, or remove this one to start again"
                )
        if host["frozen"] != self._frozen:
            raise ValueError(
                f"{self._folder / str(step)} was made with another frozen model (base, "
                "teacher or reference) than the one that was loaded: give the folder "
                "that the run began with, or remove this one to start again"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        state = self._manager.restore(step, args=args)["state"]
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


def _fingerprint(params: Any) -> list[int]:
    """A number for each array that depends on every bit, and not on the devices."""

    def number(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        for axis in range(x.ndim):  # odd factors: no bit of a number is lost
            place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            bits = bits * (2 * place + 1)
        return jnp.sum(bits, dtype=jnp.uint32)

    numbers = jax.jit(lambda params: jax.tree.map(number, params))(params)
    return [int(x) for x in jax.tree.leaves(jax.device_get(numbers))]


def _check_room(folder: Path, state: TrainState, host: Any, step: int) -> None:
    """Refuses to save where there is no room, before orbax begins.

    In the middle of a save orbax logs tracebacks from threads of its own, or waits for
    ever where a file may not grow.
    """
    needed = sum(x.nbytes for x in jax.tree.leaves(state) if hasattr(x, "nbytes"))
    needed += len(json.dumps(host)) + OVERHEAD_BYTES
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if needed > shutil.disk_usage(folder).free:
        raise _no_room(errno.ENOSPC, folder / str(step))
    if largest != resource.RLIM_INFINITY and needed > largest:
        raise _no_room(errno.EFBIG, folder / str(step))


def _no_room(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))


def _disk_error(error: Exception, path: Path) -> Exception:
    """The error of a disk that is full, in one line; any other error as it is."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for cause in chain:
        text = str(cause)
        full = isinstance(cause, OSError) and cause.errno in _FULL
        # tensorstore: RESOURCE_EXHAUSTED, or OUT_OF_RANGE of a file that may not grow.
        if full or "RESOURCE_EXHAUSTED" in text or "File too large" in text:
            return _no_room(errno.ENOSPC, path)
    return error


_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def _to_json(value: Any) -> Any:
    """Numpy arrays become tagged base64 of the .npy format, named tuples tagged lists.

    JSON values stay as they are.
    """
    if isinstance(value, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return {"__npy__": base64.b64encode(buffer.getvalue()).decode()}
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        return {"__tuple__": name, "fields": [_to_json(item) for item in value]}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    """The inverse; the class of a named tuple is one that is imported already."""
    if isinstance(value, dict):
        if "__npy__" in value:
            return np.load(io.BytesIO(base64.b64decode(value["__npy__"])))
        if "__tuple__" in value:
            module, name = value["__tuple__"].split(":")
            kind = getattr(sys.modules[module], name)
            return kind(*[_from_json(item) for item in value["fields"]])
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return value
