"""What every decoder-only model does, on top of one method that its family writes.

All rows of a batch share one cache slot per step, because prompts are padded on the
left: a step writes one slice, and no row needs a scatter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxqr.models.layers import (
    KeyValues,
    check_labels,
    check_length,
    last_of,
    positions_of,
    take_rows,
    targets_per_source,
)
from jaxqr.types import Features, Pairs, PromptBatch


class Cache(NamedTuple):
    """What a decoder-only model remembers of the tokens it has read."""

    layers: tuple[KeyValues, ...]
    """Keys and values of each layer [B K S C], in the dtype of the computation."""

    mask: Bool[Array, "B S"]
    """True where a slot holds a real token; False at padding and at free slots."""

    slot: Int[Array, ""]
    """The first free slot: the next token of every row goes there."""

    position: Int[Array, " B"]
    """The position of the next token of each row: its number of real tokens."""

    def repeat(self, n: int) -> "Cache":
        """Each row n times, row `b * n + i` being the i-th of row b."""
        return self._of_rows(lambda x: jnp.repeat(x, n, axis=0))

    def take(self, index: Int[Array, "B n"]) -> "Cache":
        """Of each prompt's rows those that its own `index` names, in that order."""
        return self._of_rows(lambda x: take_rows(x, index))

    def _of_rows(self, change: Callable[[Array], Array]) -> "Cache":
        return Cache(
            jax.tree.map(change, self.layers),
            change(self.mask),
            self.slot,
            change(self.position),
        )


class CausalLM(nn.Module):
    """A decoder-only language model.

    A family sets `config`, with a field `max_length`, and writes `forward`; where
    `config.num_labels` asks for it, it makes a head `score`. Sequences longer than
    `config.max_length` raise ValueError when they are traced.
    """

    config: Any
    encoder_decoder = False

    def forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        attend: Bool[Array, "B T S"],
        cache: Cache | None,
        start: int = 0,
    ) -> tuple[Features, tuple[KeyValues, ...]]:
        """Read T tokens; return their features and each layer's keys and values.

        Args:
            tokens: what to read.
            positions: the position of each token in its row.
            attend: `attend[b, t, s]` lets token t see key s.
            cache: None: the keys are those of `tokens`, and S is T. Otherwise they
                are `cache.layers` with those of `tokens` written at `cache.slot`.
            start: the first token whose features are wanted. Of the earlier ones the
                last layer computes keys and values only.
        """
        raise NotImplementedError

    def __call__(self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Features:
        """Features of a sequence that is padded on either side."""
        return self._read(tokens, mask)[0]

    def completion(
        self, batch: Pairs
    ) -> tuple[Features, Int[Array, "BN _"], Bool[Array, "BN _"]]:
        """Features, tokens and mask of the window that trains, [BN 1+T].

        Column 0 is the last source token, which predicts the first target token; it
        is not itself predicted, so its mask is False. Earlier columns are left out,
        so that the vocabulary is multiplied out for the target alone.

        A source and its N targets are read as one row, in which no target sees
        another and each has the positions that follow the source.
        """
        (rows, length), width = batch.source.shape, batch.target.shape[1]
        count = targets_per_source(batch)
        check_length(length + width, self.config.max_length)
        in_row = (rows, count * width)
        target, target_mask = jnp.asarray(batch.target), jnp.asarray(batch.target_mask)
        tokens = jnp.concatenate([batch.source, target.reshape(in_row)], axis=1)
        mask = jnp.concatenate([batch.source_mask, target_mask.reshape(in_row)], axis=1)

        source_positions = positions_of(jnp.asarray(batch.source_mask))
        target_positions = positions_of(target_mask).reshape(in_row)
        target_positions += source_positions[:, -1:] + 1
        positions = jnp.concatenate([source_positions, target_positions], axis=1)

        text = np.repeat(np.arange(count + 1), [length] + [width] * count)
        sees = (text[None] == text[:, None]) | (text[None] == 0)
        attend = jnp.asarray(np.tri(len(text), dtype=bool) & sees)[None] & mask[:, None]
        features, _ = self.forward(tokens, positions, attend, None, start=length - 1)

        last, own = features.hidden[:, :1], features.hidden[:, 1:]
        hidden = jnp.concatenate(
            [jnp.repeat(last, count, axis=0), own.reshape(-1, width, own.shape[-1])],
            axis=1,
        )
        last_tokens = jnp.repeat(jnp.asarray(batch.source[:, -1:]), count, axis=0)
        return (
            features._replace(hidden=hidden),
            jnp.concatenate([last_tokens, target], axis=1),
            jnp.pad(target_mask, ((0, 0), (1, 0))),
        )

    def prefill(
        self, prompts: PromptBatch, max_new_tokens: int
    ) -> tuple[Features, Cache]:
        """Read the prompts; return the features of the last column and the cache.

        The cache has room for `max_new_tokens` calls of `decode_step`. One more would
        overwrite the last slot, unnoticed.
        """
        tokens, mask = jnp.asarray(prompts.tokens), jnp.asarray(prompts.mask)
        length = tokens.shape[1]
        check_length(length + max_new_tokens, self.config.max_length)
        features, layers = self._read(tokens, mask, start=length - 1)

        def widen(x: Array, axis: int) -> Array:
            free = [(0, 0)] * x.ndim
            free[axis] = (0, max_new_tokens)
            return jnp.pad(x, free)

        cache = Cache(
            layers=tuple(KeyValues(widen(k, 2), widen(v, 2)) for k, v in layers),
            mask=widen(mask, 1),
            slot=jnp.array(length, jnp.int32),
            position=mask.sum(axis=1, dtype=jnp.int32),
        )
        return features, cache

    def decode_step(
        self, cache: Cache, tokens: Int[Array, " B"]
    ) -> tuple[Features, Cache]:
        """Read one token per row; return the features that predict the next one."""
        here = jnp.arange(cache.mask.shape[1]) == cache.slot
        mask = cache.mask | here[None]
        features, layers = self.forward(
            tokens[:, None], cache.position[:, None], mask[:, None], cache
        )
        return features, Cache(layers, mask, cache.slot + 1, cache.position + 1)

    def classify(
        self,
        tokens: Int[Array, "B S"],
        mask: Bool[Array, "B S"],
        segments: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B num_labels"]:
        """Logits of the classes, from the last token; `segments` play no part."""
        del segments
        check_labels(self.config)
        return self.score(last_of(self(tokens, mask).hidden, mask))

    def run_once(self) -> None:
        """Read one token, so that `init` sees every parameter."""
        inputs = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
        self.classify(*inputs) if self.config.num_labels else self(*inputs)

    def _read(
        self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], start: int = 0
    ) -> tuple[Features, tuple[KeyValues, ...]]:
        length = tokens.shape[1]
        check_length(length, self.config.max_length)
        attend = jnp.tri(length, dtype=bool)[None] & mask[:, None]
        return self.forward(tokens, positions_of(mask), attend, None, start)
