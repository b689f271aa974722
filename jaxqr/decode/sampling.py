"""Sampling: one jitted prefill and token loop, with the cache going in and out.

`generate` draws from one model; `generate_mixture` draws from a weighted mixture of
two models that each keep their own cache (MiniLLM's teacher-mixed sampling). Both are
the same loop over a tuple of models. A row ends with its end-of-text token, which is
inside the mask and has a log-probability; the loop ends when all rows have.

`temperature`, `top_k`, `top_p` and the mixture weight are array arguments: changing
them compiles nothing. Compilation happens once per (models, prompt shape,
`max_new_tokens`, `n`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxqr import vocab
from jaxqr.types import Features, Generated, Params, Prompts

HEAD = 64
"""Truncation first looks at this many best tokens, and at all of them if need be."""

BLOCK = 128
"""Width of the blocks in which a drawn token is searched for."""

NO = -jnp.inf
"""The logit of a token that is never drawn."""

Scalar = float | int | Float[Array, ""]


class Mixture(NamedTuple):
    """Targets drawn from `alpha teacher + (1 - alpha) student`.

    The log-probabilities are each model's own, at temperature 1; 0 outside `mask`.
    """

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    student_logps: Float[Array, "B T"]
    teacher_logps: Float[Array, "B T"]


def generate(
    model: Any,
    params: Params,
    prompts: Prompts,
    key: Key[Array, ""],
    *,
    max_new_tokens: int,
    n: int = 1,
    temperature: Scalar = 1.0,
    top_k: int | Int[Array, ""] = 0,
    top_p: Scalar = 1.0,
) -> Generated:
    """Continues every prompt `n` times until end-of-text or `max_new_tokens`.

    The next token is drawn from softmax(z / temperature), cut to the `top_k` most
    probable tokens, then to the smallest set of them that holds a share `top_p` of
    the remaining mass; tokens tied with the last one kept are kept too.

    Args:
        model: a causal model of `jaxqr.models`; `model.config.eos_token_id` ends a row.
        params: its parameters.
        prompts: source tokens, padded on the left.
        key: equal keys give equal samples.
        max_new_tokens: the width `T` of the result; static.
        n: samples of each prompt, which is read once; static.
        temperature: 0 is greedy.
        top_k: 0 keeps all tokens.
        top_p: in (0, 1]; 1 keeps all tokens.

    Returns:
        Tokens, mask and the model's log-probabilities (at temperature 1, untruncated),
        `[B * n, T]`, row `b * n + i` being prompt b's i-th. The log-probabilities are
        equal to `vocab.token_logps` of the same sequence under teacher forcing.
    """
    tokens, mask, (logps,) = _generate(
        (model,),
        (params,),
        jnp.ones(1),
        prompts,
        key,
        jnp.float32(temperature),
        jnp.int32(top_k),
        jnp.float32(top_p),
        max_new_tokens=max_new_tokens,
        n=n,
    )
    return Generated(tokens, mask, logps)


def generate_mixture(
    student: Any,
    student_params: Params,
    teacher: Any,
    teacher_params: Params,
    prompts: Prompts,
    key: Key[Array, ""],
    *,
    alpha: Scalar,
    max_new_tokens: int,
    temperature: Scalar = 1.0,
    top_k: int | Int[Array, ""] = 0,
    top_p: Scalar = 1.0,
) -> Mixture:
    """Continues prompts with tokens of `alpha p + (1 - alpha) q`.

    p is the teacher, q the student, each at temperature 1 before mixing (Gu et al.
    2024, section 2.2). The other arguments are those of `generate` and act on the
    mixture.
    """
    alpha = jnp.float32(alpha)
    tokens, mask, (student_logps, teacher_logps) = _generate(
        (student, teacher),
        (student_params, teacher_params),
        jnp.stack([1 - alpha, alpha]),
        prompts,
        key,
        jnp.float32(temperature),
        jnp.int32(top_k),
        jnp.float32(top_p),
        max_new_tokens=max_new_tokens,
        n=1,
    )
    return Mixture(tokens, mask, student_logps, teacher_logps)


class _Decoding(NamedTuple):
    """The carry of the token loop; tuples have one entry per model."""

    column: Int[Array, ""]  # the column of `tokens` to fill next
    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    logps: tuple[Float[Array, "B T"], ...]
    done: Bool[Array, " B"]  # rows that have their end-of-text token
    caches: tuple[Any, ...]


@partial(jax.jit, static_argnames=("models", "max_new_tokens", "n"))
def _generate(
    models,
    params,
    weights,
    prompts,
    key,
    temperature,
    top_k,
    top_p,
    *,
    max_new_tokens,
    n,
):
    rows = n * prompts.tokens.shape[0]
    eos = models[0].config.eos_token_id
    draw = partial(sample, temperature=temperature, top_k=top_k, top_p=top_p)

    def extend(state: _Decoding, features: tuple[Features, ...], caches) -> _Decoding:
        """Draws the token of `state.column` and writes it down."""
        logits = tuple(vocab.next_logits(f) for f in features)
        normalisers = tuple(jax.nn.logsumexp(z, axis=-1) for z in logits)
        mixture = _mixture(logits, normalisers, weights)
        token = draw(mixture, jax.random.fold_in(key, state.column))
        live = ~state.done
        token = jnp.where(live, token, eos)

        def put(array, values):
            return jax.lax.dynamic_update_slice(
                array, values[:, None].astype(array.dtype), (0, state.column)
            )

        return _Decoding(
            column=state.column + 1,
            tokens=put(state.tokens, token),
            mask=put(state.mask, live),
            logps=tuple(
                put(kept, jnp.where(live, _at(z, token) - normaliser, 0.0))
                for kept, z, normaliser in zip(
                    state.logps, logits, normalisers, strict=True
                )
            ),
            done=state.done | (token == eos),
            caches=caches,
        )

    def unfinished(state: _Decoding):
        return (state.column < max_new_tokens) & ~jnp.all(state.done)

    def advance(state: _Decoding) -> _Decoding:
        last = jax.lax.dynamic_index_in_dim(
            state.tokens, state.column - 1, axis=1, keepdims=False
        )
        features, caches = _each(
            [
                model.apply(p, cache, last, method="step")
                for model, p, cache in zip(models, params, state.caches, strict=True)
            ]
        )
        return extend(state, features, caches)

    features, caches = _each(
        [
            model.apply(p, prompts, max_new_tokens, method="prefill")
            for model, p in zip(models, params, strict=True)
        ]
    )
    features = tuple(
        f._replace(hidden=jnp.repeat(f.hidden, n, axis=0)) for f in features
    )
    caches = tuple(cache.repeat(n) for cache in caches)
    empty = _Decoding(
        column=jnp.int32(0),
        tokens=jnp.full((rows, max_new_tokens), eos, jnp.int32),
        mask=jnp.zeros((rows, max_new_tokens), bool),
        logps=tuple(jnp.zeros((rows, max_new_tokens)) for _ in models),
        done=jnp.zeros(rows, bool),
        caches=caches,
    )
    first = extend(empty, features, caches)
    last = jax.lax.while_loop(unfinished, advance, first)
    return last.tokens, last.mask, last.logps


def _each(pairs):
    """[(a, b), ...] -> ((a, ...), (b, ...))."""
    return tuple(zip(*pairs, strict=True))


def _at(values, token):
    return jnp.take_along_axis(values, token[:, None], axis=-1)[:, 0]


def _mixture(logits, normalisers, weights):
    """Logits of the distribution that is drawn from."""
    if len(logits) == 1:
        return logits[0]
    logqs = [z - n[:, None] for z, n in zip(logits, normalisers, strict=True)]
    return jax.nn.logsumexp(jnp.stack(logqs), b=weights[:, None, None], axis=0)


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
            return _at(tokens, jnp.where(good, place, 0))

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
    target = target - jnp.where(block > 0, _at(upto, jnp.maximum(block - 1, 0)), 0.0)
    place = _first(jnp.cumsum(inside, axis=-1) > target[:, None])
    return jnp.minimum(block * width + place, vocabulary - 1), _at(inside, place) > 0


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
    last = _at(head, jnp.clip(count, 1, width) - 1)[:, None]
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
