"""Search engines with one protocol: queries in, ranked product ids out.

`jaxqr.retrieval.embedded` runs inside the process, without a server.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxqr.records import Hits


@runtime_checkable
class Retriever(Protocol):
    """What can be searched."""

    def search(self, queries: Sequence[str], k: int) -> Hits:
        """Returns the `k` best products of each query.

        Products of equal score come in the order of their ids, so that a list does
        not depend on how the index was filled. A query without a term, or whose
        terms no product has, gets an empty list. A query whose search failed gets an
        empty list that is not `valid`; the others keep theirs.

        Args:
            queries: Q texts as the shopper typed them; no query language.
            k: Length of the lists, M.

        Raises:
            ValueError: If `k` is below 1.
        """
        ...
