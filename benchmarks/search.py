"""Speed of search, and of the reward around it, with either engine.

    python -m benchmarks.search --products 100000
    python -m benchmarks.search --products 100000 --url http://localhost:9200

Titles of 4 to 12 words from a Zipf distribution over 30,000; queries are three words of
a title. Prints a line of JSON for each engine: seconds to index, searches/s (lists of
20, one caller, batches of 64), and rewards/s (`rewrite_reward` of query and rewrite,
with the simulated shopper and a relevance that costs nothing), each the best of
`repeats`.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tyro

from jaxqr.records import Product
from jaxqr.retrieval import Retriever
from jaxqr.retrieval.documents import title
from jaxqr.retrieval.elastic import ElasticRetriever
from jaxqr.retrieval.embedded import EmbeddedRetriever
from jaxqr.rewards import SimulatedShopper, rewrite_reward

WORDS, K, BATCH = 30_000, 20, 64


@dataclass(frozen=True)
class Config:
    """What to time."""

    products: int = 100_000
    queries: int = 1024
    url: str | None = None
    """Of an Elasticsearch server; its index `jaxqr-benchmark` is replaced."""
    repeats: int = 3


def main(config: Config) -> None:
    """Times the engines."""
    rng = np.random.default_rng(0)
    chance = 1 / (10 + np.arange(WORDS))
    words = rng.choice(WORDS, (config.products, 12), p=chance / chance.sum())
    lengths = rng.integers(4, 13, config.products)
    catalogue = [
        Product(f"p{i:07d}", " ".join(f"w{w}" for w in row[:n]), price=float(i % 100))
        for i, (row, n) in enumerate(zip(words.tolist(), lengths.tolist(), strict=True))
    ]
    rows = rng.integers(config.products, size=2 * config.queries)
    texts = [" ".join(f"w{w}" for w in words[i, :3].tolist()) for i in rows.tolist()]
    queries, rewrites = texts[: config.queries], texts[config.queries :]
    shopper = SimulatedShopper({product.id: product for product in catalogue})
    engines: dict[str, Callable[[], Retriever]] = {
        "embedded": partial(EmbeddedRetriever.build, catalogue, text=title)
    }
    if config.url is not None:
        engines["elastic"] = partial(indexed, config.url, catalogue)
    lists: dict[str, Any] = {}
    for name, make in engines.items():
        begin = time.perf_counter()
        engine = make()
        built = time.perf_counter() - begin
        score = partial(
            rewrite_reward, retriever=engine, relevance=relevance, judge=shopper, k=K
        )
        searching, scoring = [], []
        for _ in range(config.repeats):
            begin = time.perf_counter()
            for start in range(0, len(texts), BATCH):
                engine.search(texts[start : start + BATCH], K)
            searching.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            for start in range(0, config.queries, BATCH):
                part = slice(start, start + BATCH)
                score(queries[part], rewrites[part])
            scoring.append(time.perf_counter() - begin)
        lists[name] = engine.search(texts, K).ids
        line = {
            "engine": name,
            "products": config.products,
            "index_seconds": round(built, 1),
            "searches_per_second": round(len(texts) / min(searching)),
            "rewards_per_second": round(config.queries / min(scoring)),
            "equal": float(np.mean((lists[name] == lists["embedded"]).all(axis=1))),
        }
        print(json.dumps(line), flush=True)


def indexed(url: str, catalogue: Sequence[Product]) -> ElasticRetriever:
    """A server's index of the catalogue, from scratch."""
    retriever = ElasticRetriever(url, "jaxqr-benchmark", text=title, timeout=60.0)
    retriever.index(catalogue[:1])  # so that nothing is reused
    retriever.index(catalogue)
    return retriever


def relevance(queries: Sequence[str], ids: np.ndarray) -> np.ndarray:
    """Gains that cost nothing."""
    return np.full(ids.shape, 0.5, np.float32)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
