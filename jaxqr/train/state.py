"""The optimiser, what is trained of a model, and the state that a run starts from."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxqr.train import sharding
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
    """AdamW (betas 0.9 and 0.95) behind a clip of the gradient's global norm.

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


def split(params: Params) -> tuple[Params, Params]:
    """What is trained of a model, and what is not.

    Of parameters with a collection `lora` (Hu et al. 2021) that collection alone,
    of others everything. `joined` puts the two together again.

    >>> split({"params": 1, "lora": 2})
    ({'lora': 2}, {'params': 1})
    >>> split({"params": 1})
    ({'params': 1}, {})
    """
    if not isinstance(params, Mapping) or "lora" not in params:
        return params, {}
    return {"lora": params["lora"]}, {k: v for k, v in params.items() if k != "lora"}


def joined(trained: Params, kept: Params) -> Params:
    """The inverse of `split`."""
    return {**kept, **trained} if kept else trained


def create(
    params: Params,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    donate: bool = False,
) -> TrainState:
    """The state before the first step.

    What is trained of `params` is copied, because steps donate it, or itself donated;
    what is not trained is shared with the caller. On a mesh, each of the optimiser's
    arrays is made where its parameter lies.
    """
    trained, kept = split(params)

    def fresh(trained: Params, key: Key[Array, ""]) -> TrainState:
        trained = jax.tree.map(jnp.array, trained)
        return TrainState(trained, optimizer.init(trained), key, jnp.int32(0))

    mesh, placed = sharding.mesh_of(params), None
    if mesh is not None:
        placed = sharding.shardings(jax.eval_shape(fresh, trained, key), mesh)
    make = jax.jit(fresh, out_shardings=placed, donate_argnums=(0,) if donate else ())
    state = make(trained, key)
    return state._replace(params=joined(state.params, kept))
