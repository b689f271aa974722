"""How two systems differ on the same queries."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxqr import metrics


def difference(
    before: Float[np.ndarray, " Q"], after: Float[np.ndarray, " Q"]
) -> dict[str, float]:
    """Mean of `after - before` with its 95 % paired bootstrap interval.

    Over the rows that both know (NaN is not known); all three numbers are NaN where
    there are none.

    >>> difference(np.array([0.0, 1.0, np.nan]), np.array([1.0, 2.0, 3.0]))
    {'difference': 1.0, 'low': 1.0, 'high': 1.0}
    """
    known = ~(np.isnan(before) | np.isnan(after))
    if not known.any():
        return dict.fromkeys(("difference", "low", "high"), float("nan"))
    interval = metrics.paired_bootstrap(before[known], after[known])
    return {
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
    }


def mean_by_query(
    values: Float[np.ndarray, " P"], queries: Sequence[str]
) -> Float[np.ndarray, " Q"]:
    """Means of the rows of each query, in order of first appearance.

    Rows of one query are not independent: it is queries that are resampled.

    >>> mean_by_query(np.array([1.0, 2.0, 4.0]), ["a", "b", "b"])
    array([1., 3.])
    """
    index = {query: i for i, query in enumerate(dict.fromkeys(queries))}
    rows = np.array([index[query] for query in queries])
    return np.bincount(rows, values) / np.bincount(rows)


def known_mean(values: Float[np.ndarray, " Q"]) -> float:
    """The mean of what is known; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
