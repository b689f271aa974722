"""What all steps have in common: compilation, the gradient step, a batch's targets.

Every step is `step(state, batch, base, *frozen, **static) -> (state, metrics)`.
`state.params` is what is trained and nothing else; `base` is the rest of the same
model, `{}` where everything is trained (`models.partition`); `frozen` are teacher or
reference parameters. Frozen parameters are arguments, never closures.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxqr import models, vocab
from jaxqr.sharding import mesh_of
from jaxqr.types import AnyArray, Features, Pairs, Params, TrainState

Metrics = dict[str, Float[Array, ""]]


def compile_step(
    step: Callable, *, like: TrainState | None = None, **static: Any
) -> Callable:
    """Jits `step` with its static arguments bound and its state donated.

    Args:
        step: one of `jaxqr.train.steps`.
        like: the new state's arrays are placed where this state's are on their mesh.
            Without it, XLA chooses, and the second step compiles once more.
        static: the step's keyword arguments: models, optimizer, coefficients.
    """
    placed = None
    # Off a mesh there is no choice, and results that are pinned to their one device
    # differ from the first step's input: the second step would compile once more, too.
    if like is not None and mesh_of(like.params) is not None:
        placed = jax.tree.map(lambda x: x.sharding, like), None
    return jax.jit(partial(step, **static), donate_argnums=0, out_shardings=placed)


def apply_gradient(
    state: TrainState,
    base: Params,
    loss: Callable,
    optimizer: optax.GradientTransformation,
    *,
    accept: Callable[[Metrics], Bool[Array, ""]] | None = None,
) -> tuple[TrainState, Metrics]:
    """One optimizer step on `loss(params) -> (loss, metrics)`.

    `params` is the whole model, `base` combined with what is trained; the gradient is
    taken with respect to `state.params` alone. Where `accept(metrics)` is False,
    parameters and optimizer stay as they are, and only key and step go on.
    """

    def loss_of_trained(trained: Params):
        return loss(models.combine(trained, base))

    (value, metrics), grads = jax.value_and_grad(loss_of_trained, has_aux=True)(
        state.params
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if accept is not None:
        params, opt_state = jax.lax.cond(
            accept(metrics),
            lambda: (params, opt_state),
            lambda: (state.params, state.opt_state),
        )
    key = jax.random.split(state.key)[0]  # the other half is for sampling
    scalars = {k: v for k, v in metrics.items() if v.ndim == 0}
    return TrainState(params, opt_state, key, state.step + 1), scalars | {
        "loss": value,
        "grad_norm": optax.tree.norm(grads),
    }


class Completion(NamedTuple):
    """A batch's targets under one model; column 0 is the last source token."""

    features: Features
    logps: Float[Array, "B T"]
    mask: Array


def completion(model: Any, params: Params, batch: Pairs) -> Completion:
    """Reads the sources and their targets with teacher forcing."""
    features, tokens, mask = model.apply(params, batch, method="completion")
    return Completion(features, vocab.token_logps(features, tokens), mask)


def align(values: Float[AnyArray, "B T"]) -> Float[Array, "B T+1"]:
    """Numbers per target token -> the columns of a completion."""
    return jnp.pad(values, ((0, 0), (1, 0)))
