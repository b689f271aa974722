"""Meshes, and where arrays live on them.

Two axes: `data` splits batches, `fsdp` splits batches and parameters. Each parameter
is split along its largest axis that `fsdp` divides; small ones are replicated. XLA
derives all communication from these placements.
"""

from functools import partial
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from jaxqr.types import Params

SMALLEST = 2**12
"""Arrays with fewer elements are replicated: splitting them saves nothing."""


def make_mesh(fsdp: int = 1) -> Mesh:
    """All devices as `data` x `fsdp`.

    Raises:
        ValueError: `fsdp` does not divide the number of devices.
    """
    count = jax.device_count()
    if count % fsdp:
        fitting = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise ValueError(
            f"fsdp={fsdp} does not divide the {count} devices of this machine: choose "
            f"one of {fitting} (--compute.fsdp)"
        )
    return jax.make_mesh(
        (count // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
    )


def shard_params(params: Params, mesh: Mesh) -> Params:
    """Places parameters on the mesh."""
    return jax.tree.map(jax.device_put, params, shardings(params, mesh))


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Where the arrays of parameters, or of a whole train state, belong."""
    return jax.tree.map(partial(placement, mesh=mesh), tree)


def placement(x: Any, mesh: Mesh) -> NamedSharding:
    """Where an array of this shape belongs."""
    parts = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(x.shape) if size % parts == 0]
    if parts == 1 or x.size < SMALLEST or not axes:
        return NamedSharding(mesh, P())
    largest = max(axes, key=lambda axis: x.shape[axis])
    return NamedSharding(mesh, P(*[None] * largest, "fsdp"))


def mesh_of(params: Params) -> Mesh | None:
    """The mesh that parameters were placed on; None if they never were."""
    for x in jax.tree.leaves(params):
        if isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding):
            return x.sharding.mesh  # pyright: ignore[reportReturnType]
    return None


def shard_batch(batch: PyTree, params: Params) -> PyTree:
    """Places a batch on the devices of the parameters that will read it.

    Rows are split over all devices of their mesh if they divide evenly, and else
    replicated. Without a mesh the batch stays as it is.
    """
    if (mesh := mesh_of(params)) is None:
        return batch

    def place(x: Any):
        even = x.ndim > 0 and x.shape[0] % mesh.size == 0
        spec = P(("data", "fsdp")) if even else P()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(place, batch)
