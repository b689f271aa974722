"""The encoder-decoder put together, and its cache."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxqr.models.layers import (
    Embedding,
    Head,
    KeyValues,
    check_labels,
    maybe_remat,
    num_output_tokens,
    padded_vocab_size,
    take_rows,
    targets_per_source,
)
from jaxqr.models.t5.blocks import (
    DecoderBlock,
    EncoderBlock,
    T5Config,
    bucket_table,
    norm_of,
    std_of,
)
from jaxqr.types import Features, Pairs, PromptBatch


class Cache(NamedTuple):
    """What a T5 remembers: what its decoder has read, and the source."""

    layers: tuple[KeyValues, ...]
    """Keys and values of each decoder layer [B H T C]; a slot for each target token."""

    memory: tuple[KeyValues, ...]
    """Each decoder layer's keys and values of the source [B H S C], computed once.
    However often a row is repeated, these stay one to a source."""

    memory_mask: Bool[Array, "B S"]

    slot: Int[Array, ""]
    """The first free slot: the next token of every row goes there."""

    def repeat(self, n: int) -> "Cache":
        """Each row n times, row `b * n + i` being the i-th of row b."""
        repeat = partial(jnp.repeat, repeats=n, axis=0)
        return self._replace(layers=jax.tree.map(repeat, self.layers))

    def take(self, index: Int[Array, "B n"]) -> "Cache":
        """Of each source's rows those that its own `index` names, in that order."""
        take = partial(take_rows, index=index)
        return self._replace(layers=jax.tree.map(take, self.layers))


