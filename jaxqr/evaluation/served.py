"""Does it help search? Recall and nDCG of what is served, against the query alone.

Over *all* relevant products of a query, so only for queries whose relevant products
are known: those that were fully judged, or all of a synthetic shop.
"""

from collections.abc import Mapping, Sequence
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
    found = {f"recall@{k}": metrics.recall(hits.ids, wanted, k=k) for k in CUTS}
    found["ndcg@10"] = metrics.ndcg(listed, ideal, k=10)
    unknown = ~hits.valid | np.array([not w for w in wanted])
    found = {name: np.where(unknown, np.nan, x) for name, x in found.items()}
    empty = (hits.ids == "").all(axis=1).astype(np.float64)
    return found | {"no_results": np.where(hits.valid, empty, np.nan)}


def better(before: Columns, after: Columns) -> Float[np.ndarray, " Q"]:
    """1 where a query is better served, -1 where it is worse, else 0; NaN unknown."""
    change = after[MAIN] - before[MAIN]
    return np.where(np.isnan(change), np.nan, np.sign(change) * (abs(change) > HARM))


class Measured(NamedTuple):
    """Several systems on the same queries; the first is the query alone."""

    queries: list[str]
    systems: dict[str, Columns]
    """Of `columns`, and further ones, by the system's name."""
    searches: dict[str, Float[np.ndarray, " Q"]]
    """Searches of each query, by the system's name."""
    segments: dict[str, Bool[np.ndarray, " Q"]]
    """Which queries are of a kind, by its name."""

    @classmethod
    def concatenate(cls, parts: Sequence["Measured"]) -> "Measured":
        """The queries of several parts, such as folds; of the systems that all have."""
        first = parts[0]
        shared = [s for s in first.systems if all(s in part.systems for part in parts)]
        return cls(
            [query for part in parts for query in part.queries],
            {
                system: {
                    metric: np.concatenate([p.systems[system][metric] for p in parts])
                    for metric in first.systems[system]
                }
                for system in shared
            },
            {s: np.concatenate([p.searches[s] for p in parts]) for s in shared},
            {
                kind: np.concatenate([p.segments[kind] for p in parts])
                for kind in first.segments
            },
        )


def table(
    measured: Measured, compared: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """The first table of a report, as data (`served` in `jaxqr.report`).

    Args:
        measured: what is shown.
        compared: further (system, than) to compare; every system is compared with the
            first one.
    """
    found, searches = measured.systems, measured.searches
    first, *others = found
    shown = [name for name in found[first] if name != "no_results"]
    return {
        "queries": len(measured.queries),
        "metrics": shown,
        "rows": [
            {"system": name, "searches": float(searches[name].mean())}
            | {metric: known_mean(x) for metric, x in found[name].items()}
            | _shares(better(found[first], found[name]))
            for name in found
        ],
        "differences": [
            {"metric": metric, "system": name, "than": than}
            | difference(found[than][metric], found[name][metric])
            for name, than in [*((name, first) for name in others), *compared]
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
            for segment, rows in measured.segments.items()
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
