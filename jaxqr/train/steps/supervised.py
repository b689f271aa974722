"""Supervised fine-tuning."""

from typing import Any

import optax

from jaxqr import losses
from jaxqr.train.steps.update import Metrics, apply_gradient, completion
from jaxqr.types import Pairs, Params, TrainState


def sft_step(
    state: TrainState,
    batch: Pairs,
    base: Params,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """Supervised fine-tuning: mean NLL of the target tokens, EOS included.

    Metrics: `loss` in nats per target token, `tokens` the number of them.
    """

    def loss(params):
        targets = completion(model, params, batch)
        return losses.nll(targets.logps, targets.mask)

    return apply_gradient(state, base, loss, optimizer)
