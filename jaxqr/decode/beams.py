"""Beam search: the N best continuations of each prompt that a narrow search finds.

Every step extends the N running hypotheses of a prompt by one token and keeps the
best N. In diverse beam search they are G groups that take their turns within a step,
and a token costs the more, the more beams of earlier groups have just chosen it. One
`_Hypotheses` holds what is running and another what has ended, of one group; the
functions that know them see one prompt and one group at a time.

The penalties are array arguments: changing them compiles nothing. Compilation happens
once per (model, prompt shape, `max_new_tokens`, `num_beams`, `num_groups`).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxqr import vocab
from jaxqr.decode.ends import end_tokens, is_end
from jaxqr.decode.sampling import NO, Scalar
from jaxqr.types import Features, Params, PromptBatch


class Beams(NamedTuple):
    """The N best continuations of each prompt, the best first.

    `mask` includes the end-of-text token. `scores` are what the search maximises;
    `logps` are the summed log-probabilities of the tokens under the model, without any
    penalty. Where there are fewer than N continuations, because the vocabulary is
    tiny, the last have an empty mask and both numbers are -inf.
    """

    tokens: Int[Array, "B N T"]
    scores: Float[Array, "B N"]
    mask: Bool[Array, "B N T"]
    logps: Float[Array, "B N"]


def beam_search(
    model: Any,
    params: Params,
    prompts: PromptBatch,
    *,
    max_new_tokens: int,
    num_beams: int,
    num_groups: int = 1,
    diversity_penalty: Scalar = 0.0,
    length_penalty: Scalar = 1.0,
) -> Beams:
    r"""Searches for the `num_beams` best continuations of every prompt.

    A continuation ends with its end-of-text token or has `max_new_tokens`. Its score is

    .. math:: |y|^{-\alpha} \sum_t \big(\log p(y_t \mid x, y_{<t})
              - \lambda \, n_t(y_t)\big)

    with alpha the length penalty, lambda the diversity penalty, and :math:`n_t(v)` how
    many beams of earlier groups went on with token v in step t.

    One step of a group of n beams ranks all their extensions. Those among the n best
    that have ended leave the beam, and the n best by score of all that have ever left
    are the group's result; the n best of the others go on. A group is done when its
    best running hypothesis, scored at its present length, is not above the worst of n
    results. That is a heuristic if alpha > 0, since a longer hypothesis may score more.

    All this is `generate(num_beams=N, num_return_sequences=N, early_stopping=False)`
    of transformers 5. Groups are those of its earlier releases, which differed in two
    points: they looked at an extension that had just ended, too, before a group was
    done, and a done group went on to choose the padding token.

    Args:
        model: a language model of `jaxqr.models`. `model.config.eos_token_id` ends a
            continuation; of several, any does.
        params: its parameters.
        prompts: source tokens, padded on the left.
        max_new_tokens: the width `T` of the result; static.
        num_beams: the number `N` of continuations of each prompt; static. 1 is greedy.
        num_groups: groups of equally many beams, each with its own results; static.
        diversity_penalty: in nats; 0 makes all groups equal.
        length_penalty: 0 ranks by log-probability, 1 by its mean over the tokens.

    Returns:
        Tokens, scores, mask and log-probabilities, sorted by score across the groups.

    Raises:
        ValueError: if the beams do not split into the groups, if a diversity penalty
            has no second group to act on, or if the model has no end-of-text token.

    Source:
        Vijayakumar et al. 2018, "Diverse beam search", algorithm 1 with Hamming
        diversity (section 5.1); Wu et al. 2016, section 7, for length normalization.
    """
    if num_beams < 1 or num_groups < 1 or num_beams % num_groups:
        raise ValueError(
            f"num_beams={num_beams} beams do not split into num_groups={num_groups} "
            "equal groups: make num_beams a multiple of num_groups"
        )
    if num_groups == 1 and np.any(np.asarray(diversity_penalty) != 0):
        raise ValueError(
            f"diversity_penalty={diversity_penalty} has no effect on one group: give "
            "num_groups > 1, or leave the penalty at 0"
        )
    return _beam_search(
        model,
        params,
        prompts,
        jnp.float32(diversity_penalty),
        jnp.float32(length_penalty),
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        num_groups=num_groups,
    )


class _Hypotheses(NamedTuple):
    """Some continuations, the best first; -inf as a score stands for none."""

    tokens: Int[Array, "*some T"]  # the first end-of-text token beyond `length`
    length: Int[Array, "*some"]
    scores: Float[Array, "*some"]  # with all penalties once ended; until then, sums
    logps: Float[Array, "*some"]

    def take(self, index: Int[Array, " _"]) -> "_Hypotheses":
        return jax.tree.map(lambda x: x[index], self)


class _Group(NamedTuple):
    """What the search knows of a group of n beams; with leading axes, of many."""

    running: _Hypotheses
    ended: _Hypotheses  # the n best
    done: Bool[Array, "*groups"]  # nothing can end any more


class _Search(NamedTuple):
    """The carry of the token loop, over B prompts and G groups of n beams."""

    column: Int[Array, ""]  # the column of `tokens` to fill next
    groups: _Group  # [B G ...]
    cache: Any  # of B G n rows


@partial(
    jax.jit, static_argnames=("model", "max_new_tokens", "num_beams", "num_groups")
)
def _beam_search(
    model,
    params,
    prompts,
    diversity_penalty,
    length_penalty,
    *,
    max_new_tokens,
    num_beams,
    num_groups,
):
    size = num_beams // num_groups
    shape = (prompts.tokens.shape[0], num_groups, size)

    def extend(search: _Search, features: Features, cache) -> _Search:
        """Chooses the tokens of `search.column` and writes them down."""
        logps = jax.nn.log_softmax(vocab.next_logits(features))
        step = partial(
            _step,
            column=search.column,
            ends=ends,
            diversity_penalty=diversity_penalty,
            length_penalty=length_penalty,
        )
        groups, parents = jax.vmap(step)(search.groups, logps.reshape(*shape, -1))
        if size > 1:  # else every beam is its own parent
            first = size * jnp.arange(num_groups, dtype=jnp.int32)[None, :, None]
            cache = cache.take((parents + first).reshape(shape[0], -1))
        return _Search(search.column + 1, groups, cache)

    def unfinished(search: _Search):
        return (search.column < max_new_tokens) & ~jnp.all(search.groups.done)

    def advance(search: _Search) -> _Search:
        last = jax.lax.dynamic_index_in_dim(
            search.groups.running.tokens, search.column - 1, axis=-1, keepdims=False
        )
        features, cache = model.apply(
            params, search.cache, last.reshape(-1), method="decode_step"
        )
        return extend(search, features, cache)

    features, cache = model.apply(params, prompts, max_new_tokens, method="prefill")
    ends = end_tokens(model, features.unembed.shape[0])
    features = features._replace(hidden=jnp.repeat(features.hidden, num_beams, axis=0))
    none = _Hypotheses(
        tokens=jnp.full((*shape, max_new_tokens), ends[0], jnp.int32),
        length=jnp.zeros(shape, jnp.int32),
        scores=jnp.full(shape, NO),
        logps=jnp.zeros(shape),
    )
    # All beams of a group are equal before the first step: only one may be extended.
    one = none._replace(scores=none.scores.at[..., 0].set(0.0))
    groups = _Group(one, none, jnp.zeros(shape[:2], bool))
    first = extend(
        _Search(jnp.int32(0), groups, None), features, cache.repeat(num_beams)
    )
    last = jax.lax.while_loop(unfinished, advance, first)
    return _results(last.groups.ended, ends[0])


def _step(
    groups: _Group,
    logps: Float[Array, "G n V"],
    *,
    column: Int[Array, ""],
    ends: tuple[int, ...],
    diversity_penalty: Float[Array, ""],
    length_penalty: Float[Array, ""],
) -> tuple[_Group, Int[Array, "G n"]]:
    """One token for all beams of one prompt, group after group.

    Returns:
        The groups after it, and which beam of its group each running one extends.
    """
    size = logps.shape[1]

    def take_turn(chosen: Float[Array, " V"], inputs):
        (running, ended, done), logps = inputs
        count = (1 + len(ends)) * size  # of them, `size` at least have not ended
        candidates, parents, tokens = _extensions(
            running, logps, diversity_penalty * chosen, column, count
        )
        closed = is_end(tokens, ends)

        scores, kept = jax.lax.top_k(jnp.where(closed, NO, candidates.scores), size)
        running = candidates.take(kept)._replace(scores=scores)
        goes_on = (scores > NO) & ~done
        chosen = chosen.at[tokens[kept]].add(goes_on.astype(chosen.dtype))

        full = column + 1 == running.tokens.shape[-1]
        leaves = (closed | full) & (jnp.arange(len(tokens)) < size) & ~done
        scores = candidates.scores / candidates.length**length_penalty
        ended = _best(
            size, ended, candidates._replace(scores=jnp.where(leaves, scores, NO))
        )
        # True without a running hypothesis; false while there are not n results.
        best = running.scores[0] / running.length[0] ** length_penalty
        done = done | (best <= ended.scores[-1])
        return chosen, (_Group(running, ended, done), parents[kept])

    _, (groups, parents) = jax.lax.scan(
        take_turn, jnp.zeros(logps.shape[-1]), (groups, logps)
    )
    return groups, parents


def _extensions(
    running: _Hypotheses,
    logps: Float[Array, "n V"],
    penalty: Float[Array, " V"],
    column: Int[Array, ""],
    count: int,
) -> tuple[_Hypotheses, Int[Array, " M"], Int[Array, " M"]]:
    """The `count` best hypotheses with one token more, or all if there are fewer.

    Returns:
        They, the beams that they extend, and their last tokens.
    """
    size, vocabulary = logps.shape
    # The best of a group are among the best of its beams: n V numbers stay unsorted.
    width = min(count, vocabulary)
    best, tokens = jax.lax.top_k(logps - penalty[None], width)
    best = (running.scores[:, None] + best).reshape(-1)
    scores, place = jax.lax.top_k(best, min(count, size * width))
    parents, tokens = place // width, tokens.reshape(-1)[place]
    before = running.take(parents)
    extended = _Hypotheses(
        tokens=jax.lax.dynamic_update_index_in_dim(
            before.tokens, tokens, column, axis=1
        ),
        length=before.length + 1,
        scores=scores,
        logps=before.logps + logps[parents, tokens],
    )
    return extended, parents, tokens


def _best(count: int, *hypotheses: _Hypotheses) -> _Hypotheses:
    """The best of all of them, sorted."""
    together = jax.tree.map(lambda *x: jnp.concatenate(x), *hypotheses)
    return together.take(jax.lax.top_k(together.scores, count)[1])


def _results(ended: _Hypotheses, fill: int) -> Beams:
    """All groups' results of a prompt in one list: `[B G n ...]` to `[B N ...]`."""
    prompts, groups, size, width = ended.tokens.shape
    ended = jax.tree.map(
        lambda x: x.reshape(prompts, groups * size, *x.shape[3:]), ended
    )
    ended = jax.vmap(partial(_best, groups * size))(ended)
    exists = ended.scores > NO
    length = jnp.where(exists, ended.length, 0)
    mask = jnp.arange(width)[None, None] < length[..., None]
    return Beams(
        tokens=jnp.where(mask, ended.tokens, fill),
        scores=ended.scores,
        mask=mask,
        logps=jnp.where(exists, ended.logps, NO),
    )