class T5(nn.Module):
    """A T5 of any version; see `jaxqr.models` for its methods.

    There is no longest sequence: offsets beyond the largest share one bucket.
    """

    config: T5Config
    encoder_decoder = True

    def setup(self) -> None:
        """Create the embeddings, both stacks and the head."""
        config = self.config
        embedding = partial(Embedding, dtype=config.dtype)
        by_offset = partial(
            embedding,
            config.relative_attention_num_buckets,
            config.num_heads,
            std=std_of(config, config.d_model),
        )
        rows, width = padded_vocab_size(config), config.d_model
        self.shared = embedding(rows, width, std=config.initializer_factor)
        encoder = maybe_remat(EncoderBlock, config)
        self.encoder_bias = by_offset()
        self.encoder = [encoder(config) for _ in range(config.num_layers)]
        self.encoder_norm = norm_of(config)
        if config.num_labels:
            self.classifier = Head(config, std_of(config, width))
            return
        decoder = maybe_remat(DecoderBlock, config)
        self.decoder_bias = by_offset()
        self.decoder = [decoder(config) for _ in range(config.decoder_layers)]
        self.decoder_norm = norm_of(config)
        if not config.tied:
            self.lm_head = embedding(rows, width, std=std_of(config, width))

    def encode(
        self, tokens: Int[Array, "B S"], mask: Bool[Array, "B S"]
    ) -> Float[Array, "B S D"]:
        """Read texts that are padded on either side."""
        offsets = _offsets(tokens.shape[1])
        table = jnp.asarray(bucket_table(self.config, both_ways=True))
        distance = jnp.minimum(jnp.abs(offsets), len(table) - 1)
        later = self.config.relative_attention_num_buckets // 2 * (offsets > 0)
        bias = _per_head(self.encoder_bias(table[distance] + later))
        x = self.shared(tokens)
        for block in self.encoder:
            x = block(x, bias, mask[:, None])
        return self.encoder_norm(x)

    def completion(
        self, batch: Pairs
    ) -> tuple[Features, Int[Array, "BN _"], Bool[Array, "BN _"]]:
        """Features, tokens and mask of the window that trains, [BN 1+T].

        Column 0 is the decoder's start token, which predicts the first target token;
        it is not itself predicted, so its mask is False. Each source is encoded once
        for all of its N targets.
        """
        targets_per_source(batch)
        source_mask = jnp.asarray(batch.source_mask)
        source = self.encode(jnp.asarray(batch.source), source_mask)
        start = self.config.decoder_start_token_id
        tokens = jnp.pad(batch.target, ((0, 0), (1, 0)), constant_values=start)
        mask = jnp.pad(batch.target_mask, ((0, 0), (1, 0)), constant_values=True)
        length = tokens.shape[1]
        attend = jnp.tri(length, dtype=bool)[None] & mask[:, None]
        bias = self._decoder_bias(_offsets(length))
        sources = [source] * self.config.decoder_layers
        features, _ = self._decode(
            tokens, bias, attend, None, None, sources, source_mask
        )
        return features, tokens, mask.at[:, 0].set(False)

    def prefill(
        self, prompts: PromptBatch, max_new_tokens: int
    ) -> tuple[Features, Cache]:
        """Encode the prompts; return the features of the first token, and the cache.

        The cache has room for `max_new_tokens` calls of `decode_step`. One more would
        overwrite the last slot, unnoticed.
        """
        config, mask = self.config, jnp.asarray(prompts.mask)
        source = self.encode(jnp.asarray(prompts.tokens), mask)
        rows, slots = len(mask), 1 + max_new_tokens
        empty = jnp.zeros((rows, config.num_heads, slots, config.d_kv), source.dtype)
        cache = Cache(
            layers=(KeyValues(empty, empty),) * config.decoder_layers,
            memory=tuple(block.remember(source) for block in self.decoder),
            memory_mask=mask,
            slot=jnp.int32(0),
        )
        return self.decode_step(cache, jnp.full(rows, config.decoder_start_token_id))

    def decode_step(
        self, cache: Cache, tokens: Int[Array, " BN"]
    ) -> tuple[Features, Cache]:
        """Read one token per row; return the features that predict the next one."""
        offsets = jnp.arange(cache.layers[0].keys.shape[2]) - cache.slot
        features, layers = self._decode(
            tokens[:, None],
            self._decoder_bias(offsets[None]),
            (offsets <= 0)[None, None],
            cache.layers,
            cache.slot,
            cache.memory,
            cache.memory_mask,
        )
        return features, cache._replace(layers=layers, slot=cache.slot + 1)

    def classify(
        self,
        tokens: Int[Array, "B S"],
        mask: Bool[Array, "B S"],
        segments: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B num_labels"]:
        """Logits of the classes, from the mean of the encoder's states.

        `segments` play no part. A linear head makes the mean of the states' logits
        the logits of their mean, so this is Hugging Face's T5ForTokenClassification,
        averaged over the text.
        """
        del segments
        check_labels(self.config)
        hidden = self.encode(tokens, mask).astype(jnp.float32)
        count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        return self.classifier(jnp.einsum("BSD,BS->BD", hidden, mask / count))

    def run_once(self) -> None:
        """Read one token, so that `init` sees every parameter."""
        tokens, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
        if self.config.num_labels:
            self.classify(tokens, mask)
        else:
            self.completion(Pairs(tokens, mask, tokens, mask))

    def _decode(self, tokens, bias, attend, past, slot, sources, source_mask):
        """Features of the tokens, and each layer's keys and values."""
        config, layers = self.config, []
        x = self.shared(tokens)
        for i, block in enumerate(self.decoder):
            own = None if past is None else past[i]
            x, own = block(x, bias, attend, own, slot, sources[i], source_mask)
            layers.append(own)
        x = self.decoder_norm(x)
        if config.scale_decoder_outputs:
            x = x * config.d_model**-0.5
        unembed = (self.shared if config.tied else self.lm_head).table(
            num_output_tokens(config)
        )
        return Features(x, unembed, None), tuple(layers)

    def _decoder_bias(self, offsets: Int[Array, "T S"]) -> Float[Array, "1 H T S"]:
        table = jnp.asarray(bucket_table(self.config, both_ways=False))
        return _per_head(
            self.decoder_bias(table[jnp.clip(-offsets, 0, len(table) - 1)])
        )


def _offsets(length: int) -> Int[Array, "T T"]:
    """Key position minus query position."""
    place = jnp.arange(length)
    return place[None] - place[:, None]


def _per_head(bias: Float[Array, "T S H"]) -> Float[Array, "1 H T S"]:
    return bias.transpose(2, 0, 1)[None]
