"""The optimizer, and the state that a run starts from."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxqr import sharding
from jaxqr.types import Params, TrainState

SCHEDULES = ("cosine", "linear", "constant")


def adamw(
    learning_rate: float,
    num_steps: int,
    *,
    warmup: float = 0.05,
    schedule: str = "cosine",
    weight_decay: float = 0.01,
    clip: float = 1.0,
) -> optax.GradientTransformation:
    """AdamW (betas 0.9 and 0.95) after a clip of the gradient's global norm.

    Args:
        learning_rate: the peak, reached after the warm-up.
        num_steps: steps of the whole run, which the schedule spans.
        warmup: share of the steps over which the rate rises linearly from 0.
        schedule: what follows: "cosine" or "linear" to a tenth of the peak, or
            "constant".
        weight_decay: decoupled; matrices only, not biases and norms.
        clip: largest global norm of the gradient.

    Raises:
        ValueError: unknown schedule.
    """
    rise = max(1, round(warmup * num_steps))
    rest = max(1, num_steps - rise)
    if schedule == "cosine":
        fall = optax.cosine_decay_schedule(learning_rate, rest, alpha=0.1)
    elif schedule == "linear":
        fall = optax.linear_schedule(learning_rate, 0.1 * learning_rate, rest)
    elif schedule == "constant":
        fall = optax.constant_schedule(learning_rate)
    else:
        raise ValueError(f"schedule={schedule!r} is not one of {SCHEDULES}")
    rate = optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, rise), fall], [rise]
    )
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(
            rate,
            b1=0.9,
            b2=0.95,
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        ),
    )


def create(
    params: Params,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    donate: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
        params: what is trained: all parameters of a model, or its adapters
            (`models.partition`). They are copied, because steps donate their state.
        optimizer: its state is created on the devices of the parameters.
        key: for everything random in the run.
        donate: gives `params` away instead of copying them.
    """

    def fresh(params: Params, key: Key[Array, ""]) -> TrainState:
        params = jax.tree.map(jnp.array, params)
        return TrainState(params, optimizer.init(params), key, jnp.int32(0))

    mesh, placed = sharding.mesh_of(params), None
    if mesh is not None:
        placed = sharding.shardings(jax.eval_shape(fresh, params, key), mesh)
    make = jax.jit(fresh, out_shardings=placed, donate_argnums=(0,) if donate else ())
    return make(params, key)
