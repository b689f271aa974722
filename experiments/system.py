"""The search engine, M1 and the shoppers of a run, put together from its settings.

The one place that turns names into parts: an engine is added here, a judge in
`judges`.
"""

import dataclasses
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from experiments import runs
from experiments.config import Relevance, ServiceConfig, SystemConfig
from experiments.judges import judge
from experiments.prepare import Prepared
from jaxqr import sharding
from jaxqr.evaluation.search import Score, Scorers
from jaxqr.records import Hits, Product, Reward
from jaxqr.retrieval import Retriever
from jaxqr.retrieval.cached import CachedRetriever
from jaxqr.retrieval.documents import title, title_brand_color
from jaxqr.retrieval.embedded import EmbeddedRetriever
from jaxqr.retrieval.serving import Expansion
from jaxqr.rewards import (
    Profile,
    ScoringPool,
    list_reward,
    rewrite_reward,
    sample_profiles,
)
from jaxqr.rewards.classifier import Classifier
from jaxqr.rewards.client import RemoteReward
from jaxqr.rewards.relevance import RelevanceModel

TEXTS = {"title": title, "title-brand-color": title_brand_color}
POOLS = ("reward", "guard")
"""What a reward server calls the rewards of training and of the guard."""
FAVORITE_BRANDS = 50


def engine(
    config: SystemConfig, products: Mapping[str, Product], run: Path
) -> Retriever:
    """The search engine over a catalogue; on a server, in an index of the run's own.

    Raises:
        ValueError: the settings name no server, or it refuses.
        ConnectionError: it does not answer.
    """
    text = TEXTS[config.text]
    if config.engine == "embedded":
        return EmbeddedRetriever.build(products.values(), text=text)
    from jaxqr.retrieval.elastic import ElasticRetriever

    server = config.elastic
    if not (server.url or server.cloud_id):
        raise ValueError(
            "the engine is elastic, but there is no server: give --system.engine.url "
            "(--online.system.engine.url of a pipeline), such as http://localhost:9200"
        )
    user, password = (os.environ.get(f"JAXQR_ES_{x}") for x in ("USER", "PASSWORD"))
    retriever = ElasticRetriever(
        server.url,
        server.index or "jaxqr-" + re.sub(r"[^a-z0-9_-]+", "-", run.name.lower()),
        cloud_id=server.cloud_id,
        api_key=os.environ.get("JAXQR_ES_API_KEY"),
        basic_auth=(user, password) if user and password else None,
        ca_certs=server.ca_certs and str(server.ca_certs),
        fields=server.fields,
        match_type=server.match_type,
        id_field=server.id_field,
        text=text,
        timeout=server.timeout,
        retries=server.retries,
    )
    if not server.existing:
        retriever.index(products.values())
    return retriever


def brands(products: Mapping[str, Product]) -> list[str]:
    """The catalogue's most frequent brands, which shoppers may favor."""
    counts = Counter(p.brand for p in products.values() if p.brand)
    return [brand for brand, _ in counts.most_common(FAVORITE_BRANDS)]


class System:
    """Scores rewrites in training, and measures them in evaluation.

    Attributes:
        reward: scores (queries, rewrites), as training sees it.
        guard: the same by shoppers that training never meets.
    """

    def __init__(self, run: Path, data: Prepared, config: SystemConfig):
        """Connects to the reward servers, or puts engine, M1 and judge together.

        Raises:
            FileNotFoundError: M1 is not trained yet.
            ValueError: the guard shoppers are those of training, or the engine or the
                judge lacks a setting.
        """
        if config.pool_seed == config.guard_seed:
            raise ValueError(
                f"pool_seed and guard_seed are both {config.guard_seed}: the guard "
                "must be shoppers that training never meets; give it another seed"
            )
        self._data, self._config = data, config
        self._parts = None if config.service.urls else Parts(run, data, config)
        self._counts: dict[str, Mapping[str, float]] = {}
        if self._parts is not None:
            self.reward, self.guard = self._parts.scores(self._parts.engine)
            self._counts["judge"] = self._parts.counts
        else:
            self.reward, self.guard = (_remote(config.service, pool) for pool in POOLS)
            self._counts["service"] = self.reward.counts

    def pool(self, score: Score, workers: int = 1) -> ScoringPool:
        """A scoring pool with the timeout and the retries of the settings."""
        return ScoringPool(
            score,
            workers=workers,
            timeout=self._config.timeout,
            retries=self._config.retries,
        )

    @contextmanager
    def scorers(self) -> Iterator[Scorers]:
        """What an evaluation asks, through pools of its own; no text is searched twice.

        A failing evaluation does not count as a failure of training.
        """
        config, data, scores = self._config, self._data, (self.reward, self.guard)
        if self._parts is not None:
            scores = self._parts.scores(CachedRetriever(self._parts.engine))
        with self.pool(scores[0]) as reward, self.pool(scores[1]) as guard:
            yield Scorers(
                reward.score, guard.score, judged_gains(data), data.true_gain, config.k
            )

    def counts(self) -> dict[str, float]:
        """What judge and reward servers answered and failed to, so far, by reason.

        Of a language model that judges here also what its anchors tell now.
        """
        watched = self._parts.watch() if self._parts else {}
        return watched | {
            f"{part}_{what}": float(count)
            for part, counts in self._counts.items()
            for what, count in counts.items()
        }


