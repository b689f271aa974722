"""Query classifiers by how their training rows were made, over several seeds.

Every strategy has the probabilities of the same rows, once per training seed. PR-AUC
is one number of all rows of a seed; intervals come from drawing queries and seeds with
replacement, the same ones for every strategy (`metrics.crossed_counts`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from jaxqr import metrics
from jaxqr.evaluation.classifier import (
    RANDOM_ORDERS,
    Judged,
    classification,
    ranking_ndcg,
)
from jaxqr.evaluation.compare import known_mean
from jaxqr.records import Labels

RESAMPLES = 500
CATEGORIES = 12
"""Most categories that are told."""
METRICS = ("pr_auc", "ndcg")
"""Those with intervals."""

Probabilities = Sequence[Float[np.ndarray, "R K"]]
"""Of every row, a set for each seed."""


def table(
    strategies: Mapping[str, Probabilities],
    rows: Judged,
    labels: Labels,
    compared: Sequence[tuple[str, str]],
    *,
    categories: Shaped[np.ndarray, " R"] | None = None,
    fully_judged: frozenset[str] | None = None,
) -> dict[str, Any]:
    """PR-AUC, nDCG@10 and calibration of every strategy, and how they differ.

    Args:
        strategies: by name; all have equally many seeds.
        rows: what the probabilities are of.
        labels: of the collection; a product's rank follows its expected gain.
        compared: (after, before) strategies whose differences are told, where both are
            there.
        categories: of each row's product, "" where it has none; None: there are none.
        fully_judged: the queries that nDCG is of; None: all.

    Returns:
        `rows`, one per strategy, means over seeds with 95 % intervals;
        `categories`, the same PR-AUC within each of the most judged ones;
        `differences`; `floors`: PR-AUC of guessing by the labels' frequency, and nDCG
        of a random order; and how many rows, queries and seeds there are.
    """
    number = {query: i for i, query in enumerate(dict.fromkeys(rows.query))}
    of_row = np.array([number[query] for query in rows.query])
    seeds = {len(found) for found in strategies.values()}
    if len(seeds) != 1:
        raise ValueError(
            f"strategies of {sorted(seeds)} seeds: expected one number, and above 0"
        )
    (num_seeds,) = seeds
    counts = metrics.crossed_counts(num_seeds, len(number), RESAMPLES, seed=0)
    columns = {
        name: _Columns.of(found, rows, labels, of_row, counts, fully_judged)
        for name, found in strategies.items()
    }
    return {
        "rows": [
            {"strategy": name}
            | _points(found, rows, labels, fully_judged)
            | {
                f"{metric}_interval": _bounds(columns[name].drawn[metric])
                for metric in METRICS
            }
            for name, found in strategies.items()
        ],
        "differences": [
            {"metric": metric, "strategy": after, "than": before}
            | _difference(columns[before], columns[after], metric)
            for after, before in compared
            if after in strategies and before in strategies
            for metric in METRICS
        ],
        "categories": _by_category(strategies, rows, categories),
        "floors": _floors(rows, labels, fully_judged),
        "judgements": len(rows.label),
        "queries": len(number),
        "seeds": num_seeds,
    }


class _Columns(NamedTuple):
    """One strategy's metrics: means over seeds, and under every resample."""

    mean: dict[str, float]
    drawn: dict[str, Float[np.ndarray, " B"]]

    @classmethod
    def of(
        cls,
        found: Probabilities,
        rows: Judged,
        labels: Labels,
        of_row: np.ndarray,
        counts: tuple[np.ndarray, np.ndarray],
        fully_judged: frozenset[str] | None,
    ) -> "_Columns":
        of_seed, of_query = counts
        share = of_seed / of_seed.sum(axis=1, keepdims=True)  # [B, S]
        auc = [
            metrics.pr_auc_resampled(p, rows.label, of_row, of_query, rows.weight)
            for p in found
        ]
        ndcg = np.stack(
            [
                _ndcg(p @ np.array(labels.gains), rows, labels, fully_judged)
                for p in found
            ]
        )  # [S, Q]
        known = ~np.isnan(ndcg[0])
        of_query = of_query[:, known]
        with np.errstate(invalid="ignore"):  # only queries of one gain were drawn
            ranked = of_query @ ndcg[:, known].T / of_query.sum(axis=1, keepdims=True)
        return cls(
            {
                "pr_auc": float(
                    np.mean(
                        [
                            metrics.pr_auc_micro(p, rows.label, rows.weight)
                            for p in found
                        ]
                    )
                ),
                "ndcg": known_mean(ndcg.ravel()),
            },
            {
                "pr_auc": np.sum(share * np.stack(auc, axis=1), axis=1),
                "ndcg": np.sum(share * ranked, axis=1),
            },
        )


