"""A retriever that searches every query once."""

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from jaxqr.records import Hits
from jaxqr.retrieval import Retriever, TermRetriever

Query = TypeVar("Query", str, Mapping[str, float])


class CachedRetriever:
    """Keeps the lists of another retriever, for evaluations that share their queries.

    A failed search is not kept: the query is searched again the next time. Threads may
    share it. Lists are kept for as long as it lives, so it does not suit an index that
    changes.

    Args:
        retriever: what is searched.
    """

    def __init__(self, retriever: Retriever):
        self._retriever = retriever
        self._rows: dict[Hashable, Hits] = {}
        self._lock = threading.Lock()

    def search(self, queries: Sequence[str], k: int) -> Hits:
        """See `Retriever.search`."""
        return self._search(self._retriever.search, queries, queries, k)

    def search_terms(self, queries: Sequence[Mapping[str, float]], k: int) -> Hits:
        """See `TermRetriever.search_terms`.

        Raises:
            TypeError: what is searched cannot do that.
        """
        if not isinstance(self._retriever, TermRetriever):
            name = type(self._retriever).__name__
            raise TypeError(f"{name} has no search_terms: give a TermRetriever")
        keys = [frozenset(terms.items()) for terms in queries]
        return self._search(self._retriever.search_terms, queries, keys, k)

    def _search(
        self,
        search: Callable[[Sequence[Query], int], Hits],
        queries: Sequence[Query],
        keys: Sequence[Hashable],
        k: int,
    ) -> Hits:
        with self._lock:
            wanted = dict(zip(keys, queries, strict=True))
            new = {key: q for key, q in wanted.items() if (key, k) not in self._rows}
            found: dict[Hashable, Hits] = {}
            if new:
                hits = search([*new.values()], k)
                for i, key in enumerate(new):
                    found[key] = hits.take(np.array([i]))
                    if hits.valid[i]:
                        self._rows[key, k] = found[key]
            rows = [
                found[key] if key in found else self._rows[key, k] for key in wanted
            ]
        if not rows:
            return search([], k)
        hits = Hits(*(np.concatenate(column) for column in zip(*rows, strict=True)))
        place = {key: i for i, key in enumerate(wanted)}
        return hits.take(np.array([place[key] for key in keys]))
