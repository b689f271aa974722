"""Classification of text pairs: the relevance model M1, query classifiers."""

from typing import Any

import jax.numpy as jnp
import optax

from jaxqr.train.steps.update import Metrics, apply_gradient
from jaxqr.types import LabeledBatch, Params, TrainState


def classify_step(
    state: TrainState,
    batch: LabeledBatch,
    base: Params,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """Weighted mean cross-entropy of a model's classes over the rows.

    loss = sum_b w_b CE_b / sum_b w_b, as in PyTorch's weighted loss; 0 if all weights
    are.

    Metrics: `accuracy`, the weighted share of rows whose class is the most probable
    one.
    """
    weight = jnp.asarray(batch.weight)
    total = jnp.sum(weight)

    def mean(x):
        return jnp.sum(weight * x) / jnp.where(total > 0, total, 1)

    def loss(params):
        logits = model.apply(
            params, batch.tokens, batch.mask, batch.segments, method="classify"
        )
        entropies = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), batch.label
        )
        right = jnp.argmax(logits, axis=-1) == batch.label
        return mean(entropies), {"accuracy": mean(right)}

    return apply_gradient(state, base, loss, optimizer)
