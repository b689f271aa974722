"""Does it help search? Recall and nDCG of what is served, against the query alone.

Over *all* relevant products of a query, so only for queries whose relevant products
are known: those that were fully judged, or all of a synthetic shop.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxqr import metrics
from jaxqr.evaluation.compare import difference, known_mean
from jaxqr.records import Hits

CUTS = (20, 50, 100)
"""Ranks of recall."""
DEPTH = max(CUTS)
"""Length of the lists."""
MAIN = "recall@50"
"""The metric that wins and losses are counted in."""
HARM = 0.05
"""A query is better or worse where `MAIN` differs by more."""


class Known(NamedTuple):
    """What is relevant to each query."""

    gains: Mapping[str, Mapping[str, float]]
    """Gain of every product that has one above 0, by query."""
    relevant: float
    """The least gain of a product that counts as relevant."""

    def products(self, query: str) -> set[str]:
        """The query's relevant products."""
        return {p for p, g in self.gains[query].items() if g >= self.relevant}


class Served(NamedTuple):
    """One system: the lists [Q, DEPTH] that it shows, and what they cost."""

    hits: Hits
    searches: float
    """Mean searches of a query."""


Columns = dict[str, Float[np.ndarray, " Q"]]
"""Numbers of one system, one entry per query; NaN where they are not known."""


def columns(queries: Sequence[str], hits: Hits, known: Known) -> Columns:
    """`recall@20`, `recall@50`, `recall@100`, `ndcg@10` and `no_results`.

    nDCG counts the gains of all products, 0 for those that are not judged. NaN where
    the search failed or the query has no relevant product.
    """
    wanted = [known.products(query) for query in queries]
    gains = [known.gains[query] for query in queries]
    width = max([len(g) for g in gains] + [1])
    ideal = np.array([[*g.values()] + [0.0] * (width - len(g)) for g in gains])
    listed = np.array(
        [
            [g.get(p, 0.0) for p in ids]
            for g, ids in zip(gains, hits.ids.tolist(), strict=True)
        ]
    )
    found = {
        f"recall@{k}": metrics.recall(hits.ids, wanted, k=k)
        for k in CUTS
        if k <= hits.ids.shape[1]
    }
    found["ndcg@10"] = metrics.ndcg(listed, ideal, k=10)
    unknown = ~hits.valid | np.array([not w for w in wanted])
    found = {name: np.where(unknown, np.nan, x) for name, x in found.items()}
    empty = (hits.ids == "").all(axis=1).astype(np.float64)
    return found | {"no_results": np.where(hits.valid, empty, np.nan)}


def better(before: Columns, after: Columns) -> Float[np.ndarray, " Q"]:
    """1 where a query is better served, -1 where it is worse, else 0; NaN unknown."""
    change = after[MAIN] - before[MAIN]
    return np.where(np.isnan(change), np.nan, np.sign(change) * (abs(change) > HARM))


def table(
    queries: Sequence[str],
    systems: Mapping[str, Served],
    known: Known,
    *,
    compared: Sequence[tuple[str, str]] = (),
    segments: Mapping[str, Bool[np.ndarray, " Q"]] | None = None,
    reward: Callable[[Hits], Float[np.ndarray, " Q"]] | None = None,
) -> dict[str, Any]:
    """The first table of a report, as data (`served` in `jaxqr.report`).

    Args:
        queries: held-out queries, all in `known`.
        systems: the first is the query alone, which the others are compared with.
        known: what is relevant.
        compared: further (system, than) to compare.
        segments: which queries are of a kind, by its name.
        reward: of lists, as in training.
    """
    found = {name: columns(queries, s.hits, known) for name, s in systems.items()}
    if reward is not None:
        for name, system in systems.items():
            found[name]["reward"] = reward(system.hits)
    first, *others = found
    shown = [name for name in found[first] if name != "no_results"]
    return {
        "queries": len(queries),
        "metrics": shown,
        "rows": [
            {"system": name, "searches": system.searches}
            | {metric: known_mean(x) for metric, x in found[name].items()}
            | _shares(better(found[first], found[name]))
            for name, system in systems.items()
        ],
        "differences": [
            {"metric": metric, "system": name, "than": than}
            | difference(found[than][metric], found[name][metric])
            for name, than in [
                *((name, first) for name in others),
                *compared,
            ]
            for metric in shown
        ],
        "segments": [
            {
                "segment": segment,
                "queries": int(rows.sum()),
                "rows": [
                    {"system": name, MAIN: known_mean(c[MAIN][rows])}
                    | difference(found[first][MAIN][rows], c[MAIN][rows])
                    for name, c in found.items()
                ],
            }
            for segment, rows in (segments or {}).items()
            if rows.any()
        ],
    }


def _shares(change: Float[np.ndarray, " Q"]) -> dict[str, float]:
    """Shares of queries that are better served, worse, and neither."""
    return {
        name: known_mean(np.where(np.isnan(change), np.nan, change == sign))
        for name, sign in (("win", 1), ("loss", -1), ("untouched", 0))
    }


def examples(
    queries: Sequence[str],
    before: Hits,
    after: Hits,
    known: Known,
    n: int = 10,
) -> list[dict[str, Any]]:
    """The queries that gain and that lose most in `MAIN`, with the products concerned.

    Up to `n` of each, the best first, those that stay the same left out.
    """
    change = (
        columns(queries, after, known)[MAIN] - columns(queries, before, known)[MAIN]
    )
    order = [
        int(i) for i in np.argsort(-change, kind="stable") if change[i] == change[i]
    ]
    wins = [i for i in order if change[i] > 0][:n]
    losses = [i for i in order if change[i] < 0][-n:]
    k = int(MAIN.split("@")[1])

    def shown(row: int) -> dict[str, Any]:
        wanted = known.products(queries[row])
        old, new = (
            [p for p in hits.ids[row, :k].tolist() if p in wanted]
            for hits in (before, after)
        )
        return {
            "query": queries[row],
            "change": float(change[row]),
            "gained": [p for p in new if p not in old],
            "lost": [p for p in old if p not in new],
        }

    return [shown(i) for i in [*wins, *losses]]
