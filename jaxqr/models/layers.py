"""Parts that the families share: linear maps, embeddings, normalization, attention.

Parameters are float32. `dtype` is the dtype of the computation; softmax and
normalization are float32 in any case.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from jaxqr.models.config import Dtype, ModelConfig
from jaxqr.types import Pairs, Params


class KeyValues(NamedTuple):
    """What one layer's attention remembers of the tokens it has read."""

    keys: Float[Array, "B K S C"]
    values: Float[Array, "B K S C"]


class Linear(nn.Module):
    """`x W + b` over the last axis; with adapters `x W + b + (alpha / rank) x A B`.

    Leading axes are flattened: on a CPU the weight gradient of one [B*T, D] product
    is 1.8 times faster than that of a [B, T, D] one. The adapters are a collection of
    their own, `lora`; B begins at 0, so that a fresh adapter changes nothing.
    """

    features: int
    dtype: Dtype
    std: float
    use_bias: bool = True
    rank: int = 0
    alpha: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*rows _"]) -> Float[Array, "*rows _"]:
        """Map the last axis to `features` channels."""
        width = x.shape[-1]
        init = nn.initializers.normal(self.std)
        kernel = self.param("kernel", init, (width, self.features))
        rows = x.reshape(-1, width).astype(self.dtype)
        out = rows @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            out += bias.astype(self.dtype)[None]
        if self.rank:
            init = nn.initializers.normal(width**-0.5)
            a = adapter(self, "a", init, (width, self.rank))
            b = adapter(self, "b", nn.initializers.zeros, (self.rank, self.features))
            scale = self.alpha / self.rank
            out += (rows @ a.astype(self.dtype)) @ (scale * b).astype(self.dtype)
        return out.reshape(*x.shape[:-1], self.features)


def adapter(
    module: nn.Module, name: str, init: Callable[..., Array], shape: tuple[int, ...]
) -> Array:
    """A parameter of the collection `lora`."""
    made = module.variable("lora", name, lambda: init(module.make_rng("params"), shape))
    return made.value


def projection(config: ModelConfig, **fields: Any) -> Callable[..., Linear]:
    """A `Linear` for the blocks of a model, with the adapters that its config asks for.

    Call it with `features` and `std`.
    """
    return partial(
        Linear,
        dtype=config.dtype,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        **fields,
    )


class Head(nn.Module):
    """A linear map to classes, in float32. It is trained in full, with adapters too."""

    config: ModelConfig
    std: float
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B num_labels"]:
        """Logits of the classes."""
        make = partial(adapter, self) if self.config.lora_rank else self.param
        shape = (x.shape[-1], self.config.num_labels)
        kernel = make("kernel", nn.initializers.normal(self.std), shape)
        logits = x.astype(jnp.float32) @ kernel
        if self.use_bias:
            bias = make("bias", nn.initializers.zeros, shape[1:])
            logits += bias[None]
        return logits


class Embedding(nn.Module):
    """A table of vectors, read by gather; an id outside the table reads NaN."""

    num_embeddings: int
    features: int
    dtype: Dtype
    std: float

    def setup(self) -> None:
        """Create the table."""
        init = nn.initializers.normal(self.std)
        shape = (self.num_embeddings, self.features)
        self.embedding = self.param("embedding", init, shape)

    def __call__(self, ids: Int[Array, "*rows"]) -> Float[Array, "*rows D"]:
        """Look up `ids`. Gradients are summed in float32."""
        return jnp.take(self.embedding, ids, axis=0).astype(self.dtype)

    def table(self, rows: int | None = None) -> Float[Array, "V D"]:
        """The table, or its first rows, in the dtype of the computation."""
        return self.embedding[:rows].astype(self.dtype)


def padded_vocab_size(config: Any) -> int:
    """Rows of a vocabulary's embedding: `vocab_size`, rounded up."""
    return -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple


def num_output_tokens(config: Any) -> int:
    """Number of ids that a model predicts."""
    return config.vocab_size if config.num_tokens is None else config.num_tokens


def layer_norm(epsilon: float, dtype: Dtype, name: str | None = None) -> nn.LayerNorm:
    """Layer normalization with the two-pass variance, in float32."""
    return nn.LayerNorm(
        epsilon, dtype=jnp.dtype(dtype), use_fast_variance=False, name=name
    )


def rms_norm(epsilon: float, dtype: Dtype, name: str | None = None) -> nn.RMSNorm:
    """`x / sqrt(mean(x^2) + epsilon)` times a scale, in float32."""
    return nn.RMSNorm(epsilon, dtype=jnp.dtype(dtype), name=name)


def maybe_remat(
    block: type[nn.Module], config: ModelConfig, static_argnums: tuple[int, ...] = ()
) -> Any:
    """The block as `config.remat` says; `static_argnums` count from self."""
    if config.remat == "none":
        return block
    policies = jax.checkpoint_policies
    kept = {"full": None, "dots": policies.dots_with_no_batch_dims_saveable}
    return nn.remat(block, static_argnums=static_argnums, policy=kept[config.remat])


