"""Similarity of query and product by a pretrained sentence encoder, untrained here.

What a relevance model would have to learn from judgements, a sentence encoder such as
all-MiniLM-L6-v2 brings along (Reimers and Gurevych 2019).
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxqr import models
from jaxqr.data.pipeline import collate_encoder, in_order
from jaxqr.data.tokenize import EncoderRow, Tokenizer
from jaxqr.records import Product
from jaxqr.rewards.relevance import product_text

MAX_TOKENS = 64

Embed = Callable[[Sequence[str]], np.ndarray]
"""Vectors [N, D] of N texts."""


class Encoder(NamedTuple):
    """A pretrained BERT: vectors of tokens and of whole texts.

    Attributes:
        model: the module.
        params: its parameters.
        tokenizer: its tokenizer.
    """

    model: Any
    params: Any
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: str | Path) -> "Encoder":
        """Reads a Hugging Face folder of a BERT.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the folder is of another family, or says that a text's vector is
                anything else than the mean of its tokens'.
        """
        folder = Path(folder).expanduser()
        tokenizer, config = Tokenizer.load(folder), models.load_config(folder)
        if not isinstance(config, models.BertConfig):
            kind = type(config).__name__.removesuffix("Config")
            raise ValueError(
                f"{folder} holds a {kind}: expected the folder of a pretrained BERT"
            )
        _check_pooling(folder / "1_Pooling" / "config.json")
        return cls(*models.load_pretrained(folder), tokenizer)

    def tokens(self, texts: Sequence[str]) -> list[Float[np.ndarray, "_ D"]]:
        """The last hidden states of each text's tokens, special ones left out."""
        rows, places = self.tokenizer.alone(texts, max_tokens=MAX_TOKENS)
        states = self._each(rows, _hidden)
        return [hidden[place] for hidden, place in zip(states, places, strict=True)]

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """A vector of length 1 for each text: the mean of its tokens, scaled.

        Special tokens count, as in sentence-transformers.
        """
        rows, _ = self.tokenizer.alone(texts, max_tokens=MAX_TOKENS)
        width = self.model.config.hidden_size
        return np.array(self._each(rows, _mean), np.float32).reshape(-1, width)

    def _each(self, rows: Sequence[EncoderRow], read: Any) -> list[np.ndarray]:
        """What `read` returns of every row; similar lengths share a batch."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
        collate = partial(collate_encoder, fill=self.tokenizer.eos)
        found: list[np.ndarray] = []
        for batch, real in in_order([rows[i] for i in order], collate, batch_size=64):
            inputs = batch.tokens, batch.mask, batch.segments
            found += list(np.asarray(read(self.model, self.params, *inputs))[:real])
        place = {row: i for i, row in enumerate(order)}
        return [found[place[i]] for i in range(len(rows))]


class Similarity:
    """Cosine of a query's and a product's vector, 0 for negative ones.

    It can stand where a relevance model is asked. Every text is read once and kept;
    several threads may call it.

    Args:
        embed: makes vectors of length 1, such as `Encoder.texts`.
        products: product by id.
    """

    def __init__(self, embed: Embed, products: Mapping[str, Product]):
        self._embed, self._products = embed, products
        self._queries: dict[str, np.ndarray] = {}
        self._read: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(
        self, queries: Sequence[str], ids: np.ndarray
    ) -> Float[np.ndarray, "Q M"]:
        """Similarities of each query's products `[Q, M]`; 0 for the padding id ""."""
        with self._lock:
            self._learn(self._queries, {query: query for query in queries})
            seen = dict.fromkeys(str(p) for p in ids.ravel() if p)
            self._learn(self._read, {p: product_text(self._products[p]) for p in seen})
        found = np.zeros(ids.shape, np.float32)
        for i, query in enumerate(queries):
            for j, product in enumerate(ids[i].tolist()):
                if product:
                    found[i, j] = self._queries[query] @ self._read[product]
        return np.maximum(found, 0)

    def _learn(self, known: dict[str, np.ndarray], texts: Mapping[str, str]) -> None:
        new = {name: text for name, text in texts.items() if name not in known}
        known.update(zip(new, self._embed([*new.values()]), strict=True))


def _check_pooling(file: Path) -> None:
    """Refuses what sentence-transformers would not average."""
    if not file.exists():
        return
    chosen = json.loads(file.read_text(encoding="utf-8"))
    modes = {k for k, on in chosen.items() if k.startswith("pooling_mode") and on}
    if modes != {"pooling_mode_mean_tokens"}:
        raise ValueError(
            f"{file} asks for {', '.join(sorted(modes)) or 'nothing'}: only the mean "
            "of the tokens (pooling_mode_mean_tokens) is supported"
        )


@partial(jax.jit, static_argnums=0)
def _hidden(model, params, tokens, mask, segments):
    return model.apply(params, tokens, mask, segments)


@partial(jax.jit, static_argnums=0)
def _mean(model, params, tokens, mask, segments):
    states = _hidden(model, params, tokens, mask, segments).astype(jnp.float32)
    total = jnp.sum(states, axis=1, where=mask[..., None])
    return total / jnp.linalg.norm(total, axis=-1, keepdims=True)
