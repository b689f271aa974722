"""Llama 3 (Grattafiori et al. 2024): rotary positions, grouped-query attention.

Rotary positions are those of Su et al. 2021 in Hugging Face's layout: channel i of a
head turns together with channel i + C / 2. Llama 3.1 and 3.2 stretch the slow ones, by
which they read further than the 8,192 tokens of Llama 3.
"""

import math
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxqr.models.causal import Cache, CausalLM
from jaxqr.models.config import LanguageModelConfig
from jaxqr.models.layers import (
    Embedding,
    Head,
    KeyValues,
    attend_and_remember,
    check_heads,
    maybe_remat,
    num_output_tokens,
    padded_vocab_size,
    projection,
    rms_norm,
)
from jaxqr.types import Features


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 stretches its frequencies, under the names of `config.json`.

    Waves longer than the original context over `low_freq_factor` become `factor`
    times longer, waves shorter than it over `high_freq_factor` stay as they are, and
    those between are interpolated.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class LlamaConfig(LanguageModelConfig):
    """Sizes of a Llama, under the names of Hugging Face's `config.json`."""

    vocab_size: int = 32_000
    hidden_size: int = 4096
    intermediate_size: int = 11_008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    """None: as many as `num_attention_heads`."""
    head_dim: int | None = None
    """Channels per head; None: `hidden_size / num_attention_heads`."""
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    """Channel pair i of a head turns by `rope_theta ** (-2 i / C)` per position."""
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    """Standard deviation of fresh weights; about hidden_size ** -0.5 learns fastest."""
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    """What ends a text; the first of several is what a finished row is filled with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim is None:
            check_heads(self.hidden_size, self.num_attention_heads)
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"{self.num_attention_heads} query heads do not share "
                f"{self.kv_heads} key/value heads evenly: choose a divisor"
            )

    @property
    def max_length(self) -> int:
        """The longest sequence the model reads."""
        return self.max_position_embeddings

    @property
    def kv_heads(self) -> int:
        """Key/value heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def channels(self) -> int:
        """Channels per head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


def frequencies(config: LlamaConfig) -> Float[np.ndarray, " _"]:
    r"""Radians per position of each channel pair, [C / 2].

    .. math:: \omega_i = \theta^{-2i/C}

    and with scaling, for the wavelength :math:`\lambda = 2\pi/\omega` and L the
    original context,

    .. math::
        s = \mathrm{clip}\left(
            \frac{L/\lambda - low}{high - low}, 0, 1\right), \quad
        \omega' = (1 - s)\,\omega / factor + s\,\omega.

    >>> frequencies(LlamaConfig(head_dim=4, rope_theta=100.0, rope_scaling=None))
    array([1. , 0.1], dtype=float32)
    """
    channels = config.channels
    # In float32 throughout, as the original weights were trained.
    exponent = np.arange(0, channels, 2, dtype=np.float32) / np.float32(channels)
    omega = np.float32(1) / np.float32(config.rope_theta) ** exponent
    if (scaling := config.rope_scaling) is None:
        return omega
    waves = scaling.original_max_position_embeddings * omega / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    share = np.clip((waves - low) / (high - low), 0, 1)
    scaled = (1 - share) * omega / scaling.factor + share * omega
    return scaled.astype(np.float32)


def rotate(
    x: Float[Array, "B T H C"], angles: Float[Array, "B T _"]
) -> Float[Array, "B T H C"]:
    """Turn each channel pair by its angle, in float32."""
    one, two = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    turned = jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)
    return turned.astype(x.dtype)


class Block(nn.Module):
    """One layer: attention, then a gated network, each added to its input."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        angles: Float[Array, "B T _"],
        attend: Bool[Array, "B T S"],
        past: KeyValues | None,
        slot: Int[Array, ""] | None,
        start: int,
    ) -> tuple[Float[Array, "B _ D"], KeyValues]:
        """Return the output from `start` on, and all keys and values with `past`."""
        config, width = self.config, x.shape[-1]
        std, dtype = config.initializer_range, config.dtype
        linear = projection(config, use_bias=False)
        # Each block adds twice to the residual stream: keep its variance level.
        residual_std = std / (2 * config.num_hidden_layers) ** 0.5

        def heads(x: Float[Array, "B _ D"], count: int, name: str):
            out = linear(count * config.channels, std=std, name=name)(x)
            return out.reshape(*x.shape[:2], count, config.channels)

        h = rms_norm(config.rms_norm_eps, dtype, name="attn_norm")(x)
        k = rotate(heads(h, config.kv_heads, "k_proj"), angles)
        v = heads(h, config.kv_heads, "v_proj")
        h, x, attend = h[:, start:], x[:, start:], attend[:, start:]
        q = heads(h, config.num_attention_heads, "q_proj")
        q = rotate(q, angles[:, start:])
        h, past = attend_and_remember(q, k, v, attend, past, slot)
        h = h.reshape(*x.shape[:2], -1)
        x = x + linear(width, std=residual_std, name="o_proj")(h)

        h = rms_norm(config.rms_norm_eps, dtype, name="mlp_norm")(x)
        gate = linear(config.intermediate_size, std=std, name="gate_proj")(h)
        h = nn.silu(gate) * linear(config.intermediate_size, std=std, name="up_proj")(h)
        x = x + linear(width, std=residual_std, name="down_proj")(h)
        return x, past


class Llama(CausalLM):
    """A Llama; its output embedding is the input embedding where they are tied."""

    config: LlamaConfig

    def setup(self) -> None:
        """Create the embeddings, the blocks and the last normalization."""
        config = self.config
        # Argument 6, counted from self, is `start`.
        block = maybe_remat(Block, config, static_argnums=(6,))
        embedding = partial(
            Embedding,
            padded_vocab_size(config),
            config.hidden_size,
            config.dtype,
            config.initializer_range,
        )
        self.embed = embedding()
        self.layer = [block(config) for _ in range(config.num_hidden_layers)]
        self.norm = rms_norm(config.rms_norm_eps, config.dtype)
        if config.num_labels:
            self.score = Head(config, config.initializer_range, use_bias=False)
        elif not config.tie_word_embeddings:
            self.lm_head = embedding()

    def forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        attend: Bool[Array, "B T S"],
        cache: Cache | None,
        start: int = 0,
    ) -> tuple[Features, tuple[KeyValues, ...]]:
        """See `CausalLM.forward`."""
        config, slot = self.config, None if cache is None else cache.slot
        x = self.embed(tokens)
        angles = positions[..., None] * jnp.asarray(frequencies(config))[None, None]
        layers = []
        for i, block in enumerate(self.layer):
            past = None if cache is None else cache.layers[i]
            last = i == config.num_hidden_layers - 1
            x, past = block(x, angles, attend, past, slot, start if last else 0)
            layers.append(past)
        tied = config.tie_word_embeddings or config.num_labels
        unembed = (self.embed if tied else self.lm_head).table(
            num_output_tokens(config)
        )
        return Features(self.norm(x), unembed, None), tuple(layers)
