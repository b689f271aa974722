"""The reward of a rewrite: five numbers in [0, 1] and their weighted mean.

Source: MiniELM (arXiv 2501.18056), section 3.2. For a rewrite Q~ of a query Q, with
P_Q the products that the search engine returns for Q:

    relevance    mean over P in P_Q~ of M1(Q, P)
    diversity    |P_Q~ minus P_Q| / |P_Q~|
    click, add_to_cart, purchase    M2(shopper, Q, P_Q~) / |P_Q~|

M1 is a `Relevance`, M2 a `Judge`. Both see the original query; neither ever sees the
rewrite, so that its wording cannot please them.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped

from jaxqr import metrics
from jaxqr.records import Hits, Interactions, Reward
from jaxqr.retrieval import Retriever, TermRetriever
from jaxqr.retrieval.serving import Serving, search_each
from jaxqr.rewards.profiles import Profile, assign, default_pool

INTERACTIONS = ("click", "add_to_cart", "purchase")
PARTS = ("relevance", "diversity", *INTERACTIONS)


@runtime_checkable
class Judge(Protocol):
    """M2: what a shopper does with a list of products."""

    def __call__(
        self,
        queries: Sequence[str],
        hits: Hits,
        gains: Float[np.ndarray, "Q M"],
        profiles: Sequence[Profile],
    ) -> Interactions:
        """Judges list q, shown to `profiles[q]` who typed the original `queries[q]`.

        `gains` are M1's for the listed products, 0 for padding: a judge need not ask
        M1 again. A row that cannot be judged is returned with `valid` False, not with
        zeros that look like a verdict. Empty lists are never passed in.
        """
        ...


@runtime_checkable
class Relevance(Protocol):
    """M1: how relevant a product is to a query."""

    def __call__(
        self, queries: Sequence[str], ids: Shaped[np.ndarray, "Q M"]
    ) -> Float[np.ndarray, "Q M"]:
        """Returns gains in [0, 1], 0 for the padding id ""."""
        ...


def rewrite_reward(
    queries: Sequence[str],
    rewrites: Sequence[str],
    *,
    retriever: Retriever,
    relevance: Relevance,
    judge: Judge,
    serving: Serving | None = None,
    weights: Mapping[str, float] | None = None,
    k: int = 20,
    profiles: Sequence[Profile] | None = None,
) -> Reward:
    """Scores `rewrites[q]` as a rewrite of `queries[q]`.

    A rewrite that is empty or finds nothing is a valid 0 in every part. A row whose
    search (of the query or of the rewrite) or judge failed is not valid. Equal
    (query, rewrite) rows are scored once and share the result, and every distinct text
    is searched once.

    Args:
        queries: Q original queries; a query may stand in several rows.
        rewrites: Q rewrites.
        retriever: The search engine; with `serving`, one that it can search.
        relevance: M1.
        judge: M2.
        serving: How query and rewrite become the list that is scored; None: it is the
            rewrite's own, as in MiniELM.
        weights: Weights of the parts in the total, by name; those not named weigh 1.
        k: Length of the lists that are judged.
        profiles: The pool of shoppers; each query meets one of them, always the same.

    Raises:
        ValueError: If the two differ in length, a weight is unknown, negative or not
            finite, all weights are 0, or M1 or M2 return numbers outside [0, 1].
        TypeError: If `serving` needs a search that the retriever has not.
    """
    if len(queries) != len(rewrites):
        raise ValueError(
            f"{len(queries)} queries and {len(rewrites)} rewrites, expected one "
            "rewrite per query; repeat a query that has several"
        )
    rows = list(zip(queries, rewrites, strict=True))
    pairs = {pair: i for i, pair in enumerate(dict.fromkeys(rows))}
    place = np.array([pairs[pair] for pair in rows], np.intp)
    queries = [query for query, _ in pairs]
    rewrites = [rewrite for _, rewrite in pairs]
    if serving is None:
        hits = search_each(retriever, [*queries, *rewrites], k)
        original, lists = map(hits.take, np.split(np.arange(2 * len(queries)), 2))
    else:
        original = search_each(retriever, queries, k)
        lists = serving(_with_terms(retriever), queries, [[r] for r in rewrites], k)
    reward = list_reward(
        queries,
        original,
        lists,
        relevance=relevance,
        judge=judge,
        weights=weights,
        profiles=profiles,
    )
    flags = {
        **reward.flags,
        "empty": np.array([not text.strip() for text in rewrites], np.bool_),
        "copy": metrics.exact_match(rewrites, queries).astype(np.bool_),
    }
    return Reward(
        reward.total[place],
        {name: part[place] for name, part in reward.parts.items()},
        reward.valid[place],
        {name: flag[place] for name, flag in flags.items()},
        lists.take(place),
    )


def list_reward(
    queries: Sequence[str],
    original: Hits,
    lists: Hits,
    *,
    relevance: Relevance,
    judge: Judge,
    weights: Mapping[str, float] | None = None,
    profiles: Sequence[Profile] | None = None,
) -> Reward:
    """Scores lists, wherever they come from, for the queries that they are shown for.

    Args:
        queries: Q original queries.
        original: their own lists, which diversity is measured against.
        lists: what is shown.
        relevance: M1.
        judge: M2.
        weights: as for `rewrite_reward`.
        profiles: as for `rewrite_reward`.

    Raises:
        ValueError: as `rewrite_reward`.
    """
    weight = _weights(weights)
    listed = lists.ids != ""
    searched = original.valid & lists.valid
    found = np.flatnonzero(searched & listed.any(axis=1))
    parts = {name: np.zeros(len(queries), np.float32) for name in PARTS}
    judged = np.ones(len(queries), np.bool_)
    parts["diversity"][:] = metrics.diversity(original.ids, lists.ids)
    if found.size:
        asked, shown = [queries[int(i)] for i in found], lists.take(found)
        gains = _in_unit("relevance", relevance(asked, shown.ids), shown.ids.shape)
        gains = np.where(listed[found], gains, np.float32(0))
        parts["relevance"][found] = gains.sum(axis=1) / listed[found].sum(axis=1)
        pool = default_pool() if profiles is None else profiles
        verdict = judge(asked, shown, gains, assign(pool, asked))
        judged[found] = verdict.valid
        for name in INTERACTIONS:
            rates = np.where(verdict.valid, getattr(verdict, name), 0.0)
            parts[name][found] = _in_unit(name, rates, found.shape)
    valid = searched & judged
    for part in parts.values():
        part[~valid] = 0.0
    total = sum(weight[name] * parts[name] for name in PARTS) / sum(weight.values())
    flags = {
        "no_results": searched & ~listed.any(axis=1),
        "search_failed": ~searched,
        "judge_failed": ~judged,
    }
    return Reward(np.asarray(total, np.float32), parts, valid, flags, lists)


def _with_terms(retriever: Retriever) -> TermRetriever:
    if not isinstance(retriever, TermRetriever):
        raise TypeError(
            f"{type(retriever).__name__} cannot be searched by weighted terms, as ways "
            "of serving may: give a TermRetriever"
        )
    return retriever


def _weights(given: Mapping[str, float] | None) -> dict[str, float]:
    weights = dict.fromkeys(PARTS, 1.0) | dict(given or {})
    if unknown := sorted(weights.keys() - set(PARTS)):
        raise ValueError(f"unknown weights {unknown}, expected some of {list(PARTS)}")
    bad = {name: w for name, w in weights.items() if not 0 <= w < float("inf")}
    if bad:
        raise ValueError(f"weights {bad}, expected finite numbers, 0 or more")
    if not any(weights.values()):
        raise ValueError("all weights are 0, expected at least one above 0")
    return weights


def _in_unit(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values, np.float32)
    if values.shape != shape:
        raise ValueError(f"{name} has shape {values.shape}, expected {shape}")
    # Sums of float32 probabilities end a little above 1.
    if not ((values >= 0) & (values <= 1 + 1e-5)).all():
        worst = values[~((values >= 0) & (values <= 1 + 1e-5))][0]
        raise ValueError(f"{name} has the value {worst}, expected numbers in [0, 1]")
    return np.minimum(values, 1.0)
