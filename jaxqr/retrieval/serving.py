"""What is shown for a query: its own list, or one in which its rewrites have a part.

Each way of serving is a value: called with queries and their rewrites it searches and
returns one list per query, so that ways can be compared like any other setting. Nobody
replaces a query by its rewrite unseen: all but `Rewrite` search the query, too.

==============  ======================================  ==============
                list                                    searches
==============  ======================================  ==============
`Query`         of the query as typed                   1
`Rewrite`       of the first rewrite alone              1
`Fusion`        of query and rewrites, by their ranks   1 + rewrites
`Expansion`     of the query and the rewrites' terms    1
`Backfill`      the query's first, then the rewrite's   2
==============  ======================================  ==============

`jaxqr.retrieval.feedback.RM3` is another, untrained.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Shaped

from jaxqr.records import Hits
from jaxqr.retrieval import Retriever, TermRetriever
from jaxqr.retrieval.analysis import bag, tokens
from jaxqr.retrieval.documents import as_hits

K_RRF = 60.0
"""Cormack et al. 2009."""


@runtime_checkable
class Serving(Protocol):
    """A way of serving queries with the help of their rewrites."""

    @property
    def searches(self) -> int:
        """Most searches of one query."""
        ...

    def __call__(
        self,
        retriever: TermRetriever,
        queries: Sequence[str],
        rewrites: Sequence[Sequence[str]],
        k: int,
    ) -> Hits:
        """Returns one list per query; not `valid` where one of its searches failed.

        Args:
            retriever: the search engine.
            queries: Q texts as typed.
            rewrites: of each query, the best first; those beyond the wanted number are
                passed over, and a query may have fewer, or none.
            k: length of the lists.
        """
        ...


def search_each(retriever: Retriever, texts: Sequence[str], k: int) -> Hits:
    """The list of every text: equal ones are searched once, blank ones find nothing.

    Some engines answer a blank text with everything they have.
    """
    distinct = [text for text in dict.fromkeys(texts) if text.strip()]
    hits = retriever.search(distinct, k)
    hits = Hits(
        np.concatenate([hits.ids, np.full((1, k), "", hits.ids.dtype)]),
        np.concatenate([hits.scores, np.zeros((1, k), np.float32)]),
        np.append(hits.valid, True),
    )
    place = {text: i for i, text in enumerate(distinct)}
    return hits.take(np.array([place.get(t, len(distinct)) for t in texts], np.intp))


def reciprocal_rank(
    lists: Iterable[tuple[Sequence[str], float]], k_rrf: float = K_RRF
) -> list[tuple[str, float]]:
    """Fuses ranked lists into one of (id, score) pairs, ties by id.

    `score(p) = sum over lists i of w_i / (k_rrf + rank_i(p))`, ranks from 1 on; a list
    without p adds nothing. Cormack, Clarke and Büttcher 2009; the weights are ours.

    Args:
        lists: ids, the best first and padded with "", and the list's weight.
        k_rrf: how little the first ranks stand out.

    >>> reciprocal_rank([(["a", "b"], 1.0), (["b", "c"], 1.0)])[0][0]
    'b'
    """
    scores: defaultdict[str, float] = defaultdict(float)
    for ids, weight in lists:
        for rank, product in enumerate(ids, 1):
            if product:
                scores[product] += weight / (k_rrf + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


@dataclass(frozen=True)
class Query:
    """The query as typed."""

    searches = 1

    def terms(self, query: str, rewrites: Sequence[str]) -> dict[str, float]:
        """The terms that are searched, and their weights."""
        return bag(query)

    def __call__(
        self,
        retriever: Retriever,
        queries: Sequence[str],
        rewrites: Sequence[Sequence[str]],
        k: int,
    ) -> Hits:
        """See `Serving`."""
        return search_each(retriever, queries, k)


@dataclass(frozen=True)
class Rewrite:
    """The first rewrite instead of the query; the query where there is none."""

    searches = 1

    def __call__(
        self,
        retriever: Retriever,
        queries: Sequence[str],
        rewrites: Sequence[Sequence[str]],
        k: int,
    ) -> Hits:
        """See `Serving`."""
        texts = [r[0] if r else q for q, r in zip(queries, rewrites, strict=True)]
        return search_each(retriever, texts, k)


@dataclass(frozen=True)
class Fusion:
    """Reciprocal-rank fusion of the query's list and its rewrites' (`reciprocal_rank`).

    All texts go to the retriever in one call.
    """

    rewrites: int = 1
    """Most rewrites of a query."""
    weight: float = 1.0
    """Of each rewrite's list; the query's own weighs 1."""
    k_rrf: float = K_RRF
    depth: int = 100
    """Length of the lists that are fused, where it is above the length asked for."""

    @property
    def searches(self) -> int:
        """The query's and one for each rewrite."""
        return 1 + self.rewrites

    def __call__(
        self,
        retriever: Retriever,
        queries: Sequence[str],
        rewrites: Sequence[Sequence[str]],
        k: int,
    ) -> Hits:
        """See `Serving`."""
        # An equal text would only count the same list again.
        sets = [
            [q, *(r for r in dict.fromkeys(found[: self.rewrites]) if r != q)]
            for q, found in zip(queries, rewrites, strict=True)
        ]
        depth = max(k, self.depth)
        hits = search_each(retriever, [text for texts in sets for text in texts], depth)
        ends = np.cumsum([0, *map(len, sets)])
        rows = []
        for start, end in pairwise(ends):
            lists = hits.ids[start:end].tolist()
            weights = [1.0] + [self.weight] * (len(lists) - 1)
            fused = reciprocal_rank(zip(lists, weights, strict=True), self.k_rrf)
            rows.append(fused[:k] if hits.valid[start:end].all() else None)
        return as_hits(rows, k)


