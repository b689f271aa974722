"""A gate: which queries are served with their rewrites, and which alone.

It looks at what is known when a query is served (`features`), and is fitted on
validation queries, where it is known what would have helped (`fit`).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxqr.evaluation.served import HARM
from jaxqr.records import Hits
from jaxqr.retrieval.analysis import tokens
from jaxqr.rewards import Relevance

NEGATIONS = frozenset({"no", "not", "non", "without", "except", "free"})
QUANTILES = np.linspace(0, 0.9, 10)
"""Of a feature: the thresholds that are tried."""

Features = Mapping[str, Float[np.ndarray, " Q"]]
"""By name, a number per query; the higher, the more is to be said for the rewrites."""


class Gate(NamedTuple):
    """Serves with the rewrites where every feature named reaches its threshold."""

    thresholds: Mapping[str, float]
    """None: always. A threshold of infinity: never."""

    def __call__(self, features: Features) -> Bool[np.ndarray, " Q"]:
        """Which queries are served with their rewrites."""
        (rows,) = {len(x) for x in features.values()}
        passed = np.ones(rows, np.bool_)
        for name, least in self.thresholds.items():
            passed &= features[name] >= least
        return passed


NEVER = Gate({"confidence": float("inf")})


def features(
    queries: Sequence[str],
    rewrites: Sequence[Sequence[str]],
    confidence: Float[np.ndarray, " Q"],
    original: Hits,
    served: Hits,
    relevance: Relevance,
    brands: frozenset[str] = frozenset(),
    k: int = 10,
) -> dict[str, Float[np.ndarray, " Q"]]:
    """What a gate can look at.

    `confidence` as given; `relevance`, M1's mean over the first `k` products served
    with the rewrites, minus that of the query alone; `overlap`, the share of the
    query's first `k` that are still among them; `protected`, the share of the query's
    protected terms that the first rewrite keeps, 1 without any.

    Args:
        queries: as typed.
        rewrites: the best first.
        confidence: of the first rewrite: its log-probability per token.
        original: lists of the queries alone.
        served: lists served with the rewrites.
        relevance: M1.
        brands: words of the catalogue's brands.
        k: products that count.
    """
    first, second = (hits.ids[:, :k] for hits in (original, served))
    kept = [
        len(set(a) & set(b) - {""}) / max(1, len(set(a) - {""}))
        for a, b in zip(first.tolist(), second.tolist(), strict=True)
    ]
    change = _mean_gain(queries, second, relevance)
    change = change - _mean_gain(queries, first, relevance)
    protects = [
        _kept(q, r[0] if r else "", brands)
        for q, r in zip(queries, rewrites, strict=True)
    ]
    return {
        "confidence": confidence,
        "relevance": change,
        "overlap": np.array(kept, np.float64),
        "protected": np.array(protects, np.float64),
    }


def fit(
    seen: Features,
    change: Float[np.ndarray, " Q"],
    ndcg: Float[np.ndarray, " Q"],
    *,
    harm: float = 0.1,
    most: int = 2,
) -> Gate:
    """The thresholds that gain most on validation queries without much harm.

    Of all gates of up to `most` features, with thresholds at deciles, the one of the
    greatest mean `change` among those that make at most a share `harm` of the queries
    worse by more than `HARM` and whose mean `ndcg` is not below 0; the fewest and the
    lowest thresholds among equals. If none gains, the gate that never opens.

    Args:
        seen: features of the validation queries.
        change: in recall, if they are served with their rewrites.
        ndcg: the same for nDCG.
        harm: share of queries that may be worse.
        most: features of a gate.
    """
    known = ~(np.isnan(change) | np.isnan(ndcg))
    seen = {name: x[known] for name, x in seen.items()}
    change, ndcg = change[known], ndcg[known]
    if not len(change):
        return NEVER
    best, gained = NEVER, 0.0
    for gate in _gates(seen, most):
        passed = gate(seen)
        mean = float(np.mean(change * passed))
        if (
            mean > gained + 1e-12
            and np.mean(passed & (change < -HARM)) <= harm
            and np.mean(ndcg * passed) >= 0
        ):
            best, gained = gate, mean
    return best


def _gates(seen: Features, most: int) -> list[Gate]:
    levels = {name: np.unique(np.quantile(x, QUANTILES)) for name, x in seen.items()}
    gates = []
    for size in range(most + 1):
        for names in combinations(levels, size):
            grid = np.meshgrid(*(levels[name] for name in names), indexing="ij")
            points = np.stack([x.ravel() for x in grid], axis=1) if names else [()]
            gates += [
                Gate(dict(zip(names, map(float, point), strict=True)))
                for point in points
            ]
    return gates


def _mean_gain(
    queries: Sequence[str], ids: np.ndarray, relevance: Relevance
) -> Float[np.ndarray, " Q"]:
    listed = ids != ""
    gains = np.where(listed, relevance(queries, ids), 0.0).astype(np.float64)
    return gains.sum(axis=1) / np.maximum(1, listed.sum(axis=1))


def _kept(query: str, rewrite: str, brands: frozenset[str]) -> float:
    protected = [
        t
        for t in tokens(query)
        if t in brands or t in NEGATIONS or any(c.isdigit() for c in t)
    ]
    said = set(tokens(rewrite))
    return sum(t in said for t in protected) / len(protected) if protected else 1.0
