"""What every decoder-only model does, on top of one method that its family writes.

All rows of a batch share one cache slot per step, because prompts are padded on the
left: a step writes one slice, and no row needs a scatter.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxqr.models.layers import KeyValues, check_length, positions_of
from jaxqr.types import Features, Pairs, Prompts


class Cache(NamedTuple):
    """What a model remembers of the tokens it has read.

    Axis 0 of every array counts rows, except for the scalar `slot`, so rows are
    repeated and reordered with one `jax.tree.map`.
    """

    layers: tuple[KeyValues, ...]
    """Keys and values of each layer [B K S C], in the dtype of the computation."""

    mask: Bool[Array, "B S"]
    """True where a slot holds a real token; False at padding and at free slots."""

    slot: Int[Array, ""]
    """The first free slot: the next token of every row goes there."""

    position: Int[Array, " B"]
    """The position of the next token of each row: its number of real tokens."""


class CausalLM(nn.Module):
    """A decoder-only language model.

    A family sets `config`, with fields `max_length` and `vocab_size`, and writes
    `forward`. Sequences longer than `config.max_length` raise ValueError when they
    are traced.
    """

    config: Any

    def forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        attend: Bool[Array, "B T S"],
        cache: Cache | None,
    ) -> tuple[Features, tuple[KeyValues, ...]]:
        """Read T tokens; return their features and each layer's keys and values.

        Args:
            tokens: what to read.
            positions: the position of each token in its row.
            attend: `attend[b, t, s]` lets token t see key s.
            cache: None: the keys are those of `tokens`, and S is T. Otherwise they
                are `cache.layers` with those of `tokens` written at `cache.slot`.
        """
        raise NotImplementedError

    def __call__(self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Features:
        """Features of a sequence that is padded on either side."""
        return self._read(tokens, mask)[0]

    def completion(
        self, batch: Pairs
    ) -> tuple[Features, Int[Array, "B _"], Bool[Array, "B _"]]:
        """Features, tokens and mask of the window that trains, [B 1+T].

        Column 0 is the last source token, which predicts the first target token; it
        is not itself predicted, so its mask is False. Earlier columns are left out,
        so that the vocabulary is multiplied out for the target alone.
        """
        tokens = jnp.concatenate([batch.source, batch.target], axis=1)
        mask = jnp.concatenate([batch.source_mask, batch.target_mask], axis=1)
        features, _ = self._read(tokens, mask)
        start = batch.source.shape[1] - 1
        features = features._replace(hidden=features.hidden[:, start:])
        return features, tokens[:, start:], mask[:, start:].at[:, 0].set(False)

    def prefill(self, prompts: Prompts, max_new_tokens: int) -> tuple[Features, Cache]:
        """Read the prompts; return the features of the last column and the cache.

        The cache has room for `max_new_tokens` calls of `step`. One more would
        overwrite the last slot, unnoticed.
        """
        tokens, mask = jnp.asarray(prompts.tokens), jnp.asarray(prompts.mask)
        length = tokens.shape[1]
        check_length(length + max_new_tokens, self.config.max_length)
        features, layers = self._read(tokens, mask)

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
        return features._replace(hidden=features.hidden[:, -1:]), cache

    def step(self, cache: Cache, tokens: Int[Array, " B"]) -> tuple[Features, Cache]:
        """Read one token per row; return the features that predict the next one."""
        here = jnp.arange(cache.mask.shape[1]) == cache.slot
        mask = cache.mask | here[None]
        features, layers = self.forward(
            tokens[:, None], cache.position[:, None], mask[:, None], cache
        )
        return features, Cache(layers, mask, cache.slot + 1, cache.position + 1)

    def run_once(self) -> None:
        """Read one token, so that `init` sees every parameter."""
        self(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))

    def _read(
        self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
    ) -> tuple[Features, tuple[KeyValues, ...]]:
        length = tokens.shape[1]
        check_length(length, self.config.max_length)
        attend = jnp.tri(length, dtype=bool)[None] & mask[:, None]
        return self.forward(tokens, positions_of(mask), attend, None)
