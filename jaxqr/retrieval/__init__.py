"""Search engines with one protocol: queries in, ranked product ids out.

`embedded` runs inside the process, without a server; `elastic` is a server's. `serving`
is what becomes of a query and its rewrites, `feedback` and `spelling` are what needs no
training.
"""

from collections.abc import Mapping, Sequence
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


@runtime_checkable
class TermRetriever(Retriever, Protocol):
    """What can also be searched by weighted terms, as query expansion needs it."""

    def search_terms(self, queries: Sequence[Mapping[str, float]], k: int) -> Hits:
        """Returns the `k` best products by the sum of weight x BM25 over the terms.

        Terms are as `jaxqr.retrieval.analysis.tokens` makes them. `search` of a text
        is this with each term's count as its weight.

        Args:
            queries: Q bags of terms with weights above 0; an empty one finds nothing.
            k: Length of the lists, M.

        Raises:
            ValueError: If `k` is below 1, or a weight is not above 0 and finite.
        """
        ...
