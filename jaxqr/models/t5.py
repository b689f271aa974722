"""T5 (Raffel et al. 2020), its version 1.1 and FLAN-T5: an encoder and a decoder.

Attention has no factor 1 / sqrt(C), and instead of positions a learned bias by the
distance of query and key, which all layers of a stack share. Version 1.0 has a ReLU
network, and scales the last state by 1 / sqrt(D) before the output embedding, which is
the input embedding; version 1.1 and FLAN-T5 have a gated GELU network and an output
embedding of their own. Without dropout: on small data use weight decay.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxqr.models.config import LanguageModelConfig
from jaxqr.models.layers import (
    Embedding,
    Head,
    KeyValues,
    attend_and_remember,
    attention,
    cached_attention,
    check_labels,
    head_major,
    projection,
    rematerialised,
    rms_norm,
    rows_of,
    take_rows,
    targets_per_source,
    tokens_of,
)
from jaxqr.types import Features, Pairs, Prompts


@dataclass(frozen=True)
class T5Config(LanguageModelConfig):
    """Sizes of a T5, under the names of Hugging Face's `config.json`.

    With `num_labels` it is an encoder with a classification head, and no decoder.
    """

    vocab_size: int = 32_128
    d_model: int = 512
    d_kv: int = 64
    """Channels per head."""
    d_ff: int = 2048
    num_layers: int = 6
    """Layers of the encoder."""
    num_decoder_layers: int | None = None
    """Layers of the decoder; None: as many as the encoder's."""
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"
    layer_norm_epsilon: float = 1e-6
    tied: bool = True
    """Whether the output embedding is the input embedding."""
    scale_decoder_outputs: bool = True
    """Whether the last state is scaled by d_model ** -0.5; version 1.0 does."""
    initializer_factor: float = 1.0
    pad_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 1
    """What ends a text; the first of several is what a finished row is filled with."""
    decoder_start_token_id: int = 0
    """What the decoder reads before the first target token."""

    def __post_init__(self) -> None:
        if self.feed_forward_proj not in ("relu", "gated-gelu"):
            raise ValueError(
                f"feed_forward_proj={self.feed_forward_proj!r} is not supported: "
                "expected 'relu' (T5) or 'gated-gelu' (T5 v1.1, FLAN-T5)"
            )

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder."""
        return self.num_decoder_layers or self.num_layers


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


def bucket_table(config: T5Config, *, both_ways: bool) -> Int[np.ndarray, " _"]:
    """The bucket of each distance between a query and an earlier key, from 0 on.

    Near distances have buckets of their own, farther ones share buckets that widen with
    the logarithm of the distance; the last entry is for all that are farther. The
    encoder looks both ways and has half of the buckets for each (Raffel et al. 2020,
    section 2.1).

    >>> small = T5Config(
    ...     relative_attention_num_buckets=8, relative_attention_max_distance=16
    ... )
    >>> bucket_table(small, both_ways=False).tolist()
    [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7]
    """
    longest = config.relative_attention_max_distance
    count = config.relative_attention_num_buckets // (2 if both_ways else 1)
    exact = count // 2
    # In float32 and in this order, as the original weights were trained.
    distance = np.arange(longest + 1, dtype=np.float32)
    share = np.log(np.maximum(distance, 1) / np.float32(exact))
    share = share / np.float32(np.log(longest / exact))
    wide = exact + (share * np.float32(count - exact)).astype(np.int32)
    table = np.where(distance < exact, distance, np.minimum(wide, count - 1))
    return table.astype(np.int32)


class Attention(nn.Module):
    """The four linear maps of an attention, without bias."""

    config: T5Config

    def setup(self) -> None:
        """Create the maps."""
        config, linear = self.config, projection(self.config, use_bias=False)
        width, model = config.num_heads * config.d_kv, config.d_model
        self.q = linear(width, std=_std(config, model * config.d_kv))
        self.k = linear(width, std=_std(config, model))
        self.v = linear(width, std=_std(config, model))
        self.o = linear(model, std=_std(config, width))

    def queries(self, x: Float[Array, "B T D"]) -> Float[Array, "B T H C"]:
        """The queries of each position."""
        return self._heads(self.q(x))

    def keys_and_values(
        self, x: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B S H C"], Float[Array, "B S H C"]]:
        """The keys and values of each position."""
        return self._heads(self.k(x)), self._heads(self.v(x))

    def out(self, h: Float[Array, "B T H C"]) -> Float[Array, "B T D"]:
        """What the heads have gathered, back in the model's width."""
        return self.o(h.reshape(*h.shape[:2], -1))

    def _heads(self, x: Float[Array, "B T F"]) -> Float[Array, "B T H C"]:
        return x.reshape(*x.shape[:2], self.config.num_heads, self.config.d_kv)


class FeedForward(nn.Module):
    """ReLU or gated GELU."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Return the network's output."""
        config, linear = self.config, projection(self.config, use_bias=False)
        inner = partial(linear, config.d_ff, std=_std(config, config.d_model))
        if config.feed_forward_proj == "relu":
            h = nn.relu(inner(name="wi")(x))
        else:
            h = nn.gelu(inner(name="wi_0")(x), approximate=True) * inner(name="wi_1")(x)
        return linear(config.d_model, std=_std(config, config.d_ff), name="wo")(h)


