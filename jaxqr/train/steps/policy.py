"""Policy gradients on sampled sequences."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Float

from jaxqr import losses
from jaxqr.train.steps.update import Metrics, apply_gradient, completion
from jaxqr.types import AnyArray, Pairs, Params, TrainState


class PolicyBatch(NamedTuple):
    """Sampled targets, N per source, and how much better each was than expected."""

    pairs: Pairs
    advantages: Float[AnyArray, " BN"]


def policy_gradient_step(
    state: TrainState,
    batch: PolicyBatch,
    base: Params,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """REINFORCE (Williams 1992) on the policy's own samples.

    loss = -sum_b A_b sum_t log pi(y_bt) / number of target tokens. A row of advantage 0
    has no gradient.

    Metrics: `loss`, `tokens`; `advantage`, the mean over rows.
    """

    def loss(params):
        targets = completion(model, params, batch.pairs)
        advantages = jnp.asarray(batch.advantages)
        value, metrics = losses.policy_gradient(targets.logps, advantages, targets.mask)
        return value, metrics | {"advantage": jnp.mean(advantages)}

    return apply_gradient(state, base, loss, optimizer)
