"""One token per row from logits: tempering, truncation, the draw, and its settings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

HEAD = 64
"""Truncation first looks at this many best tokens, and at all of them if need be."""

BLOCK = 128
"""Width of the blocks in which a drawn token is searched for."""

NO = -jnp.inf
"""The logit of a token that is never drawn."""

Scalar = float | int | Float[Array, ""]


class Sampling(NamedTuple):
    """How continuations are drawn; see `jaxqr.decode.generate`.

    >>> Sampling(temperature=0.0).arguments()["max_new_tokens"]
    24
    """

    max_source: int = 32
    """Tokens of a prompt; longer sources are cut to it."""
    max_new_tokens: int = 24
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0 keeps all tokens."""
    top_p: float = 1.0
    """1 keeps all tokens."""

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `decode.generate`: all but `max_source`."""
        fields = self._asdict()
        del fields["max_source"]
        return fields


def sample(
    logits: Float[Array, "B V"],
    key: Key[Array, ""],
    *,
    temperature: Scalar = 1.0,
    top_k: int | Int[Array, ""] = 0,
    top_p: Scalar = 1.0,
) -> Int[Array, " B"]:
    """One token per row from the tempered, truncated distribution of `logits`.

    The draw inverts the cumulative distribution at one uniform number per row. A
    draw that rounding put on an excluded token becomes the most probable token.

    >>> import jax, jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.1, 0.6, 0.3]]))
    >>> int(sample(logits, jax.random.key(0), temperature=0.0)[0])
    1
    """
    best = jnp.max(logits, axis=-1, keepdims=True)
    temperature, top_k = jnp.float32(temperature), jnp.asarray(top_k)

    def greedy():
        return _first(logits == best)

    def draw():
        scaled = (logits - best) / temperature
        uniform = jax.random.uniform(key, logits.shape[:1])

        def from_all(lowest=None):
            kept = scaled if lowest is None else jnp.where(scaled >= lowest, scaled, NO)
            token, good = _inverse_cdf(jnp.exp(kept), uniform)
            return jax.lax.cond(
                jnp.all(good),
                lambda: token,
                lambda: jnp.where(good, token, greedy()),
            )

        def from_head(head, tokens, lowest):
            weights = jnp.where(head >= lowest, jnp.exp(head), 0.0)
            place, good = _inverse_cdf(weights, uniform)
            return at(tokens, jnp.where(good, place, 0))

        def truncated():
            head, tokens, lowest, inside = _truncation(scaled, top_k, top_p)
            return jax.lax.cond(
                inside,
                lambda: from_head(head, tokens, lowest),
                lambda: from_all(lowest),
            )

        off = ((top_k <= 0) | (top_k >= logits.shape[-1])) & (top_p >= 1)
        return jax.lax.cond(off, from_all, truncated)

    return jax.lax.cond(temperature > 0, draw, greedy)


def at(values: Shaped[Array, "B V"], index: Int[Array, " B"]) -> Shaped[Array, " B"]:
    """One entry of each row."""
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]


def _first(marked: Bool[Array, "B V"]) -> Int[Array, " B"]:
    """Index of each row's first True, or the last index. XLA's argmax is 10x slower."""
    index = jnp.arange(marked.shape[-1], dtype=jnp.int32)[None]
    last = jnp.int32(marked.shape[-1] - 1)
    return jnp.min(jnp.where(marked, index, last), axis=-1)


def _inverse_cdf(
    weights: Float[Array, "B V"], uniform: Float[Array, " B"]
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """The first index whose cumulative weight exceeds `uniform` of the total.

    Also whether its weight is above 0, which rounding can prevent. Found in two
    steps, the block and then the index in it: a cumulative sum over the whole
    vocabulary takes ten times as long on a CPU.
    """
    rows, vocabulary = weights.shape
    width = min(BLOCK, vocabulary)
    blocks = jnp.pad(weights, ((0, 0), (0, -vocabulary % width)))
    blocks = blocks.reshape(rows, -1, width)
    upto = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = uniform * upto[:, -1]
    block = _first(upto > target[:, None])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    target = target - jnp.where(block > 0, at(upto, jnp.maximum(block - 1, 0)), 0.0)
    place = _first(jnp.cumsum(inside, axis=-1) > target[:, None])
    return jnp.minimum(block * width + place, vocabulary - 1), at(inside, place) > 0


def _truncation(logits, top_k, top_p):
    """The best tokens, and the lowest logit that survives top-k, then top-p.

    Exact in every case, ties included. The lowest logit is read off the sorted
    `HEAD` best tokens if all that survive are among them, as for a trained model, and
    else bisected over all tokens. Row maxima of `logits` are 0.

    Returns:
        `[B, HEAD]` best logits, falling, and their tokens; the lowest logit that is
        kept `[B, 1]`; whether every kept token is among the best.
    """
    vocabulary = logits.shape[-1]
    width = min(HEAD, vocabulary)
    top_k = jnp.where(top_k > 0, top_k, vocabulary)
    head, tokens = jax.lax.top_k(logits, width)
    rank = jnp.arange(width)[None]
    weights = jnp.exp(head) * (rank < top_k)
    total = jax.lax.cond(
        top_k <= width,
        lambda: jnp.sum(weights, axis=-1),
        lambda: jnp.sum(jnp.exp(logits), axis=-1),
    )[:, None]
    # A token is kept while the mass before it is short of the share.
    before = jnp.cumsum(weights, axis=-1) - weights
    short = (before < top_p * total) | (top_p >= 1)
    count = jnp.sum(short & (rank < top_k), axis=-1)
    last = at(head, jnp.clip(count, 1, width) - 1)[:, None]
    # Between the two, the mass that top-p shares out is not in the head.
    inside = (top_k <= width) | (
        (top_k >= vocabulary) & jnp.all((count < width) & (top_p < 1))
    )
    if width < vocabulary:  # no token outside the head is tied with the last one
        # Not head[:, -1:]: XLA then sorts all tokens instead of taking the best.
        inside &= jnp.all(last > jnp.min(head, axis=-1, keepdims=True))
    lowest = jax.lax.cond(inside, lambda: last, lambda: _bisected(logits, top_k, top_p))
    return head, tokens, lowest, inside


def _bisected(logits, top_k, top_p):
    """The lowest logit that is kept, `[B, 1]`, from all tokens."""
    lowest = _bisect(logits, lambda kept: jnp.sum(kept, axis=-1) >= top_k)
    weights = jnp.where(logits >= lowest, jnp.exp(logits), 0.0)
    total = jnp.sum(weights, axis=-1)
    nucleus = _bisect(
        logits,
        lambda kept: jnp.sum(jnp.where(kept, weights, 0.0), axis=-1) >= top_p * total,
    )
    return jnp.where(top_p < 1, jnp.maximum(lowest, nucleus), lowest)


def _bisect(logits, enough: Callable) -> Float[Array, "B 1"]:
    """Each row's highest threshold t with `enough(logits >= t)`.

    32 halvings of the integers that order float32 as the floats do: exact.
    """

    def ordered(bits):  # its own inverse
        return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

    order = ordered(jax.lax.bitcast_convert_type(logits, jnp.int32))

    def halve(_, bounds):
        low, high = bounds  # enough(low) holds, enough(high) does not
        middle = (low & high) + ((low ^ high) >> 1)
        holds = enough(order >= middle[:, None])
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    bounds = (jnp.min(order, axis=-1), jnp.max(order, axis=-1) + 1)
    low, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    return jax.lax.bitcast_convert_type(ordered(low), jnp.float32)[:, None]