class EncoderBlock(nn.Module):
    """Attention in both directions and a feed-forward network, each added."""

    config: T5Config

    def setup(self) -> None:
        """Create the parts."""
        self.attn_norm, self.attn = _norm(self.config), Attention(self.config)
        self.mlp_norm, self.mlp = _norm(self.config), FeedForward(self.config)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        bias: Float[Array, "1 H S S"],
        attend: Bool[Array, "B 1 S"],
    ) -> Float[Array, "B S D"]:
        """Return the layer's output."""
        h = self.attn_norm(x)
        keys, values = self.attn.keys_and_values(h)
        h = attention(self.attn.queries(h), keys, values, attend, bias=bias, scale=1.0)
        x = x + self.attn.out(h)
        return x + self.mlp(self.mlp_norm(x))


class DecoderBlock(nn.Module):
    """Attention to earlier tokens, attention to the source, a feed-forward network."""

    config: T5Config

    def setup(self) -> None:
        """Create the parts."""
        self.attn_norm, self.attn = _norm(self.config), Attention(self.config)
        self.cross_norm, self.cross = _norm(self.config), Attention(self.config)
        self.mlp_norm, self.mlp = _norm(self.config), FeedForward(self.config)

    def __call__(
        self,
        x: Float[Array, "BN T D"],
        bias: Float[Array, "1 H T S"],
        attend: Bool[Array, "_ T S"],
        past: KeyValues | None,
        slot: Int[Array, ""] | None,
        source: Float[Array, "B _ D"] | KeyValues,
        source_mask: Bool[Array, "B _"],
    ) -> tuple[Float[Array, "BN T D"], KeyValues]:
        """Return the layer's output, and all keys and values with `past`.

        `source` is what the encoder made of it, or what `remember` made of that. All
        rows of one source look at it together.
        """
        h = self.attn_norm(x)
        keys, values = self.attn.keys_and_values(h)
        h, past = attend_and_remember(
            self.attn.queries(h), keys, values, attend, past, slot, bias=bias, scale=1.0
        )
        x = x + self.attn.out(h)

        q = self.cross.queries(self.cross_norm(x))
        together = q.reshape(len(source_mask), -1, *q.shape[2:])
        attend = source_mask[:, None]
        if isinstance(source, KeyValues):
            h = cached_attention(together, source, attend, scale=1.0)
        else:
            keys, values = self.cross.keys_and_values(source)
            h = attention(together, keys, values, attend, scale=1.0)
        x = x + self.cross.out(h.reshape(q.shape))
        return x + self.mlp(self.mlp_norm(x)), past

    def remember(self, source: Float[Array, "B S D"]) -> KeyValues:
        """Keys and values of the source, for any number of decoding steps."""
        return head_major(*self.cross.keys_and_values(source))


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
            std=_std(config, config.d_model),
        )
        rows, width = rows_of(config), config.d_model
        self.shared = embedding(rows, width, std=config.initializer_factor)
        encoder = rematerialised(EncoderBlock, config)
        self.encoder_bias = by_offset()
        self.encoder = [encoder(config) for _ in range(config.num_layers)]
        self.encoder_norm = _norm(config)
        if config.num_labels:
            self.classifier = Head(config, _std(config, width))
            return
        decoder = rematerialised(DecoderBlock, config)
        self.decoder_bias = by_offset()
        self.decoder = [decoder(config) for _ in range(config.decoder_layers)]
        self.decoder_norm = _norm(config)
        if not config.tied:
            self.lm_head = embedding(rows, width, std=_std(config, width))

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

    def prefill(self, prompts: Prompts, max_new_tokens: int) -> tuple[Features, Cache]:
        """Encode the prompts; return the features of the first token, and the cache.

        The cache has room for `max_new_tokens` calls of `step`. One more would
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
        return self.step(cache, jnp.full(rows, config.decoder_start_token_id))

    def step(self, cache: Cache, tokens: Int[Array, " BN"]) -> tuple[Features, Cache]:
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
            tokens_of(config)
        )
        return Features(x, unembed, None), tuple(layers)

    def _decoder_bias(self, offsets: Int[Array, "T S"]) -> Float[Array, "1 H T S"]:
        table = jnp.asarray(bucket_table(self.config, both_ways=False))
        return _per_head(
            self.decoder_bias(table[jnp.clip(-offsets, 0, len(table) - 1)])
        )


def _std(config: T5Config, width: int) -> float:
    """Standard deviation of fresh weights that are summed over `width` inputs."""
    return config.initializer_factor * width**-0.5


def _norm(config: T5Config) -> nn.RMSNorm:
    return rms_norm(config.layer_norm_epsilon, config.dtype)


def _offsets(length: int) -> Int[Array, "T T"]:
    """Key position minus query position."""
    place = jnp.arange(length)
    return place[None] - place[:, None]


def _per_head(bias: Float[Array, "T S H"]) -> Float[Array, "1 H T S"]:
    return bias.transpose(2, 0, 1)[None]
