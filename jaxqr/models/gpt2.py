"""GPT-2 (Radford et al. 2019): learned positions, normalization before each part.

Without dropout: on small data use weight decay.
"""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
from jaxtyping import Array, Bool, Float, Int

from jaxqr.models.causal import Cache, CausalLM
from jaxqr.models.config import LanguageModelConfig
from jaxqr.models.layers import (
    Embedding,
    Head,
    KeyValues,
    attend_and_remember,
    check_heads,
    layer_norm,
    maybe_remat,
    num_output_tokens,
    padded_vocab_size,
    projection,
)
from jaxqr.types import Features


@dataclass(frozen=True)
class GPT2Config(LanguageModelConfig):
    """Sizes of a GPT-2, under the names of Hugging Face's `config.json`."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    """Feed-forward width; None: four times `n_embd`."""
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    """Standard deviation of fresh weights; about n_embd ** -0.5 learns fastest."""
    bos_token_id: int | None = 50256
    eos_token_id: int | tuple[int, ...] | None = 50256
    """What ends a text; the first of several is what a finished row is filled with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.n_embd, self.n_head)

    @property
    def max_length(self) -> int:
        """The longest sequence the model reads."""
        return self.n_positions


class Block(nn.Module):
    """One layer: attention, then a feed-forward network, each added to its input."""

    config: GPT2Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        attend: Bool[Array, "B T S"],
        past: KeyValues | None,
        slot: Int[Array, ""] | None,
        start: int,
    ) -> tuple[Float[Array, "B _ D"], KeyValues]:
        """Return the output from `start` on, and all keys and values with `past`."""
        config, (rows, length, width) = self.config, x.shape
        heads = (rows, length, config.n_head, width // config.n_head)
        std, linear = config.initializer_range, projection(config)
        # Each block adds twice to the residual stream: keep its variance level.
        residual_std = std / (2 * config.n_layer) ** 0.5

        h = layer_norm(config.layer_norm_epsilon, config.dtype, name="ln_1")(x)
        h = linear(3 * width, std=std, name="c_attn")(h)
        q, k, v = (part.reshape(heads) for part in jax.numpy.split(h, 3, axis=-1))
        q, x, attend = q[:, start:], x[:, start:], attend[:, start:]
        h, past = attend_and_remember(q, k, v, attend, past, slot)
        h = h.reshape(x.shape)
        x = x + linear(width, std=residual_std, name="attn_proj")(h)

        h = layer_norm(config.layer_norm_epsilon, config.dtype, name="ln_2")(x)
        h = linear(config.n_inner or 4 * width, std=std, name="c_fc")(h)
        h = nn.gelu(h, approximate=True)
        x = x + linear(width, std=residual_std, name="mlp_proj")(h)
        return x, past


class GPT2(CausalLM):
    """A GPT-2 whose output embedding is its input embedding."""

    config: GPT2Config

    def setup(self) -> None:
        """Create the embeddings, the blocks and the last normalization."""
        config = self.config
        # Argument 5, counted from self, is `start`.
        block = maybe_remat(Block, config, static_argnums=(5,))
        embedding = partial(
            Embedding,
            features=config.n_embd,
            dtype=config.dtype,
            std=config.initializer_range,
        )
        self.wte = embedding(padded_vocab_size(config))
        self.wpe = embedding(config.n_positions)
        self.h = [block(config) for _ in range(config.n_layer)]
        self.ln_f = layer_norm(config.layer_norm_epsilon, config.dtype)
        if config.num_labels:
            self.score = Head(config, config.initializer_range, use_bias=False)

    def forward(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        attend: Bool[Array, "B T S"],
        cache: Cache | None,
        start: int = 0,
    ) -> tuple[Features, tuple[KeyValues, ...]]:
        """See `CausalLM.forward`."""
        x = self.wte(tokens) + self.wpe(positions)
        config, slot = self.config, None if cache is None else cache.slot
        layers = []
        for i, block in enumerate(self.h):
            past = None if cache is None else cache.layers[i]
            last = i == config.n_layer - 1
            x, past = block(x, attend, past, slot, start if last else 0)
            layers.append(past)
        unembed = self.wte.table(num_output_tokens(config))
        return Features(self.ln_f(x), unembed, None), tuple(layers)
