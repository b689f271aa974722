"""Direct preference optimization."""

from typing import Any

import jax.numpy as jnp
import optax

from jaxqr import losses
from jaxqr.train.steps.update import Metrics, apply_gradient, completion
from jaxqr.types import Pairs, Params, Preferences, TrainState


def dpo_step(
    state: TrainState,
    batch: Preferences,
    base: Params,
    *ref_params: Params,
    model: Any,
    optimizer: optax.GradientTransformation,
    beta: float = 0.1,
    kind: str = "sigmoid",
) -> tuple[TrainState, Metrics]:
    """Direct preference optimization on sequence log-probabilities.

    Without `ref_params` this is MiniELM's eq. 2, which has no reference; with them it
    is DPO (Rafailov et al. 2023, eq. 7). Log-probabilities are summed over the
    target tokens, EOS included.

    Metrics: those of `losses.dpo`, means over the pairs that count; `chosen_logp` and
    `rejected_logp` are means over all rows.
    """
    both = _both(batch)

    def sequence_logps(params):
        targets = completion(model, params, both)
        total = jnp.sum(targets.logps * targets.mask, axis=1)
        return total.reshape(-1, 2).T

    if ref_params:
        ref_chosen, ref_rejected = sequence_logps(ref_params[0])
    else:
        ref_chosen = ref_rejected = jnp.zeros(batch.weight.shape)

    def loss(params):
        chosen, rejected = sequence_logps(params)
        value, metrics = losses.dpo(
            chosen,
            rejected,
            ref_chosen,
            ref_rejected,
            beta=beta,
            kind=kind,
            weight=jnp.asarray(batch.weight),
        )
        return value, metrics | {
            "chosen_logp": jnp.mean(chosen),
            "rejected_logp": jnp.mean(rejected),
            "tokens": jnp.sum(both.target_mask, dtype=jnp.float32),
        }

    return apply_gradient(state, base, loss, optimizer)


def _both(batch: Preferences) -> Pairs:
    """Two targets to each source, the chosen one first."""

    def in_turn(chosen, rejected):
        return jnp.stack([chosen, rejected], axis=1).reshape(-1, chosen.shape[-1])

    return Pairs(
        batch.source,
        batch.source_mask,
        in_turn(batch.chosen, batch.rejected),
        in_turn(batch.chosen_mask, batch.rejected_mask),
    )
