"""Fixed lists that watch a judge: does it still answer as it did, do words buy it?

A server's model may change without notice; rewards from before and after cannot be
compared then. A judge that likes the query's words in a title, whatever is sold,
teaches a rewriter to find such titles. Both are measured on lists of products whose
relevance people have judged.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxqr.records import Hits, Judgements, Labels, Product
from jaxqr.rewards.profiles import Profile, assign
from jaxqr.rewards.reward import Judge

LISTED = 5
"""Products of an anchor list."""


class Anchors(NamedTuple):
    """Lists to be judged: good ones, poor ones, and the poor ones stuffed."""

    queries: list[str]
    hits: Hits
    profiles: list[Profile]
    poor: Bool[np.ndarray, " A"]
    """Lists of the least relevant products."""
    stuffed: Bool[np.ndarray, " A"]
    """The poor lists again, in their order, the query's words before every title."""
    products: dict[str, Product]
    """Those that only stuffed lists have, by id; the judge has to know them."""


class Watch(NamedTuple):
    """What the anchors tell; NaN where too few of them were judged."""

    click: float
    """Mean click rate of the good lists minus that of the poor ones: does the judge
    tell them apart?"""
    stuffing: float
    """Mean click rate of the stuffed lists minus that of the same lists as they are:
    what the query's words alone are worth to the judge."""
    drift: float
    """Mean absolute change of the click rates since `before`; NaN without it."""


def anchors(
    judgements: Judgements,
    products: Mapping[str, Product],
    labels: Labels,
    profiles: Sequence[Profile],
    *,
    n: int = 30,
    seed: int = 0,
) -> Anchors:
    """Chooses `n` lists, half of them good and half poor, and stuffs the poor ones.

    Of queries with at least five judged products that have text; fewer lists where
    there are fewer such queries. Equal arguments give equal lists.

    Args:
        judgements: of the collection.
        products: by id.
        labels: of the collection; their gains say what is good.
        profiles: the pool of shoppers.
        n: lists, the stuffed ones not counted.
        seed: of the choice.
    """
    gain = dict(zip(labels.names, labels.gains, strict=True))
    judged: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for query, product, label in zip(*judgements[:3], strict=True):
        if product in products:
            judged[str(query)].append((gain[label], str(product)))
    fit = sorted(query for query, rows in judged.items() if len(rows) >= LISTED)
    order = np.random.default_rng(seed).permutation(len(fit))[:n]
    chosen = [fit[i] for i in order]
    queries: list[str] = []
    rows: list[list[str]] = []
    for place, query in enumerate(chosen):
        ranked = [product for _, product in sorted(judged[query])]
        rows.append(ranked[:LISTED] if place % 2 else ranked[-LISTED:])
        queries.append(query)
    poor = np.arange(len(chosen)) % 2 == 1
    extra: dict[str, Product] = {}
    for place in np.flatnonzero(poor).tolist():
        query, ids = chosen[place], rows[place]
        copies = [f"{product}\tstuffed {place}" for product in ids]
        for product, copy in zip(ids, copies, strict=True):
            title = f"{query} {products[product].title}"
            extra[copy] = products[product]._replace(id=copy, title=title)
        queries.append(query)
        rows.append(copies)
    ids = np.array(rows, np.str_).reshape(len(rows), LISTED)
    stuffed = np.arange(len(rows)) >= len(chosen)
    return Anchors(
        queries,
        Hits(ids, np.zeros(ids.shape, np.float32), np.ones(len(rows), np.bool_)),
        assign(profiles, queries),
        np.append(poor, np.zeros(len(rows) - len(chosen), np.bool_)),
        stuffed,
        extra,
    )


def click_rates(judge: Judge, anchors: Anchors) -> Float[np.ndarray, " A"]:
    """The judge's click rate of every list; NaN where it failed."""
    gains = np.zeros(anchors.hits.ids.shape, np.float32)
    found = judge(anchors.queries, anchors.hits, gains, anchors.profiles)
    return np.where(found.valid, found.click.astype(np.float64), np.nan)


def watch(
    anchors: Anchors,
    now: Float[np.ndarray, " A"],
    before: Float[np.ndarray, " A"] | None = None,
) -> Watch:
    """Compares click rates with each other, and with those of an earlier day.

    Args:
        anchors: the lists.
        now: their click rates (`click_rates`).
        before: the same when the run began.
    """
    poor, stuffed = now[anchors.poor], now[anchors.stuffed]
    good = now[~(anchors.poor | anchors.stuffed)]
    return Watch(
        _mean(good) - _mean(poor),
        _mean(stuffed - poor),
        _mean(abs(now - before)) if before is not None else float("nan"),
    )


def _mean(values: Float[np.ndarray, " A"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
