"""Parts that the families share: linear maps, embeddings, attention.

Parameters are float32. `dtype` is the dtype of the computation; softmax and layer
normalisation are float32 in any case.
"""

from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxqr.types import Params

Dtype = Literal["float32", "bfloat16"]

INIT_STD = 0.02
"""Standard deviation of fresh weights, as in GPT-2 and BERT."""


class KeyValues(NamedTuple):
    """What one layer's attention remembers of the tokens it has read."""

    keys: Float[Array, "B S K C"]
    values: Float[Array, "B S K C"]


class Linear(nn.Module):
    """`x W + b` over the last axis.

    Leading axes are flattened: on a CPU the weight gradient of one [B*T, D] product
    is 1.8 times faster than that of a [B, T, D] one.
    """

    features: int
    dtype: Dtype
    std: float = INIT_STD

    @nn.compact
    def __call__(self, x: Float[Array, "*rows _"]) -> Float[Array, "*rows _"]:
        """Map the last axis to `features` channels."""
        width = x.shape[-1]
        init = nn.initializers.normal(self.std)
        kernel = self.param("kernel", init, (width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        rows = x.reshape(-1, width).astype(self.dtype)
        out = rows @ kernel.astype(self.dtype) + bias.astype(self.dtype)[None]
        return out.reshape(*x.shape[:-1], self.features)


class Embedding(nn.Module):
    """A table of vectors, read by gather; an id outside the table reads NaN."""

    num_embeddings: int
    features: int
    dtype: Dtype

    def setup(self) -> None:
        """Create the table."""
        init = nn.initializers.normal(INIT_STD)
        shape = (self.num_embeddings, self.features)
        self.embedding = self.param("embedding", init, shape)

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Look up `ids`. Gradients are summed in float32."""
        return jnp.take(self.embedding, ids, axis=0).astype(self.dtype)

    def table(self) -> Float[Array, "V D"]:
        """Return the whole table in the dtype of the computation."""
        return self.embedding.astype(self.dtype)


def layer_norm(epsilon: float, dtype: Dtype, name: str | None = None) -> nn.LayerNorm:
    """Layer normalisation with the two-pass variance, in float32."""
    return nn.LayerNorm(
        epsilon, dtype=jnp.dtype(dtype), use_fast_variance=False, name=name
    )


def attention(
    queries: Float[Array, "B T H C"],
    past: KeyValues,
    attend: Bool[Array, "B #T S"],
) -> Float[Array, "B T H C"]:
    """Scaled dot-product attention; `attend[b, t, s]` lets query t see key s.

    With fewer key/value heads than query heads, K dividing H, each serves H / K
    neighbouring query heads. A query that sees no key gets the mean of all values:
    finite, and of no meaning.
    """
    _, length, heads, _ = queries.shape
    if length == 1 and heads == past.keys.shape[2]:
        return _attention_of_one(queries, past, attend)
    mask = attend[:, None]
    return jax.nn.dot_product_attention(queries, past.keys, past.values, mask=mask)


def _attention_of_one(
    queries: Float[Array, "B 1 H C"], past: KeyValues, attend: Bool[Array, "B 1 S"]
) -> Float[Array, "B 1 H C"]:
    """The same for one query per row, with as many key/value heads as query heads.

    Its scores are sums of products, since batches of matrix-vector products are slow
    on a CPU: at B 64, S 48, H 4, C 64 it takes half of the time. An axis for groups
    of heads, or sums for the values too, can make XLA's loops several times slower.
    """
    keys, values = past
    products = queries.astype(jnp.float32) * keys.astype(jnp.float32)
    scores = products.sum(axis=-1) * queries.shape[-1] ** -0.5
    scores = jnp.where(attend[:, 0, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=1).astype(values.dtype)
    return jnp.einsum("BSH,BSHC->BHC", weights, values)[:, None]


def extend(
    past: KeyValues | None, new: KeyValues, slot: Int[Array, ""] | None
) -> KeyValues:
    """Write `new` into the slots from `slot` on; without a past, return it alone."""
    if past is None or slot is None:
        return new
    write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=1)
    return KeyValues(write(past.keys, new.keys), write(past.values, new.values))


def positions_of(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Count the real tokens before each one, so that padding moves nothing.

    >>> positions_of(jnp.array([[False, True, True], [True, True, False]])).tolist()
    [[0, 0, 1], [0, 1, 1]]
    """
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


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


@partial(jax.jit, static_argnums=0)
def init(model: nn.Module, key: Key[Array, ""]) -> Params:
    """Draw fresh parameters: the variables dict that `model.apply` takes first."""
    return model.init(key, method="run_once")
