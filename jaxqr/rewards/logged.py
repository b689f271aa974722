"""M2 from logs: what shoppers did with the products that they were shown.

A product far down a list is clicked less often because fewer shoppers look at it. The
position-based model (Craswell et al. 2008; Chuklin, Markov & de Rijke 2015, section
3.3) takes the two apart:

    P(click on d for q at rank i) = theta_i alpha_qd

with the propensities theta, that shoppers look at rank i, and the attraction alpha.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxqr.records import Hits, Impressions, Interactions
from jaxqr.rewards.profiles import Profile

TINY = 1e-12


class PBM(NamedTuple):
    """A position-based model of clicks."""

    propensity: Float[np.ndarray, " M"]
    """theta of ranks 1 to M; the largest is 1, since only products of theta and alpha
    can be seen."""
    attraction: Float[np.ndarray, " P"]
    """alpha of each (query, product) pair."""
    log_likelihood: Float[np.ndarray, " _"]
    """In nats per impression, before each iteration and after the last."""


def fit_pbm(
    pairs: Int[np.ndarray, " R"],
    ranks: Int[np.ndarray, " R"],
    clicks: Float[np.ndarray, " R"],
    *,
    max_iterations: int = 500,
    tolerance: float = 1e-7,
) -> PBM:
    """Expectation maximization; the likelihood never falls.

    Propensities can only be told from attraction where products were shown at several
    ranks.

    Args:
        pairs: the number of each impression's (query, product) pair, from 0 on.
        ranks: from 1 on.
        clicks: 1 or 0.
        max_iterations: ends in any case.
        tolerance: ends when an iteration gains less, in nats per impression.

    Raises:
        ValueError: no impressions, or ranks below 1.
    """
    if not len(pairs) or ranks.min() < 1:
        raise ValueError("expected impressions, with ranks from 1 on")
    # Equal (pair, rank) rows are one.
    cells, cell = np.unique(np.stack([pairs, ranks - 1]), axis=1, return_inverse=True)
    cell = cell.reshape(-1)
    pair, rank = cells
    shown = np.bincount(cell).astype(np.float64)
    clicked = np.bincount(cell, weights=clicks)
    missed = shown - clicked
    by_rank = np.maximum(np.bincount(rank, weights=shown), 1.0)
    by_pair = np.bincount(pair, weights=shown)
    theta = 1.0 / (1.0 + np.arange(len(by_rank)))
    alpha = np.full(len(by_pair), 0.5)
    history: list[float] = []
    while True:
        product = np.clip(theta[rank] * alpha[pair], TINY, 1 - TINY)
        logs = clicked * np.log(product) + missed * np.log1p(-product)
        history.append(float(logs.sum() / shown.sum()))
        gained = history[-1] - history[-2] if len(history) > 1 else np.inf
        if len(history) > max_iterations or gained < tolerance:
            break
        # Of those that did not click: who looked, and who would have clicked.
        looked = theta[rank] * (1 - alpha[pair]) / (1 - product)
        liked = alpha[pair] * (1 - theta[rank]) / (1 - product)
        theta = np.bincount(rank, weights=clicked + missed * looked) / by_rank
        alpha = np.bincount(pair, weights=clicked + missed * liked) / by_pair
    scale = max(float(theta.max()), TINY)
    return PBM(theta / scale, alpha * scale, np.array(history))


def coec(
    pairs: Int[np.ndarray, " R"],
    ranks: Int[np.ndarray, " R"],
    clicks: Float[np.ndarray, " R"],
) -> Float[np.ndarray, " P"]:
    """Clicks over expected clicks of each pair (Zhang & Jones 2007): a baseline.

    Expected are the clicks that an average product has at the same ranks; this takes
    the ranking's own merit for position bias.
    """
    rate = np.bincount(ranks, weights=clicks) / np.maximum(np.bincount(ranks), 1)
    expected = np.bincount(pairs, weights=rate[ranks])
    return np.bincount(pairs, weights=clicks) / np.maximum(expected, TINY)


class LoggedJudge:
    """Answers from logged clicks, additions and purchases, and abstains where it must.

    A pair's attraction is its clicks over its debiased impressions, the sum of theta
    over the ranks at which it was shown, both with a Beta prior: `strength` more
    impressions of the average pair. The rates of additions given clicks and of
    purchases given additions likewise. With n products, of which K are known,

        click = (1 / n) sum_{i <= n} theta_i * sum_{i in K} theta_i alpha_i
                / sum_{i in K} theta_i

    and so on. Texts of queries match after lower-casing and folding of whitespace. The
    shopper's profile plays no part: the logs are of all shoppers.

    Attributes:
        pbm: the fitted model; its propensities belong in a report.
        queries: how many queries are in the logs.
        pairs: how many (query, product) pairs are known well enough.
    """

    def __init__(
        self,
        impressions: Impressions,
        *,
        min_impressions: float = 10.0,
        min_coverage: float = 0.5,
        strength: float = 10.0,
    ):
        """Fits the model.

        Args:
            impressions: the logs.
            min_impressions: debiased impressions below which a pair is not known.
            min_coverage: share of a list's theta that its known products must have;
                with less, the row is not `valid`.
            strength: impressions that the prior counts for.

        Raises:
            ValueError: there are no impressions, or a setting is out of range.
        """
        if not (min_impressions >= 0 and 0 < min_coverage <= 1 and strength >= 0):
            raise ValueError(
                f"{min_impressions=}, {min_coverage=}, {strength=}: expected 0 or "
                "more, a share above 0, and 0 or more"
            )
        names = [_fold(query) for query in impressions.query.tolist()]
        keys = list(zip(names, impressions.product_id.tolist(), strict=True))
        index = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        pairs = np.array([index[key] for key in keys], np.intp)
        events = [
            column.astype(np.float64)
            for column in (
                impressions.click,
                impressions.add_to_cart,
                impressions.purchase,
            )
        ]
        self.pbm = fit_pbm(pairs, impressions.rank, events[0])
        looks = np.bincount(pairs, weights=self.pbm.propensity[impressions.rank - 1])
        clicks, additions, purchases = (np.bincount(pairs, weights=e) for e in events)
        chances = [
            _smoothed(clicks, looks, strength),
            _smoothed(additions, clicks, strength),
            _smoothed(purchases, additions, strength),
        ]
        rates = np.cumprod(np.stack(chances, axis=1), axis=1)
        self._rates = {
            key: rates[i] for key, i in index.items() if looks[i] >= min_impressions
        }
        self._min_coverage = min_coverage
        self.queries, self.pairs = len(set(names)), len(self._rates)

    def __call__(
        self,
        queries: Sequence[str],
        hits: Hits,
        gains: Float[np.ndarray, "Q M"],
        profiles: Sequence[Profile],
    ) -> Interactions:
        """See `Judge`; gains and profiles play no part."""
        del gains, profiles
        theta, width = self.pbm.propensity, hits.ids.shape[1]
        # Beyond the ranks of the logs, as at the last of them.
        theta = np.append(theta, np.repeat(theta[-1:], max(width - len(theta), 0)))
        out = np.zeros((len(queries), 3), np.float32)
        valid = np.zeros(len(queries), np.bool_)
        for row, (query, ids) in enumerate(
            zip(queries, hits.ids.tolist(), strict=True)
        ):
            name, length = _fold(query), sum(map(bool, ids))
            whole, known, acted = theta[:length].sum(), 0.0, np.zeros(3)
            for place, product in enumerate(ids[:length]):
                if (rates := self._rates.get((name, product))) is not None:
                    known += theta[place]
                    acted += theta[place] * rates
            if known > 0 and known >= self._min_coverage * whole:
                out[row], valid[row] = acted / known * whole / length, True
        return Interactions(out[:, 0], out[:, 1], out[:, 2], valid)


def _smoothed(
    events: Float[np.ndarray, " P"], chances: Float[np.ndarray, " P"], strength: float
) -> Float[np.ndarray, " P"]:
    """Events per chance of each pair, drawn towards that of all pairs; at most 1."""
    mean = min(events.sum() / max(chances.sum(), TINY), 1.0)
    rate = (events + strength * mean) / np.maximum(chances + strength, TINY)
    return np.minimum(rate, 1.0)


def _fold(query: str) -> str:
    return " ".join(query.lower().split())
