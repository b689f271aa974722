"""M1: how relevant a product is to a query, by a cross-encoder such as BERT.

The encoder reads query and product text together and predicts ESCI's four labels;
the relevance is the expected gain, sum_j p_j gain_j, in [0, 1]. This is the one
reward that needs the device, so this is the one module of rewards that imports jax:
import it by its own name.
"""

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxqr import models
from jaxqr.data.pipeline import collate_encoder, in_order
from jaxqr.data.tokenize import Tokenizer
from jaxqr.records import GAINS, LABELS, Product
from jaxqr.types import Params

MAX_TOKENS = 64


def product_text(product: Product) -> str:
    """What the encoder reads of a product: title, and what it does not say itself."""
    extra = [
        part
        for part in (product.brand, product.color)
        if part and part.lower() not in product.title.lower()
    ]
    return " ".join([product.title, *extra])


class RelevanceModel:
    """Expected gain of (query, product) pairs; every pair is scored once and kept.

    Several threads may call it, such as a sidecar's and that of an evaluation.

    Args:
        model: one of `jaxqr.models` with `len(LABELS)` classes, of any family.
        params: its parameters.
        tokenizer: its tokenizer.
        products: product by id.
        gains: gain of each label.
        max_tokens: length a text pair is cut to.
        batch_size: pairs per forward pass.
    """

    def __init__(
        self,
        model: Any,
        params: Params,
        tokenizer: Tokenizer,
        products: Mapping[str, Product],
        *,
        gains: Mapping[str, float] = GAINS,
        max_tokens: int = MAX_TOKENS,
        batch_size: int = 128,
    ):
        self._classify = partial(_probabilities, model, params)
        self._tokenizer, self._products = tokenizer, products
        self._gains = np.array([gains[label] for label in LABELS], np.float32)
        self._max_tokens, self._batch_size = max_tokens, batch_size
        self._known: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        products: Mapping[str, Product],
        *,
        gains: Mapping[str, float] = GAINS,
        max_tokens: int = MAX_TOKENS,
        **options: Any,
    ) -> "RelevanceModel":
        """Reads a Hugging Face folder of a model of any family with four classes.

        `max_tokens` should be the length that it was trained with; `options` go to
        `models.load_pretrained`, such as `dtype` and `place`.
        """
        model, params = models.load_pretrained(folder, **options)
        tokenizer = Tokenizer.load(folder)
        return cls(
            model, params, tokenizer, products, gains=gains, max_tokens=max_tokens
        )

    def __call__(
        self, queries: Sequence[str], ids: np.ndarray
    ) -> Float[np.ndarray, "Q M"]:
        """Gains of each query's products `[Q, M]`; 0 for the padding id ""."""
        pairs = [
            (query, str(product))
            for query, row in zip(queries, ids, strict=True)
            for product in row
        ]
        with self._lock:
            new = list(dict.fromkeys(p for p in pairs if p[1] and p not in self._known))
            if new:
                scores = self.probabilities(
                    [query for query, _ in new], [product for _, product in new]
                )
                gains = (scores @ self._gains).tolist()
                self._known.update(zip(new, gains, strict=True))
        gains = [self._known[pair] if pair[1] else 0.0 for pair in pairs]
        return np.array(gains, np.float32).reshape(ids.shape)

    def probabilities(
        self, queries: Sequence[str], products: Sequence[str]
    ) -> Float[np.ndarray, "R K"]:
        """Label probabilities of each (query, product id) row, in `LABELS` order."""
        rows = self._tokenizer.encoder(
            queries,
            [product_text(self._product(product)) for product in products],
            max_tokens=self._max_tokens,
        )
        # Similar lengths share a batch, so that short pairs are not padded to long.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
        collate = partial(collate_encoder, fill=self._tokenizer.eos)
        parts = [
            np.asarray(self._classify(batch.tokens, batch.mask, batch.segments))[:real]
            for batch, real in in_order(
                [rows[i] for i in order], collate, batch_size=self._batch_size
            )
        ]
        probabilities = np.zeros((len(rows), len(LABELS)), np.float32)
        if parts:
            probabilities[order] = np.concatenate(parts)
        return probabilities

    def _product(self, product: str) -> Product:
        if product not in self._products:
            raise ValueError(
                f"product {product!r} was found but is not in the catalogue that M1 "
                "reads: index the same products that it is given"
            )
        return self._products[product]


@partial(jax.jit, static_argnums=0)
def _probabilities(model, params, tokens, mask, segments):
    logits = model.apply(params, tokens, mask, segments, method="classify")
    return jax.nn.softmax(logits.astype(jnp.float32))
