"""BERT (Devlin et al. 2019): an encoder that reads in both directions.

Normalisation follows each part. Without dropout: on small data use weight decay.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxqr.models.config import ModelConfig
from jaxqr.models.layers import (
    Embedding,
    Head,
    attention,
    check_heads,
    check_labels,
    check_length,
    layer_norm,
    maybe_remat,
    positions_of,
    projection,
)


@dataclass(frozen=True)
class BertConfig(ModelConfig):
    """Sizes of a BERT, under the names of Hugging Face's `config.json`."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    """Standard deviation of fresh weights; about hidden_size ** -0.5 learns fastest."""
    pad_token_id: int | None = 0
    add_pooler: bool = True
    """Whether there is a pooler; a head has one in any case."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.hidden_size, self.num_attention_heads)


class Layer(nn.Module):
    """Attention, then a feed-forward network; each is added and then normalized."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], attend: Bool[Array, "B 1 S"]
    ) -> Float[Array, "B S D"]:
        """Return the layer's output."""
        config, (rows, length, width) = self.config, x.shape
        count, dtype = config.num_attention_heads, config.dtype
        std = config.initializer_range
        eps, linear = config.layer_norm_eps, projection(config, std=std)

        def heads(name: str) -> Float[Array, "B S H C"]:
            out = linear(width, name=name)(x)
            return out.reshape(rows, length, count, width // count)

        h = attention(heads("query"), heads("key"), heads("value"), attend)
        h = linear(width, name="attn_proj")(h.reshape(x.shape))
        x = layer_norm(eps, dtype, name="attn_norm")(x + h)
        h = linear(config.intermediate_size, name="mlp_fc")(x)
        h = linear(width, name="mlp_proj")(nn.gelu(h, approximate=False))
        return layer_norm(eps, dtype, name="mlp_norm")(x + h)


class Bert(nn.Module):
    """A BERT encoder, with the head of Hugging Face's BertForSequenceClassification.

    Every method reads tokens, their mask, and segments (0 for the first of two
    texts, 1 for the second). More tokens than `max_position_embeddings` raise
    ValueError when they are traced.
    """

    config: BertConfig

    def setup(self) -> None:
        """Create the embeddings, the layers and the head."""
        config = self.config
        width, dtype = config.hidden_size, config.dtype
        std = config.initializer_range
        layer = maybe_remat(Layer, config)
        self.word = Embedding(config.vocab_size, width, dtype, std)
        self.position = Embedding(config.max_position_embeddings, width, dtype, std)
        self.segment = Embedding(config.type_vocab_size, width, dtype, std)
        self.norm = layer_norm(config.layer_norm_eps, dtype)
        self.layer = [layer(config) for _ in range(config.num_hidden_layers)]
        if config.add_pooler or config.num_labels:
            self.pooler = projection(config)(width, std=std)
        if config.num_labels:
            self.classifier = Head(config, std)

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        mask: Bool[Array, "B S"],
        segments: Int[Array, "B S"],
    ) -> Float[Array, "B S D"]:
        """Encode texts that are padded on either side."""
        check_length(tokens.shape[1], self.config.max_position_embeddings)
        x = self.word(tokens) + self.position(positions_of(mask))
        x = self.norm(x + self.segment(segments))
        for layer in self.layer:
            x = layer(x, mask[:, None])
        return x

    def pool(
        self,
        tokens: Int[Array, "B S"],
        mask: Bool[Array, "B S"],
        segments: Int[Array, "B S"],
    ) -> Float[Array, "B D"]:
        """Encode each text as one vector: the state of its first token, projected."""
        if not (self.config.add_pooler or self.config.num_labels):
            raise ValueError(
                "this BERT has no pooler (add_pooler=False, num_labels=0): "
                "use the hidden states, or build it with add_pooler=True"
            )
        hidden = self(tokens, mask, segments)
        first = jnp.argmax(mask, axis=1)[:, None, None]
        return jnp.tanh(self.pooler(jnp.take_along_axis(hidden, first, axis=1)[:, 0]))

    def classify(
        self,
        tokens: Int[Array, "B S"],
        mask: Bool[Array, "B S"],
        segments: Int[Array, "B S"],
    ) -> Float[Array, "B num_labels"]:
        """Logits of the classes, in float32."""
        check_labels(self.config)
        return self.classifier(self.pool(tokens, mask, segments))

    def run_once(self) -> None:
        """Read one token, so that `init` sees every parameter."""
        zero = jnp.zeros((1, 1), jnp.int32)
        inputs = zero, jnp.ones((1, 1), bool), zero
        if self.config.num_labels:
            self.classify(*inputs)
        elif self.config.add_pooler:
            self.pool(*inputs)
        else:
            self(*inputs)
