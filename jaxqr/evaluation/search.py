"""Rewrites in search: MiniELM's Table 3, coverage, and how far a policy has moved."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxqr import metrics
from jaxqr.decode import Sampling
from jaxqr.evaluation.compare import difference, known_mean
from jaxqr.lm import LM
from jaxqr.records import Hits, Reward
from jaxqr.rewards import INTERACTIONS, PARTS

FLAGS = ("copy", "no_results", "empty")
"""Shares of rewrites in the table."""

Score = Callable[[Sequence[str], Sequence[str]], Reward]


class Scorers(NamedTuple):
    """What measures (query, rewrite) pairs."""

    reward: Score
    """As in training. Its `Reward.hits` are what nDCG and true gain look at."""
    guard: Score
    """The same reward from shoppers that training never meets."""
    gains: Mapping[str, Mapping[str, float]]
    """Gain of every judged product, by query, of the queries that were fully judged."""
    true_gain: Callable[[str, str], float] | None
    """Gain of (query, product id) by the rule of a synthetic shop; None elsewhere."""
    k: int
    """Length of the lists."""


class SearchColumns(NamedTuple):
    """Numbers of one system, one entry per query; NaN where they are not known."""

    metrics: dict[str, Float[np.ndarray, " Q"]]
    flags: dict[str, Float[np.ndarray, " Q"]]
    failed: Float[np.ndarray, " Q"]
    """1 where the rewrite could not be scored."""

    def means(self) -> dict[str, float]:
        """Means over the queries that are known, and the shares of each flag."""
        values = {name: known_mean(x) for name, x in self.metrics.items()}
        values |= {name: known_mean(x) for name, x in self.flags.items()}
        return values | {"failed": float(self.failed.mean())}


def search_columns(
    queries: Sequence[str], rewrites: Sequence[str], scorers: Scorers
) -> SearchColumns:
    """Every number of Table 3 for `rewrites[q]` as a rewrite of `queries[q]`.

    `total`, the reward's parts, `guard_*` by the guard shoppers, `ndcg` (judged
    products only, NaN for queries that were not fully judged or have no relevant
    product), and `true_gain` (mean over the list, 0 for an empty one).
    """
    reward = scorers.reward(queries, rewrites)
    guard = scorers.guard(queries, rewrites)
    columns = {name: reward.part(name) for name in ("total", *PARTS)}
    columns |= {f"guard_{name}": guard.part(name) for name in INTERACTIONS}
    hits = reward.hits or Hits.failed(len(queries), 1)
    if scorers.gains:
        columns["ndcg"] = judged_ndcg(queries, hits, scorers.gains, scorers.k)
    if scorers.true_gain is not None:
        columns["true_gain"] = mean_gain(queries, hits, scorers.true_gain)
    flags = {
        name: np.where(reward.valid, reward.flags[name].astype(np.float64), np.nan)
        if name in reward.flags
        else np.full(len(queries), np.nan)
        for name in FLAGS
    }
    return SearchColumns(columns, flags, 1.0 - reward.valid)


def judged_ndcg(
    queries: Sequence[str],
    hits: Hits,
    gains: Mapping[str, Mapping[str, float]],
    k: int,
) -> Float[np.ndarray, " Q"]:
    """nDCG@k of each list's judged products, skipping those without a judgement.

    NaN where the search failed, or the query has no judged product of positive gain.
    """
    values = np.full(len(queries), np.nan)
    for row, (query, ids) in enumerate(zip(queries, hits.ids, strict=True)):
        judged = gains.get(query, {})
        if hits.valid[row] and max(judged.values(), default=0) > 0:
            ranked = np.array([[judged[i] for i in ids if i in judged]]).reshape(1, -1)
            ideal = np.array([list(judged.values())])
            values[row] = metrics.ndcg(ranked, ideal, k=k)[0]
    return values


def mean_gain(
    queries: Sequence[str], hits: Hits, gain: Callable[[str, str], float]
) -> Float[np.ndarray, " Q"]:
    """Mean gain of each list's products; 0 if it is empty, NaN if the search failed."""
    values = np.full(len(queries), np.nan)
    for row, (query, ids) in enumerate(zip(queries, hits.ids, strict=True)):
        if hits.valid[row]:
            found = [gain(query, i) for i in ids.tolist() if i]
            values[row] = np.mean(found) if found else 0.0
    return values