@dataclass(frozen=True)
class Expansion:
    """One search of the query's terms and, with less weight, of its rewrites' new ones.

    BM25 with clause weights: a term of the query weighs its count, a term that only
    rewrites have `weight` times the share of the rewrites that have it.
    """

    rewrites: int = 1
    """Most rewrites of a query."""
    weight: float = 0.3
    searches = 1

    def terms(self, query: str, rewrites: Sequence[str]) -> dict[str, float]:
        """The terms that are searched, and their weights."""
        weights = bag(query)
        used = rewrites[: self.rewrites]
        having = Counter(t for text in used for t in dict.fromkeys(tokens(text)))
        new = {
            term: self.weight * count / len(used)
            for term, count in having.items()
            if term not in weights
        }
        return weights | (new if self.weight else {})

    def __call__(
        self,
        retriever: TermRetriever,
        queries: Sequence[str],
        rewrites: Sequence[Sequence[str]],
        k: int,
    ) -> Hits:
        """See `Serving`."""
        return retriever.search_terms(
            [self.terms(*row) for row in zip(queries, rewrites, strict=True)], k
        )


@dataclass(frozen=True)
class Backfill:
    """The query's first products; below them those of the first rewrite.

    What is left of the query's list follows, if there is room.
    """

    keep: int = 10
    """Products that stay where they are."""
    searches = 2

    def __call__(
        self,
        retriever: Retriever,
        queries: Sequence[str],
        rewrites: Sequence[Sequence[str]],
        k: int,
    ) -> Hits:
        """See `Serving`."""
        texts = [r[0] if r else "" for r in rewrites]
        hits = search_each(retriever, [*queries, *texts], k)
        half = len(queries)
        rows = []
        for i in range(half):
            own, other = (hits.ids[j].tolist() for j in (i, half + i))
            ids = dict.fromkeys([*own[: self.keep], *other, *own[self.keep :]])
            ids.pop("", None)
            # Scores of two searches cannot be compared; ranks can.
            row = [(product, 1 / rank) for rank, product in enumerate(ids, 1)]
            both = hits.valid[i] and hits.valid[half + i]
            rows.append(row[:k] if both else None)
        return as_hits(rows, k)


def choose(first: Hits, second: Hits, take_second: Bool[np.ndarray, " Q"]) -> Hits:
    """Row by row the one list or the other, as a gate decides.

    >>> hits = Hits(np.array([["a"]]), np.ones((1, 1), np.float32), np.array([True]))
    >>> choose(hits, hits._replace(ids=np.array([["b"]])), np.array([True])).ids.item()
    'b'
    """

    def column(
        a: Shaped[np.ndarray, "..."], b: Shaped[np.ndarray, "..."]
    ) -> np.ndarray:
        return np.where(take_second.reshape(-1, *[1] * (a.ndim - 1)), b, a)

    return Hits(*map(column, first, second))
