"""Synthetic queries: how they vary, what they copy, how near they are to real ones."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxqr import metrics
from jaxqr.rewards.similarity import Encoder

VARIETY_QUERIES = 500
"""Queries that distinct-n and self-BLEU are of: both depend on how many there are."""


def variety(queries: Sequence[str], products: Sequence[str]) -> dict[str, float]:
    """Distinct-1 and -2 and self-BLEU of the first queries, and the share of copies.

    A copy has no word that its product's text lacks.
    """
    some = queries[:VARIETY_QUERIES]
    return {
        "distinct_1": metrics.distinct_n(some, 1),
        "distinct_2": metrics.distinct_n(some, 2),
        "self_bleu": float(metrics.self_bleu(some).mean()),
        "copied": float(np.mean(metrics.copied(queries, products) == 1)),
    }


def overlap(
    written: Sequence[str], real: Sequence[str], encoder: Encoder | None
) -> dict[str, Float[np.ndarray, " Q"]]:
    """ROUGE-L and, with an encoder, BERTScore's F1 of written against real queries."""
    columns = {"rouge_l": metrics.rouge_l(written, real)}
    if encoder:
        embedded = encoder.tokens(written), encoder.tokens(real)
        columns["bert_score"] = metrics.bert_score(*embedded).f1
    return columns
