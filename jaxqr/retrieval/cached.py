"""A retriever that searches every text once."""

import threading
from collections.abc import Sequence

import numpy as np

from jaxqr.records import Hits
from jaxqr.retrieval import Retriever


class CachedRetriever:
    """Keeps the lists of another retriever, for evaluations that share their queries.

    A failed search is not kept: the text is searched again the next time. Threads may
    share it. Lists are kept for as long as it lives, so it does not suit an index that
    changes.

    Args:
        retriever: what is searched.
    """

    def __init__(self, retriever: Retriever):
        self._retriever = retriever
        self._rows: dict[tuple[str, int], Hits] = {}
        self._lock = threading.Lock()

    def search(self, queries: Sequence[str], k: int) -> Hits:
        """See `Retriever.search`."""
        with self._lock:
            wanted = dict.fromkeys(queries)
            new = [text for text in wanted if (text, k) not in self._rows]
            found: dict[str, Hits] = {}
            if new:
                hits = self._retriever.search(new, k)
                for i, text in enumerate(new):
                    found[text] = hits.take(np.array([i]))
                    if hits.valid[i]:
                        self._rows[text, k] = found[text]
            rows = [
                found[text] if text in found else self._rows[text, k]
                for text in queries
            ]
        if not rows:
            return self._retriever.search([], k)
        return Hits(*(np.concatenate(column) for column in zip(*rows, strict=True)))
