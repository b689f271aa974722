"""Simulated shoppers that leave a log, as those of a real shop do."""

from collections.abc import Sequence

import numpy as np

from jaxqr.records import Hits, Impressions
from jaxqr.retrieval import Retriever
from jaxqr.rewards.judges import SimulatedShopper
from jaxqr.rewards.profiles import Profile
from jaxqr.rewards.reward import Relevance


def visits(
    queries: Sequence[str],
    *,
    retriever: Retriever,
    relevance: Relevance,
    shopper: SimulatedShopper,
    profiles: Sequence[Profile],
    n: int,
    k: int = 20,
    shuffled: float = 0.2,
    seed: int = 0,
) -> Impressions:
    """`n` visits: a shopper types a query, is shown its list, and does what they do.

    Query and shopper are drawn for each visit. How far down a list is looked at is one
    draw; clicks, additions and purchases are draws for each product that is looked at.

    Args:
        queries: what may be typed.
        retriever: what is shown.
        relevance: M1.
        shopper: the chances.
        profiles: who may come.
        n: how many visits.
        k: length of the lists.
        shuffled: share of the visits whose list is in a random order, without which
            propensities cannot be told from the ranking's own merit.
        seed: equal seeds give equal logs.
    """
    rng = np.random.default_rng(seed)
    typed = rng.integers(len(queries), size=n)
    who = rng.integers(len(profiles), size=n)
    wanted, place = np.unique(typed, return_inverse=True)
    texts = list(queries)
    found = retriever.search([texts[i] for i in wanted.tolist()], k)
    hits = found.take(place.reshape(-1))
    ids = hits.ids.copy()
    for row in np.flatnonzero(rng.random(n) < shuffled):
        count = int((ids[row] != "").sum())
        ids[row, :count] = rng.permutation(ids[row, :count])
    hits = Hits(ids, hits.scores, hits.valid)
    asked = [texts[i] for i in typed.tolist()]
    gains = relevance(asked, ids)
    chances = shopper.chances(asked, hits, gains, [profiles[i] for i in who.tolist()])
    looks, click, add, buy = chances
    looked = rng.random((n, 1)) < looks
    clicked = looked & (rng.random(ids.shape) < click)
    added = clicked & (rng.random(ids.shape) < add)
    bought = added & (rng.random(ids.shape) < buy)
    rows, columns = np.nonzero((ids != "") & hits.valid[:, None])
    return Impressions(
        np.array([f"visit-{seed}-{i}" for i in rows.tolist()], dtype=np.str_),
        np.array([asked[i] for i in rows.tolist()], dtype=np.str_),
        ids[rows, columns],
        (columns + 1).astype(np.int32),
        clicked[rows, columns],
        added[rows, columns],
        bought[rows, columns],
    )
