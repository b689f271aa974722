"""Classification of texts and text pairs: the relevance model M1."""

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
    """Mean cross-entropy of an encoder's classes over the rows.

    Metrics: `accuracy`, the share of rows whose class is the most probable one.
    """

    def loss(params):
        logits = model.apply(
            params, batch.tokens, batch.mask, batch.segments, method="classify"
        )
        entropies = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), batch.label
        )
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch.label)
        return jnp.mean(entropies), {"accuracy": accuracy}

    return apply_gradient(state, base, loss, optimizer)