def table(
    queries: Sequence[str],
    systems: Mapping[str, Sequence[str]],
    scorers: Scorers,
    *,
    length: Callable[[Sequence[str]], float],
) -> dict[str, Any]:
    """Table 3 as data; its fields are among those of `online` in `jaxqr.report`.

    The last system is compared with each of the others.

    Args:
        queries: held-out queries.
        systems: rewrites by the system's name, in the order of the rows.
        scorers: what measures them.
        length: mean length of rewrites in tokens.
    """
    columns = {n: search_columns(queries, r, scorers) for n, r in systems.items()}
    *others, last = columns
    shown = list(columns[last].metrics)
    return {
        "queries": len(queries),
        "k": scorers.k,
        "metrics": shown,
        "counts": {
            metric: int(np.sum(~np.isnan(columns[last].metrics[metric])))
            for metric in shown
        },
        "failed": {name: float(c.failed.mean()) for name, c in columns.items()},
        "rows": [
            {"system": name} | columns[name].means() | {"length": length(rewrites)}
            for name, rewrites in systems.items()
        ],
        "differences": [
            {"metric": metric, "system": last, "than": than}
            | difference(columns[than].metrics[metric], columns[last].metrics[metric])
            for than in reversed(others)
            for metric in shown
        ],
    }


def drift(
    policy: LM, start: LM, queries: Sequence[str], sampling: Sampling
) -> dict[str, float]:
    """How far a policy has moved from its start, along one sample of every query.

    `kl` to the start and `entropy` are nats per token, `tokens` the samples' mean
    length.
    """
    drawn = policy.rewrite(queries, sampling=sampling)
    stats = policy.token_stats(
        [(q, rewrites[0].text) for q, rewrites in zip(queries, drawn, strict=True)],
        teacher=start,
        max_source=sampling.max_source,
        max_target=sampling.max_new_tokens,
    )
    tokens = stats.tokens.sum()
    return {
        "kl": float(stats.reverse_kl.sum() / tokens),
        "entropy": float(stats.entropy.sum() / tokens),
        "tokens": float(stats.tokens.mean()),
    }


class CoverageColumns(NamedTuple):
    """Numbers of one set of reformulations per query, [Q]."""

    coverage: Float[np.ndarray, " Q"]
    """Distinct relevant products found by all of them together."""
    empty: Float[np.ndarray, " Q"]
    """Reformulations that found nothing."""
    duplicates: Float[np.ndarray, " Q"]
    """Reformulations whose list another one before had already found."""


def coverage(
    sets: Sequence[Hits], relevant: Sequence[Collection[str]], k: int
) -> CoverageColumns:
    """Coverage of the relevant products by sets of reformulations.

    cov(Q) = |relevant(Q) n union of the first k products of each reformulation of Q|.
    MiniELM, section 4.2.2. What counts as relevant is the caller's to say. NaN where
    the search for one of the reformulations failed.

    Args:
        sets: for each query, the lists [N M] of its N reformulations.
        relevant: for each query, the ids of its relevant products.
        k: how many products of each list count.

    Raises:
        ValueError: the two differ in length, or k is below 1.
    """
    if len(sets) != len(relevant) or k < 1:
        raise ValueError(
            f"{len(sets)} sets, relevant products of {len(relevant)} queries, k={k}: "
            "expected as many sets as queries, and k of 1 or more"
        )
    rows = np.full((3, len(sets)), np.nan)
    for i, (hits, wanted) in enumerate(zip(sets, relevant, strict=True)):
        if hits.valid.all():
            lists = [tuple(ids[:k].tolist()) for ids in hits.ids]
            found = [ids for ids in lists if any(ids)]
            rows[:, i] = (
                metrics.product_coverage(lists, wanted),
                len(lists) - len(found),
                len(found) - len(set(found)),
            )
    return CoverageColumns(*rows)
