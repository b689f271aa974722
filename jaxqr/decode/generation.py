"""Sampling: one jitted prefill and token loop, with the cache going in and out.

`generate` draws from one model; `generate_mixture` draws from a weighted mixture of
two models that each keep their own cache (MiniLLM's teacher-mixed sampling). Both are
the same loop over a tuple of models. A row ends with its end-of-text token, which is
inside the mask and has a log-probability; the loop ends when all rows have.

`temperature`, `top_k`, `top_p` and the mixture weight are array arguments: changing
them compiles nothing. Compilation happens once per (models, prompt shape,
`max_new_tokens`, `n`).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxqr import vocab
from jaxqr.decode.ends import end_tokens, is_end
from jaxqr.decode.sampling import Scalar, at, sample
from jaxqr.types import Features, Generated, Params, PromptBatch


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
    prompts: PromptBatch,
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
        model: a language model of `jaxqr.models`. `model.config.eos_token_id` ends a
            row; of several, any does.
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
    prompts: PromptBatch,
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
    draw = partial(sample, temperature=temperature, top_k=top_k, top_p=top_p)

    def extend(state: _Decoding, features: tuple[Features, ...], caches) -> _Decoding:
        """Draws the token of `state.column` and writes it down."""
        logits = tuple(vocab.next_logits(f) for f in features)
        log_normalizers = tuple(jax.nn.logsumexp(z, axis=-1) for z in logits)
        mixture = _mixture(logits, log_normalizers, weights)
        token = draw(mixture, jax.random.fold_in(key, state.column))
        live = ~state.done
        token = jnp.where(live, token, ends[0])

        def put(array, values):
            return jax.lax.dynamic_update_slice(
                array, values[:, None].astype(array.dtype), (0, state.column)
            )

        return _Decoding(
            column=state.column + 1,
            tokens=put(state.tokens, token),
            mask=put(state.mask, live),
            logps=tuple(
                put(kept, jnp.where(live, at(z, token) - log_normalizer, 0.0))
                for kept, z, log_normalizer in zip(
                    state.logps, logits, log_normalizers, strict=True
                )
            ),
            done=state.done | is_end(token, ends),
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
                model.apply(p, cache, last, method="decode_step")
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
    ends = end_tokens(models[0], features[0].unembed.shape[0])
    features = tuple(
        f._replace(hidden=jnp.repeat(f.hidden, n, axis=0)) for f in features
    )
    caches = tuple(cache.repeat(n) for cache in caches)
    empty = _Decoding(
        column=jnp.int32(0),
        tokens=jnp.full((rows, max_new_tokens), ends[0], jnp.int32),
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


def _mixture(logits, log_normalizers, weights):
    """Logits of the distribution that is drawn from."""
    if len(logits) == 1:
        return logits[0]
    if len(counts := {z.shape[-1] for z in logits}) > 1:
        raise ValueError(
            f"student and teacher predict {' and '.join(map(str, sorted(counts)))} "
            "tokens; load both with the `num_tokens` of their common tokenizer"
        )
    logqs = [z - n[:, None] for z, n in zip(logits, log_normalizers, strict=True)]
    return jax.nn.logsumexp(jnp.stack(logqs), b=weights[:, None, None], axis=0)
