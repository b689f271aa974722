"""The search engine, the relevance model and the shoppers of a run, put together."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.layout import require
from experiments.prepare import Prepared
from experiments.training import Optimisation, placement
from jaxqr import metrics
from jaxqr.data import shop
from jaxqr.records import GAINS
from jaxqr.retrieval.embedded import EmbeddedRetriever
from jaxqr.rewards import Reward, SimulatedShopper, rewrite_reward, sample_profiles
from jaxqr.rewards.relevance import RelevanceModel

SHOPPERS = 100
POOL, GUARD_POOL = 0, 1
"""Seeds of the shoppers that training pleases, and of those only evaluation asks."""


class Scorers(NamedTuple):
    """What turns (queries, rewrites) into numbers."""

    reward: Callable[[Sequence[str], Sequence[str]], Reward]
    guard: Callable[[Sequence[str], Sequence[str]], Reward]
    """The same reward from shoppers that training never meets."""
    ndcg: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    """Judged-only nDCG of the rewrite's list; NaN for queries without judgements."""
    true_gain: Callable[[Sequence[str], Sequence[str]], np.ndarray] | None
    """Mean true gain of the rewrite's list, where a synthetic shop knows it."""


def build(
    run: Path, data: Prepared, *, k: int, weights: Mapping[str, float] | None = None
) -> Scorers:
    """Indexes the catalogue and loads M1.

    Raises:
        FileNotFoundError: M1 is not trained yet.
    """
    folder = require(run / "relevance", "python -m experiments.relevance PRESET")
    products = data.collection.products
    settings = json.loads((folder / "config.json").read_text())
    how = Optimisation(**settings["optimisation"])
    relevance = RelevanceModel.load(
        folder / "model",
        products,
        max_tokens=settings["max_tokens"],
        dtype=how.dtype,
        place=placement(how.fsdp) if how.fsdp > 1 else None,
    )
    retriever = EmbeddedRetriever.build(products.values())
    counts = Counter(p.brand for p in products.values() if p.brand)
    brands = [brand for brand, _ in counts.most_common(50)]
    judge = SimulatedShopper(products, relevance)

    def reward(pool: int):
        return partial(
            rewrite_reward,
            retriever=retriever,
            relevance=relevance,
            judge=judge,
            weights=weights,
            k=k,
            profiles=sample_profiles(SHOPPERS, pool, brands=brands),
        )

    return Scorers(
        reward(POOL),
        reward(GUARD_POOL),
        partial(_judged_ndcg, retriever, _gains(data), k),
        _true_gain(run, retriever, k),
    )


def _gains(data: Prepared) -> dict[str, dict[str, float]]:
    """Gain of every judged product with text, by query."""
    judged: dict[str, dict[str, float]] = defaultdict(dict)
    for query, product, label in zip(*data.collection.judgements, strict=True):
        if product in data.collection.products:
            judged[query][product] = GAINS[label]
    return judged


def _judged_ndcg(retriever, judged, k, queries, rewrites) -> np.ndarray:
    hits = retriever.search(list(rewrites), k)
    values = np.full(len(queries), np.nan)
    for row, (query, ids) in enumerate(zip(queries, hits.ids, strict=True)):
        gains = judged.get(query, {})
        if max(gains.values(), default=0) > 0:
            ranked = np.array([[gains[i] for i in ids if i in gains]]).reshape(1, -1)
            ideal = np.array([list(gains.values())])
            values[row] = metrics.ndcg(ranked, ideal, k=k)[0]
    return values


def _true_gain(run: Path, retriever, k: int):
    settings = json.loads((run / "data" / "config.json").read_text())
    if settings["source"] != "shop":
        return None
    world = shop.make(
        num_products=settings["products"],
        num_intents=settings["intents"],
        num_types=settings["types"],
        seed=settings["seed"],
    )

    def true_gain(queries: Sequence[str], rewrites: Sequence[str]) -> np.ndarray:
        hits = retriever.search(list(rewrites), k)
        return np.array(
            [
                np.mean([GAINS[shop.true_label(world, query, i)] for i in ids if i])
                if ids[0]
                else 0.0
                for query, ids in zip(queries, hits.ids, strict=True)
            ]
        )

    return true_gain
