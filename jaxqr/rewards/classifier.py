"""A classifier of text pairs: a model with a head, its parameters, its tokenizer."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxqr import models, sharding
from jaxqr.data.pipeline import collate_encoder, in_order
from jaxqr.data.tokenize import Tokenizer
from jaxqr.models.config import Dtype
from jaxqr.types import Params

MAX_TOKENS = 64


class Classifier(NamedTuple):
    """Classes of text pairs, such as the relevance label of (query, product).

    Attributes:
        model: one of `jaxqr.models` with `num_labels` classes, of any family.
        params: its parameters.
        tokenizer: its tokenizer.
        max_tokens: length a text pair is cut to.
    """

    model: Any
    params: Params
    tokenizer: Tokenizer
    max_tokens: int = MAX_TOKENS

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        max_tokens: int = MAX_TOKENS,
        dtype: Dtype = "float32",
        mesh: Mesh | None = None,
        num_labels: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> "Classifier":
        """Reads a Hugging Face folder.

        Args:
            folder: a classifier's; or, with `num_labels`, any model's.
            max_tokens: should be the length that it was trained with.
            dtype: of the computation.
            mesh: the devices to place it on; None: the first one.
            num_labels: gives the model a head of this many classes, freshly drawn where
                the folder has none of that size.
            seed: decides what is freshly drawn.
            options: further fields of the model's config (`remat`, `lora_rank`, ...).

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the folder has no classification head and `num_labels` is not
                given, or its tokenizer has ids that the model does not have.
        """
        folder = Path(folder).expanduser()
        tokenizer, config = Tokenizer.load(folder), models.load_config(folder)
        tokenizer.check_fits(config.vocab_size, folder)
        key = None
        if num_labels is not None:
            options, key = options | {"num_labels": num_labels}, jax.random.key(seed)
        elif not config.num_labels:
            raise ValueError(
                f"{folder} has no classification head: give the folder of a trained "
                "classifier, or num_labels to draw a head"
            )
        model, params = models.load_pretrained(
            folder,
            dtype=dtype,
            key=key,
            place=None if mesh is None else partial(sharding.placement, mesh=mesh),
            **options,
        )
        return cls(model, params, tokenizer, max_tokens)

    def save(self, folder: str | Path) -> None:
        """Writes a Hugging Face folder."""
        folder = Path(folder).expanduser()
        self.tokenizer.save(folder)
        models.save_pretrained(folder, self.model, self.params)

    def partition(self) -> tuple[Params, Params]:
        """What is trained of the parameters, and the frozen base."""
        return models.partition(self.params)

    def with_params(self, trained: Params) -> "Classifier":
        """The same model with other trained parameters."""
        return self._replace(params={**self.params, **trained})

    def probabilities(
        self, first: Sequence[str], second: Sequence[str], *, batch_size: int = 128
    ) -> Float[np.ndarray, "R K"]:
        """The probability of each class, for R text pairs."""
        rows = self.tokenizer.encoder(first, second, max_tokens=self.max_tokens)
        # Similar lengths share a batch, so that short pairs are not padded to long.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
        collate = partial(collate_encoder, fill=self.tokenizer.eos)
        parts = []
        batches = in_order([rows[i] for i in order], collate, batch_size=batch_size)
        for batch, real in batches:
            batch = sharding.shard_batch(batch, self.params)
            inputs = batch.tokens, batch.mask, batch.segments
            parts.append(np.asarray(_classify(self.model, self.params, *inputs))[:real])
        probabilities = np.zeros((len(rows), self.model.config.num_labels), np.float32)
        if parts:
            probabilities[order] = np.concatenate(parts)
        return probabilities


@partial(jax.jit, static_argnums=0)
def _classify(model, params, tokens, mask, segments):
    logits = model.apply(params, tokens, mask, segments, method="classify")
    return jax.nn.softmax(logits.astype(jnp.float32))
