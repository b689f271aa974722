"""Learned feedback: words of a query weighed, and those of its first products added.

RM3 adds the words that the first products have most. Here a small model learns, from
queries whose relevant products are known, which words relevant products have and the
others have not; what the first products, a relevance model and a language model's
rewrites say of a word are its features. The query's own words are weighed alike: of
"glasses without stem" the word "without" says little. After Nogueira and Cho 2017, who
choose terms by a network over the same candidates.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxqr.records import Hits, Product
from jaxqr.retrieval import TermRetriever
from jaxqr.retrieval.analysis import bag, tokens
from jaxqr.retrieval.documents import Text, title_brand_color
from jaxqr.retrieval.serving import Query

Gains = Callable[[Sequence[str], np.ndarray], np.ndarray]
"""Of (query, product id) pairs [Q, M], in [0, 1]: M1, or a sentence encoder."""

FEATURES = (
    "feedback",  # P(t | R) of RM3: mean share of the first products' terms
    "first",  # share of the first 10 products that have it
    "share",  # share of all products read that have it
    "rarity",  # ln(N / n_t) over the catalogue
    "found",  # share of the catalogue's products with it that were read
    "gain",  # mean gain of the products that have it, minus that of all
    "most",  # greatest gain of a product that has it
    "contrast",  # share of the gain that has it, minus share of the rest that has it
    "rewrites",  # share of the rewrites that have it
    "rewrite",  # whether the first rewrite has it
    "mean_gain",  # of the products read
    "length",  # terms of the query
    "own",  # whether the query has it
)
_NONE = np.zeros((0, len(FEATURES)))
FIRST = 10
FEWEST = 2
"""Products that must have a word of no rewrite for it to be a candidate."""
LEAST = 0.05
"""Of its weight, what a word of the query keeps at least."""


class Candidates(NamedTuple):
    """Words of one query, and those that may be added to it."""

    terms: list[str]
    features: Float[np.ndarray, "C F"]


class TermSelection:
    """Weighs words by what a fitted model expects of them; a `Serving` once fitted.

    It expects the share of the relevant products that have the word minus the share of
    the others read, e in [-1, 1]. In a second search each term of the query weighs its
    count times 1 + e, at least `LEAST`, and each of the `terms` best other words
    `weight` times e, if that is above 0.
    """

    searches = 2

    def __init__(
        self,
        products: Mapping[str, Product],
        relevance: Gains,
        text: Text = title_brand_color,
        *,
        feedback: int = 50,
        terms: int = 20,
        weight: float = 2.0,
    ):
        """Selection from the words of a catalogue.

        Args:
            products: by id.
            relevance: M1, or anything else that says how relevant a product is.
            text: what is searched of a product, as the search engine has it.
            feedback: products that are read, and scored by M1.
            terms: words that are added.
            weight: of an added word that all relevant products have, and no others.

        Raises:
            ValueError: a number is out of its range.
        """
        if feedback < 1 or terms < 1 or not 0 < weight < math.inf:
            raise ValueError(
                f"{feedback=}, {terms=}, {weight=}: expected products and terms of 1 "
                "or more, and a finite weight above 0"
            )
        self._relevance = relevance
        self._feedback, self._terms, self._weight = feedback, terms, weight
        self._bags = {id: bag(text(product)) for id, product in products.items()}
        self._counts = Counter(term for words in self._bags.values() for term in words)
        self._seen: dict[tuple, Candidates] = {}  # several fits share queries
        self._model: Any = None

    def fit(
        self,
        retriever: TermRetriever,
        queries: Sequence[str],
        rewrites: Sequence[Sequence[str]],
        relevant: Sequence[Collection[str]],
        *,
        seed: int = 0,
    ) -> "TermSelection":
        """Learns from queries with known relevant products; returns itself.

        Gradient-boosted trees, squared error (scikit-learn's).

        Args:
            retriever: the search engine.
            queries: that `relevance` was not trained on, or its gains say too much.
            rewrites: of each query.
            relevant: products of each query; those that are read and not among them
                count as the others.
            seed: of the fit.

        Raises:
            ValueError: there is no candidate word at all.
        """
        from sklearn.ensemble import HistGradientBoostingRegressor

        features, targets = [], []
        lists = self._read(retriever, queries)
        seen = self.candidates(queries, rewrites, lists)
        for found, wanted, ids in zip(seen, relevant, lists, strict=True):
            wanted = [p for p in wanted if p in self._bags]
            others = [p for p in ids if p not in set(wanted)]
            if wanted and found.terms:
                features.append(found.features)
                targets += [
                    self._share(wanted, t) - self._share(others, t) for t in found.terms
                ]
        if not features:
            raise ValueError(
                f"{len(queries)} queries without a word to learn from: expected "
                "queries that find products, with relevant ones"
            )
        self._model = HistGradientBoostingRegressor(
            max_iter=150,
            learning_rate=0.05,
            max_leaf_nodes=8,
            min_samples_leaf=30,
            random_state=seed,
        ).fit(np.concatenate(features), np.array(targets))
        return self

    def weighing(self, weight: float) -> "TermSelection":
        """The same, fitted alike, with another weight."""
        other = copy.copy(self)
        other._weight = weight
        return other

    def __call__(
        self,
        retriever: TermRetriever,
        queries: Sequence[str],
        rewrites: Sequence[Sequence[str]],
        k: int,
    ) -> Hits:
        """See `Serving`.

        Raises:
            ValueError: nothing was fitted yet.
        """
        lists = self._read(retriever, queries)
        bags = self.expand(queries, rewrites, lists)
        return retriever.search_terms(bags, k)

    def expand(
        self,
        queries: Sequence[str],
        rewrites: Sequence[Sequence[str]],
        lists: Sequence[Sequence[str]],
    ) -> list[dict[str, float]]:
        """The weights of the second search.

        Args:
            queries: as typed.
            rewrites: of each query.
            lists: the first products of each query.
        """
        if self._model is None:
            raise ValueError("nothing was fitted yet: call fit first")
        seen = self.candidates(queries, rewrites, lists)
        features = np.concatenate([found.features for found in seen] or [_NONE])
        expected = self._model.predict(features) if len(features) else np.zeros(0)
        ends = np.cumsum([0, *(len(found.terms) for found in seen)]).tolist()
        expanded = []
        for query, found, (start, end) in zip(
            queries, seen, pairwise(ends), strict=True
        ):
            own = bag(query)
            good = dict(zip(found.terms, expected[start:end].tolist(), strict=True))
            weighed = {t: n * max(LEAST, 1 + good.get(t, 0.0)) for t, n in own.items()}
            others = ((t, x) for t, x in good.items() if x > 0 and t not in own)
            kept = sorted(others, key=lambda x: (-x[1], x[0]))
            # A query without terms finds nothing.
            added = {t: self._weight * x for t, x in kept[: self._terms]}
            expanded.append(weighed | added if own else own)
        return expanded

    def candidates(
        self,
        queries: Sequence[str],
        rewrites: Sequence[Sequence[str]],
        lists: Sequence[Sequence[str]],
    ) -> list[Candidates]:
        """Words of the catalogue for each query, and what is known of each word.

        The query's own, those of at least two of the products read, and all of its
        rewrites.
        """
        keys = [
            (query, *written, "", *ids)
            for query, written, ids in zip(queries, rewrites, lists, strict=True)
        ]
        new = [i for i, key in enumerate(keys) if key not in self._seen]
        width = max([len(lists[i]) for i in new] + [1])
        ids = [[*lists[i]] + [""] * (width - len(lists[i])) for i in new]
        padded = np.array(ids, np.str_).reshape(len(new), width)
        gains = np.asarray(self._relevance([queries[i] for i in new], padded))
        for i, row in zip(new, gains.astype(np.float64), strict=True):
            known = row[: len(lists[i])]
            found = self._candidates(queries[i], rewrites[i], lists[i], known)
            self._seen[keys[i]] = found
        return [self._seen[key] for key in keys]

    def _candidates(
        self,
        query: str,
        rewrites: Sequence[str],
        ids: Sequence[str],
        gains: Float[np.ndarray, " M"],
    ) -> Candidates:
        own = bag(query)
        read = [self._bags[product] for product in ids]
        sizes = np.array([sum(words.values()) for words in read])
        written = Counter(t for text in rewrites for t in dict.fromkeys(tokens(text)))
        first = set(tokens(rewrites[0])) if rewrites else set()
        having = Counter(t for words in read for t in words)
        terms = sorted(
            t
            for t in {*own, *having, *written}
            if t in self._counts and (t in own or t in written or having[t] >= FEWEST)
        )
        mean = float(gains.mean()) if len(gains) else 0.0
        total, rest = float(gains.sum()), float((1 - gains).sum())
        rows = []
        for term in terms:
            counts = np.array([words.get(term, 0.0) for words in read])
            has = counts > 0
            n, known = int(has.sum()), self._counts[term]
            rows.append(
                (
                    float((counts / sizes)[:FIRST].mean()) if len(read) else 0.0,
                    float(has[:FIRST].mean()) if len(read) else 0.0,
                    n / max(1, len(read)),
                    math.log(len(self._bags) / known),
                    n / known,
                    float(gains[has].mean()) - mean if n else 0.0,
                    float(gains[has].max()) if n else 0.0,
                    _ratio(float(gains[has].sum()), total)
                    - _ratio(float((1 - gains)[has].sum()), rest),
                    written[term] / max(1, len(rewrites)),
                    float(term in first),
                    mean,
                    sum(own.values()),
                    float(term in own),
                )
            )
        return Candidates(terms, np.array(rows).reshape(len(terms), len(FEATURES)))

    def _read(
        self, retriever: TermRetriever, queries: Sequence[str]
    ) -> list[list[str]]:
        """The first products of every query; of a failed search, none."""
        hits = Query()(retriever, queries, [()] * len(queries), self._feedback)
        return [[i for i in ids if i] for ids in hits.ids.tolist()]

    def _share(self, ids: Sequence[str], term: str) -> float:
        return sum(term in self._bags[i] for i in ids) / max(1, len(ids))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