def attention(
    queries: Float[Array, "B T H C"],
    keys: Float[Array, "B S K C"],
    values: Float[Array, "B S K C"],
    attend: Bool[Array, "#B #T S"],
    *,
    bias: Float[Array, "1 H T S"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B T H C"]:
    """Dot-product attention; `attend[b, t, s]` lets query t see key s.

    Softmax over s of `scale q.k + bias`, the scale being 1 / sqrt(C) by default.
    With fewer key/value heads than query heads, K dividing H, each serves H / K
    neighboring query heads. A query that sees no key gets the mean of all values:
    finite, and of no meaning.
    """
    return jax.nn.dot_product_attention(
        queries, keys, values, bias, attend[:, None], scale=scale
    )


def cached_attention(
    queries: Float[Array, "B T H C"],
    past: KeyValues,
    attend: Bool[Array, "#B #T S"],
    *,
    bias: Float[Array, "1 H T S"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B T H C"]:
    """The same over a cache.

    Heads come before slots there: reading one head's slots in a row makes a decoding
    step's attention five times faster on a CPU.
    """
    rows, length, heads, channels = queries.shape
    groups = heads // past.keys.shape[1]
    grouped = queries.reshape(rows, length, -1, groups, channels)
    grouped = grouped.transpose(0, 2, 3, 1, 4).reshape(
        rows, -1, groups * length, channels
    )
    scores = jnp.einsum(
        "BKMC,BKSC->BKMS", grouped, past.keys, preferred_element_type=jnp.float32
    )
    scores = scores * (channels**-0.5 if scale is None else scale)
    if bias is not None:
        scores += bias.reshape(1, -1, groups * length, bias.shape[-1])
    seen = jnp.broadcast_to(attend, (rows, length, attend.shape[-1]))
    seen = jnp.tile(seen, (1, groups, 1))[:, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(jnp.float32).min))
    out = jnp.einsum("BKMS,BKSC->BKMC", weights.astype(past.values.dtype), past.values)
    out = out.reshape(rows, -1, groups, length, channels).transpose(0, 3, 1, 2, 4)
    return out.reshape(queries.shape)


def head_major(
    keys: Float[Array, "B S K C"], values: Float[Array, "B S K C"]
) -> KeyValues:
    """The layout of a cache."""
    return KeyValues(keys.swapaxes(1, 2), values.swapaxes(1, 2))


def attend_and_remember(
    queries: Float[Array, "B _ H C"],
    keys: Float[Array, "B T K C"],
    values: Float[Array, "B T K C"],
    attend: Bool[Array, "#B _ S"],
    past: KeyValues | None,
    slot: Int[Array, ""] | None,
    *,
    bias: Float[Array, "1 H _ S"] | None = None,
    scale: float | None = None,
) -> tuple[Float[Array, "B _ H C"], KeyValues]:
    """Self-attention of tokens that were just read, and all that is now remembered.

    There may be fewer queries than keys, those of the last tokens alone. Without a
    past the tokens see each other. With one, their keys and values are
    written into it from `slot` on, and they see all of it that `attend` allows.
    """
    new = head_major(keys, values)
    if past is None or slot is None:
        return attention(queries, keys, values, attend, bias=bias, scale=scale), new
    write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=2)
    past = KeyValues(write(past.keys, new.keys), write(past.values, new.values))
    return cached_attention(queries, past, attend, bias=bias, scale=scale), past


def take_rows(x: Shaped[Array, "BN ..."], index: Int[Array, "B n"]) -> Array:
    """Of each prompt's N rows those of its own `index`; `[B n ...]`, flattened.

    Nothing moves between prompts, and so nothing between the devices that they are on.
    """
    by_prompt = x.reshape(len(index), -1, *x.shape[1:])
    taken = jax.vmap(lambda rows, index: rows[index])(by_prompt, index)
    return taken.reshape(-1, *x.shape[1:])


def positions_of(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Count the real tokens before each one, so that padding moves nothing.

    >>> positions_of(jnp.array([[False, True, True], [True, True, False]])).tolist()
    [[0, 0, 1], [0, 1, 1]]
    """
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


def targets_per_source(batch: Pairs) -> int:
    """The number N of targets of each source.

    Raises:
        ValueError: there are not as many rows of targets for each source.
    """
    count, rest = divmod(len(batch.target), len(batch.source))
    if rest or not count:
        raise ValueError(
            f"{len(batch.target)} targets for {len(batch.source)} sources: expected N "
            "rows of targets for each source, one source's after another's"
        )
    return count


def last_of(
    hidden: Float[Array, "B T D"], mask: Bool[Array, "B T"]
) -> Float[Array, "B D"]:
    """The state of each row's last real token."""
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError unless `width` splits evenly into `heads`."""
    if width % heads:
        raise ValueError(
            f"width {width} does not split into {heads} heads: "
            "choose a width that is a multiple of the number of heads"
        )


def check_length(length: int, limit: int) -> None:
    """Raise ValueError where a sequence has more tokens than there are positions."""
    if length > limit:
        raise ValueError(
            f"a sequence of {length} tokens does not fit the model's {limit} "
            "positions: shorten the texts or the generation, or build a model "
            "with more positions"
        )


def check_labels(config: ModelConfig) -> None:
    """Raise ValueError for a model without a classification head."""
    if not config.num_labels:
        raise ValueError(
            f"this {type(config).__name__.removesuffix('Config')} has no "
            "classification head (num_labels=0): build or load it with num_labels set"
        )


@partial(jax.jit, static_argnums=0)
def init(model: nn.Module, key: Key[Array, ""]) -> Params:
    """Draw fresh parameters: the variables dict that `model.apply` takes first."""
    return model.init(key, method="run_once")
