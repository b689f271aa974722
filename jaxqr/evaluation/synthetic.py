"""Synthetic queries: how they vary, what they copy, how near they are to real ones."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxqr import metrics, models
from jaxqr.data.pipeline import collate_encoder, in_order
from jaxqr.data.tokenize import Tokenizer

VARIETY_QUERIES = 500
"""Queries that distinct-n and self-BLEU are of: both depend on how many there are."""
MAX_TOKENS = 64

Embed = Callable[[Sequence[str]], list[Float[np.ndarray, "_ D"]]]
"""Embeddings of the tokens of each text, special ones left out."""


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
    written: Sequence[str], real: Sequence[str], embed: Embed | None
) -> dict[str, Float[np.ndarray, " Q"]]:
    """ROUGE-L and, with an encoder, BERTScore's F1 of written against real queries."""
    columns = {"rouge_l": metrics.rouge_l(written, real)}
    if embed:
        columns["bert_score"] = metrics.bert_score(embed(written), embed(real)).f1
    return columns


def load_encoder(folder: str | Path) -> Embed:
    """A pretrained encoder's last hidden states, for `metrics.bert_score`.

    Args:
        folder: a Hugging Face folder of a BERT.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder is of another family.
    """
    folder = Path(folder).expanduser()
    tokenizer, config = Tokenizer.load(folder), models.load_config(folder)
    if not isinstance(config, models.BertConfig):
        kind = type(config).__name__.removesuffix("Config")
        raise ValueError(
            f"{folder} holds a {kind}: BERTScore needs a pretrained BERT's folder"
        )
    model, params = models.load_pretrained(folder)
    return partial(_embed, model, params, tokenizer)


def _embed(
    model: Any, params: Any, tokenizer: Tokenizer, texts: Sequence[str]
) -> list[Float[np.ndarray, "_ D"]]:
    rows, places = tokenizer.alone(texts, max_tokens=MAX_TOKENS)
    collate = partial(collate_encoder, fill=tokenizer.eos)
    hidden: list[np.ndarray] = []
    for batch, real in in_order(rows, collate, batch_size=64):
        states = _hidden(model, params, batch.tokens, batch.mask, batch.segments)
        hidden += list(np.asarray(states)[:real])
    return [states[place] for states, place in zip(hidden, places, strict=True)]


@partial(jax.jit, static_argnums=0)
def _hidden(model, params, tokens, mask, segments):
    return model.apply(params, tokens, mask, segments)
