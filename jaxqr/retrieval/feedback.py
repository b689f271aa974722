"""Pseudo-relevance feedback: the first products of a query widen it; untrained."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from jaxqr.records import Hits, Product
from jaxqr.retrieval import TermRetriever
from jaxqr.retrieval.analysis import bag
from jaxqr.retrieval.documents import Text, title_brand_color
from jaxqr.retrieval.serving import Expansion, Query


class RM3:
    """The third relevance model: a query's own terms, and those of its first products.

    Over the first F products of a first search

        P(t | R) = mean over p of tf(t, p) / |p|

    is kept for its T heaviest terms and scaled to sum 1; then

        P(t | q') = alpha P_ml(t | q) + (1 - alpha) P(t | R)

    are the weights of the terms of a second search. A query that finds nothing at first
    finds nothing. Lavrenko and Croft 2001; Abdul-Jaleel et al. 2004, with documents of
    equal weight. It is a `Serving`.
    """

    searches = 2

    def __init__(
        self,
        products: Mapping[str, Product],
        text: Text = title_brand_color,
        *,
        feedback: int = 10,
        terms: int = 20,
        alpha: float = 0.5,
        first: Query | Expansion = Query(),  # noqa: B008 - frozen
    ):
        """Feedback from the texts of a catalogue.

        Args:
            products: by id.
            text: what is searched of a product, as the search engine has it.
            feedback: F, products that are read.
            terms: T, terms that they add.
            alpha: share of the query itself, in (0, 1].
            first: the first search, whose terms are also `P_ml`: the query, or the
                query widened by its rewrites.

        Raises:
            ValueError: a number is out of its range.
        """
        if feedback < 1 or terms < 1 or not 0 < alpha <= 1:
            raise ValueError(
                f"{feedback=}, {terms=}, {alpha=}: expected products and terms of 1 or "
                "more, and a share above 0, up to 1"
            )
        self._products, self._text = products, text
        self._feedback, self._terms, self._alpha = feedback, terms, alpha
        self._first = first
        self._bags: dict[str, dict[str, float]] = {}

    def __call__(
        self,
        retriever: TermRetriever,
        queries: Sequence[str],
        rewrites: Sequence[Sequence[str]],
        k: int,
    ) -> Hits:
        """See `Serving`."""
        found = self._first(retriever, queries, rewrites, max(k, self._feedback))
        own = [self._first.terms(*row) for row in zip(queries, rewrites, strict=True)]
        wider = [
            self.terms(mine, [i for i in ids if i])
            for mine, ids in zip(own, found.ids.tolist(), strict=True)
        ]
        hits = retriever.search_terms(wider, k)
        return hits._replace(valid=hits.valid & found.valid)

    def terms(self, query: Mapping[str, float], ids: Sequence[str]) -> dict[str, float]:
        """The weights of the second search, from the query's terms and its products."""
        read = [self._bag(product) for product in ids[: self._feedback]]
        if not (query and read):
            return {}
        heard: defaultdict[str, float] = defaultdict(float)
        for words in read:
            length = sum(words.values())
            for term, count in words.items():
                heard[term] += count / length / len(read)
        kept = sorted(heard.items(), key=lambda x: (-x[1], x[0]))[: self._terms]
        heard_in_all, own_in_all = sum(x for _, x in kept), sum(query.values())
        weights = {t: self._alpha * x / own_in_all for t, x in query.items()}
        for term, x in kept:
            share = (1 - self._alpha) * x / heard_in_all
            if share:
                weights[term] = weights.get(term, 0.0) + share
        return weights

    def _bag(self, product: str) -> dict[str, float]:
        if product not in self._bags:
            self._bags[product] = bag(self._text(self._products[product]))
        return self._bags[product]
