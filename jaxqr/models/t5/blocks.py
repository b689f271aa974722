"""T5's sizes, and the layers of its encoder and its decoder."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxqr.models.config import LanguageModelConfig
from jaxqr.models.layers import (
    KeyValues,
    attend_and_remember,
    attention,
    cached_attention,
    head_major,
    projection,
    rms_norm,
)


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
        super().__post_init__()
        if self.feed_forward_proj not in ("relu", "gated-gelu"):
            raise ValueError(
                f"feed_forward_proj={self.feed_forward_proj!r} is not supported: "
                "expected 'relu' (T5) or 'gated-gelu' (T5 v1.1, FLAN-T5)"
            )

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder."""
        return self.num_decoder_layers or self.num_layers


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
        self.q = linear(width, std=std_of(config, model * config.d_kv))
        self.k = linear(width, std=std_of(config, model))
        self.v = linear(width, std=std_of(config, model))
        self.o = linear(model, std=std_of(config, width))

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
        inner = partial(linear, config.d_ff, std=std_of(config, config.d_model))
        if config.feed_forward_proj == "relu":
            h = nn.relu(inner(name="wi")(x))
        else:
            h = nn.gelu(inner(name="wi_0")(x), approximate=True) * inner(name="wi_1")(x)
        return linear(config.d_model, std=std_of(config, config.d_ff), name="wo")(h)


class EncoderBlock(nn.Module):
    """Attention in both directions and a feed-forward network, each added."""

    config: T5Config

    def setup(self) -> None:
        """Create the parts."""
        self.attn_norm, self.attn = norm_of(self.config), Attention(self.config)
        self.mlp_norm, self.mlp = norm_of(self.config), FeedForward(self.config)

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
        self.attn_norm, self.attn = norm_of(self.config), Attention(self.config)
        self.cross_norm, self.cross = norm_of(self.config), Attention(self.config)
        self.mlp_norm, self.mlp = norm_of(self.config), FeedForward(self.config)

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


def std_of(config: T5Config, width: int) -> float:
    """Standard deviation of fresh weights that are summed over `width` inputs."""
    return config.initializer_factor * width**-0.5


def norm_of(config: T5Config) -> nn.RMSNorm:
    """A normalization in front of a part of a layer."""
    return rms_norm(config.layer_norm_epsilon, config.dtype)
