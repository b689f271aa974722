"""Intervals by resampling."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real

from jaxqr.metrics.rows import check_paired

_DRAWS = 1 << 20  # indices a bootstrap holds at once: 8 MiB


class Interval(NamedTuple):
    """A mean and the bounds between which it would fall under resampling."""

    mean: float
    low: float
    high: float


class PairedInterval(NamedTuple):
    """Mean difference `after - before`, its interval, and how often it vanishes.

    `share_not_positive` is the share of resamples with a mean difference of 0 or
    less: a one-sided p-value for "after is better".
    """

    mean: float
    low: float
    high: float
    share_not_positive: float


def bootstrap_interval(
    values: Real[np.ndarray, " Q"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean over independent rows.

    `resamples` times draw Q rows with replacement and average; the bounds are the
    (1 - level) / 2 and (1 + level) / 2 quantiles: `scipy.stats.bootstrap` with
    `method="percentile"`, which unlike this refuses a single row. Two calls with one
    seed agree. Rows must be independent: pass one number per query, not one per
    product. Efron 1979.

    Raises:
        ValueError: there are no values, one of them is not finite, `level` is not
            between 0 and 1, or `resamples` is below 2.

    >>> interval = bootstrap_interval(np.array([0.0, 1.0, 1.0, 0.0, 1.0]))
    >>> interval.mean, interval.low, interval.high
    (0.6, 0.2, 1.0)
    """
    values = values.astype(np.float64)
    low, high, _ = _bootstrap(values, level, resamples, seed)
    return Interval(float(values.mean()), low, high)


def paired_bootstrap(
    before: Real[np.ndarray, " Q"],
    after: Real[np.ndarray, " R"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedInterval:
    """Compare two systems on the same rows by resampling rows, not systems.

    `bootstrap_interval` of `after - before`, and the share of resamples in which
    `after` is no better. Koehn 2004.

    Raises:
        ValueError: the two differ in length, and as for `bootstrap_interval`.

    >>> before = np.array([0.0, 0.2, 0.1, 0.3])
    >>> paired_bootstrap(before, before + 0.5)  # doctest: +ELLIPSIS
    PairedInterval(mean=0.5, low=0.5, high=0.5, share_not_positive=0.0)
    """
    check_paired(before=len(before), after=len(after))
    difference = np.subtract(after, before, dtype=np.float64)
    low, high, means = _bootstrap(difference, level, resamples, seed)
    return PairedInterval(
        float(difference.mean()), low, high, float(np.mean(means <= 0))
    )


def _bootstrap(
    values: Float[np.ndarray, " Q"], level: float, resamples: int, seed: int
) -> tuple[float, float, Float[np.ndarray, " resamples"]]:
    """The bounds of the interval, and the mean of every resample."""
    from scipy import stats

    if not (values.size and np.isfinite(values).all()):
        raise ValueError(
            f"{np.count_nonzero(np.isfinite(values))} of {values.size} values are "
            "finite; the bootstrap needs 1 or more, all finite. Drop invalid rows."
        )
    if not 0 < level < 1 or resamples < 2:
        raise ValueError(
            f"level is {level} and resamples is {resamples}; level must lie between "
            "0 and 1 (0.95 is usual), resamples must be 2 or more."
        )
    if values.size == 1:
        values = values.repeat(2)  # the same means, of the two rows that scipy wants
    result = stats.bootstrap(
        (values,),
        np.mean,
        vectorized=True,
        n_resamples=resamples,
        batch=max(_DRAWS // values.size, 1),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return float(low), float(high), result.bootstrap_distribution


def crossed_counts(
    num_seeds: int, num_queries: int, resamples: int, *, seed: int = 0
) -> tuple[Int[np.ndarray, "B S"], Int[np.ndarray, "B Q"]]:
    """How often each seed and each query is drawn, in every one of B resamples.

    For systems that were trained with S seeds and measured on the same Q queries: both
    are drawn with replacement, independently, so an interval covers another training
    run as well as other queries (the pigeonhole bootstrap; Owen 2007). Weight every
    system's numbers with the same counts, and differences are paired. One seed has
    nothing to be drawn from: only queries vary.

    Raises:
        ValueError: a number is below 1.

    >>> of_seed, of_query = crossed_counts(3, 5, 2)
    >>> of_seed.sum(axis=1), of_query.sum(axis=1)
    (array([3, 3]), array([5, 5]))
    """
    if min(num_seeds, num_queries, resamples) < 1:
        raise ValueError(
            f"{num_seeds=}, {num_queries=}, {resamples=}: expected 1 or more of each"
        )
    rng = np.random.default_rng(seed)

    def drawn(count: int) -> Int[np.ndarray, "B _"]:
        return rng.multinomial(count, np.full(count, 1 / count), size=resamples)

    return drawn(num_seeds), drawn(num_queries)