def _remote(config: ServiceConfig, pool: str) -> RemoteReward:
    return RemoteReward(
        config.urls,
        os.environ.get("JAXQR_TOKEN"),
        pool=pool,
        timeout=config.timeout,
        retries=config.retries,
        batch_size=config.batch_size,
    )


class Parts:
    """Engine, M1 and judge in this process.

    Attributes:
        engine: the search engine.
        relevance: M1.
        brands: the catalogue's most frequent brands.
        counts: what the judge answered and failed to.
    """

    def __init__(self, run: Path, data: Prepared, config: SystemConfig):
        self._config = config
        folder = runs.require(
            config.relevance or run / "relevance",
            "python -m experiments.relevance PRESET",
        )
        settings = runs.read(folder, Relevance)
        products, compute = data.products, settings.compute
        self.relevance = RelevanceModel(
            Classifier.load(
                folder / "model",
                max_tokens=settings.max_tokens,
                dtype=compute.dtype,
                mesh=sharding.make_mesh(compute.fsdp) if compute.fsdp > 1 else None,
            ),
            products,
            data.labels,
        )
        self.brands = brands(products)
        pool = self._profiles(config.pool_seed)
        self._judge, self.counts, self._watched = judge(config, data, run, pool)
        self.engine = engine(config, products, run)

    def scores(self, retriever: Retriever) -> tuple[Score, Score]:
        """The rewards by the shoppers of training and by those of the guard."""
        pools = self._config.pool_seed, self._config.guard_seed
        reward, guard = (self._score(retriever, seed) for seed in pools)
        return reward, guard

    def _score(self, retriever: Retriever, seed: int) -> Score:
        config = self._config
        served = config.list == "served"
        serving = Expansion(weight=config.served_weight) if served else None
        return partial(
            rewrite_reward,
            retriever=retriever,
            serving=serving,
            k=config.k,
            **self._judgement(seed),
        )

    def watch(self) -> dict[str, float]:
        """What anchors tell of a language model that judges; asked every time."""
        return self._watched() if self._watched else {}

    def lists(self, queries: Sequence[str], original: Hits, hits: Hits) -> Reward:
        """The reward, as in training, of lists shown for queries (`list_reward`)."""
        k, seed = self._config.k, self._config.pool_seed
        lists = original.first(k), hits.first(k)
        return list_reward(queries, *lists, **self._judgement(seed))

    def _judgement(self, seed: int) -> dict[str, Any]:
        """How lists are judged, by shoppers of that seed."""
        config = self._config
        return {
            "relevance": self.relevance,
            "judge": self._judge,
            "weights": dataclasses.asdict(config.weights),
            "profiles": self._profiles(seed),
        }

    def _profiles(self, seed: int) -> list[Profile]:
        return sample_profiles(self._config.shoppers, seed, brands=self.brands)


def judged_gains(data: Prepared) -> dict[str, dict[str, float]]:
    """Gain of every judged product with text, by query, of fully judged queries."""
    products, labels, whole = data.products, data.labels, data.fully_judged
    gain = dict(zip(labels.names, labels.gains, strict=True))
    judged: dict[str, dict[str, float]] = defaultdict(dict)
    for query, product, label in zip(*data.judgements[:3], strict=True):
        if product in products and (whole is None or query in whole):
            judged[query][product] = gain[label]
    return judged