def _bounds(drawn: Float[np.ndarray, " B"]) -> list[float]:
    """Of the middle 95 % of what is defined; NaN where nothing is."""
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return [float("nan")] * 2
    return [float(x) for x in np.quantile(known, (0.025, 0.975))]


def _difference(before: _Columns, after: _Columns, metric: str) -> dict[str, float]:
    low, high = _bounds(after.drawn[metric] - before.drawn[metric])
    return {
        "difference": after.mean[metric] - before.mean[metric],
        "low": low,
        "high": high,
    }


def _points(
    found: Probabilities,
    rows: Judged,
    labels: Labels,
    fully_judged: frozenset[str] | None,
) -> dict[str, Any]:
    """Means over seeds."""
    per_class = np.mean(
        [metrics.pr_auc_per_class(p, rows.label, rows.weight) for p in found], axis=0
    )
    named = zip(labels.names, per_class.tolist(), strict=True)
    auc = [metrics.pr_auc_micro(p, rows.label, rows.weight) for p in found]
    several = [
        {
            "pr_auc": auc[i],
            "ndcg": known_mean(
                _ndcg(p @ np.array(labels.gains), rows, labels, fully_judged)
            ),
            "ece": metrics.ece(p, rows.label, rows.weight),
        }
        | classification(p, rows.label)
        for i, p in enumerate(found)
    ]
    return {
        **{name: float(np.mean([one[name] for one in several])) for name in several[0]},
        "pr_auc_by_seed": auc,
        "pr_auc_by_class": dict(named),
    }


def _by_category(
    strategies: Mapping[str, Probabilities],
    rows: Judged,
    categories: Shaped[np.ndarray, " R"] | None,
) -> list[dict[str, Any]]:
    """Means over seeds of PR-AUC within the most judged categories."""
    if categories is None:
        return []
    known = Counter(category for category in categories.tolist() if category)
    lines = []
    for category, count in known.most_common(CATEGORIES):
        mine = np.flatnonzero(categories == category)
        label, weight = rows.label[mine], rows.weight[mine]
        auc = {
            name: [metrics.pr_auc_micro(p[mine], label, weight) for p in found]
            for name, found in strategies.items()
        }
        line = {name: float(np.mean(values)) for name, values in auc.items()}
        lines.append({"category": category, "judgements": count, "pr_auc": line})
    return lines


def _ndcg(
    scores: Float[np.ndarray, " R"],
    rows: Judged,
    labels: Labels,
    fully_judged: frozenset[str] | None,
) -> Float[np.ndarray, " Q"]:
    """By query, in the order of their first rows; NaN where it says nothing."""
    values = ranking_ndcg(rows, scores, labels)
    if fully_judged is not None:
        whole = [query in fully_judged for query in dict.fromkeys(rows.query)]
        values[~np.array(whole)] = np.nan
    return values


def _floors(
    rows: Judged, labels: Labels, fully_judged: frozenset[str] | None
) -> dict[str, float]:
    """What knows nothing of queries and products gets."""
    frequency = np.bincount(rows.label, rows.weight, minlength=labels.num_classes)
    guess = np.tile(frequency / frequency.sum(), (len(rows.label), 1))
    rng = np.random.default_rng(0)
    orders = [
        known_mean(_ndcg(rng.random(len(rows.label)), rows, labels, fully_judged))
        for _ in range(RANDOM_ORDERS)
    ]
    return {
        "pr_auc": metrics.pr_auc_micro(guess, rows.label, rows.weight),
        "ndcg": float(np.mean(orders)),
    }
