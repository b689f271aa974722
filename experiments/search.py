"""The search of one run, and what a model writes for it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from experiments.config import Lengths, ServiceConfig, SystemConfig
from experiments.known import judgements, known
from experiments.prepare import Prepared
from experiments.system import TEXTS, Parts
from experiments.training import sample
from jaxqr.evaluation import gate
from jaxqr.evaluation.served import DEPTH
from jaxqr.lm import LM
from jaxqr.records import Hits
from jaxqr.retrieval.analysis import tokens
from jaxqr.retrieval.cached import CachedRetriever
from jaxqr.retrieval.feedback import RM3
from jaxqr.retrieval.serving import Expansion, Query, Serving
from jaxqr.rewards import Relevance
from jaxqr.rewards.similarity import Encoder, Similarity


class Written(NamedTuple):
    """Queries and what the model wrote for them, the best first."""

    queries: list[str]
    rewrites: list[list[str]]
    confidence: Float[np.ndarray, " Q"]
    """Log-probability per token of the first rewrite."""

    def instead(self, rewrites: list[list[str]]) -> "Written":
        """Other rewrites of the same queries."""
        return self._replace(rewrites=rewrites)

    def take(self, chosen: Bool[np.ndarray, " Q"]) -> "Written":
        """Some of the rows."""
        some = np.flatnonzero(chosen).tolist()
        return Written(
            [self.queries[i] for i in some],
            [self.rewrites[i] for i in some],
            self.confidence[chosen],
        )

    def without(self) -> "Written":
        """No rewrites."""
        return self.instead([[] for _ in self.queries])


class Writer:
    """Beams of a language model, or nothing without one; every query is written once.

    Attributes:
        most: rewrites of a query.
    """

    def __init__(self, lm: LM | None, most: int, lengths: Lengths):
        self._lm, self._lengths, self.most = lm, lengths, most if lm else 0
        self._known: dict[str, tuple[list[str], float]] = {}

    def __call__(self, queries: Sequence[str]) -> Written:
        """The rewrites of some queries, empty ones left out."""
        if self._lm is None or not queries:
            return Written([*queries], [[] for _ in queries], np.zeros(len(queries)))
        new = [q for q in dict.fromkeys(queries) if q not in self._known]
        found = self._lm.beams(
            new,
            self.most,
            max_source=self._lengths.source,
            max_new_tokens=self._lengths.target,
        )
        first = self._lm.tokenizer.encode([beams[0].text for beams in found])
        for query, beams, ids in zip(new, found, first, strict=True):
            texts = [beam.text for beam in beams if beam.text.strip()]
            self._known[query] = texts, beams[0].logp / (1 + len(ids))
        texts, confidence = zip(*(self._known[q] for q in queries), strict=True)
        return Written([*queries], [*texts], np.array(confidence, np.float64))


class HeldOut(NamedTuple):
    """Queries to fit on, and queries to measure."""

    validation: list[str]
    test: list[str]


class Search:
    """The search of one run, and what is known of it.

    Searches and M1 are those of this process, even if training asked a reward server.
    """

    def __init__(
        self,
        run: Path,
        data: Prepared,
        system: SystemConfig,
        encoder: Path | None = None,
        *,
        rewards: bool = True,
    ):
        """Puts the parts together.

        Args:
            run: with M1, in its folder `relevance`.
            data: the run's data.
            system: as in online training.
            encoder: of sentences, to be asked instead of M1.
            rewards: whether lists have a reward; they have none in any case where a
                language model would have to judge every one.

        Raises:
            FileNotFoundError: M1 is not trained yet, or there is no such encoder.
        """
        free = system.judge in ("simulated", "logged")
        judge, self.rewards = system.judge if free else "simulated", rewards and free
        local = replace(system, service=ServiceConfig(), judge=judge)
        self.parts = Parts(run, data, local)
        self.engine = CachedRetriever(self.parts.engine)
        self.brands = frozenset(tokens(" ".join(self.parts.brands)))
        self.text = TEXTS[system.text]
        self.data, self.products = data, data.products
        self.judged = judgements(data)
        self.known = known(data)
        self.relevance: Relevance = self.parts.relevance
        if encoder is not None:
            self.relevance = Similarity(Encoder.load(encoder).texts, self.products)

    def held_out(self, most: int, gate_queries: int, seed: int) -> HeldOut:
        """Validation and test queries whose relevant products are known.

        Args:
            most: test queries.
            gate_queries: most validation queries.
            seed: of the samples.
        """
        splits = self.data.searchable
        validation = [q for q in splits["validation"] if self.judged.products(q)]
        test = [q for q in splits["test"] if self.known.products(q)]
        return HeldOut(sample(validation, gate_queries, seed), sample(test, most, seed))

    def lists(self, way: Serving, rows: Written) -> Hits:
        """What is served in a way."""
        return way(self.engine, rows.queries, rows.rewrites, DEPTH)

    def features(self, rows: Written, served: Hits) -> gate.Features:
        """What a gate can see of lists served with rewrites."""
        alone = self.lists(Query(), rows)
        return gate.features(*rows, alone, served, self.relevance, self.brands)

    def rm3(self, first: Query | Expansion = Query()) -> RM3:  # noqa: B008 - frozen
        """RM3 over the run's catalogue."""
        return RM3(self.products, self.text, first=first)
