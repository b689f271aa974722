"""(query, rewrite) pairs from relevance judgements: queries that share products.

Two queries for which the same products are relevant are likely to ask for the same
thing ([MiniELM] arXiv:2501.18056, section 3.1). The pairs are the edges of a graph
over queries; its connected components, never single pairs, are dealt out to
training, validation and test, so that no query is in two splits. Queries that differ
in case, whitespace or Unicode form only are one query there: see `folded`.
"""

import itertools
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import regex
import scipy.sparse as sp
from jaxtyping import Int
from scipy.sparse.csgraph import connected_components

from jaxqr.data.tables import SPLITS
from jaxqr.records import Collection

Equivalent = Callable[[list[str], list[str]], np.ndarray]
"""Says for each i whether a[i] and b[i] ask for the same thing: bool [P]."""

# Letters that show nothing: joiners, directions, soft hyphens, variation selectors.
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")


class Statistics(NamedTuple):
    """How the pairs came about. Pairs are counted once here, not per direction.

    `_asdict()` is ready for JSON; `str()` is a table.
    """

    queries: int  # with at least one relevant product
    products: int  # relevant to at least one query
    skipped_products: int  # relevant to more than max_degree queries
    shared_at_least: dict[int, int]  # query pairs that share >= n products
    candidates: int  # pairs that share >= k
    copies: int  # candidates dropped: their folded queries are equal
    rejected: int  # candidates dropped by the equivalence filter
    verified: bool  # whether there was such a filter
    pairs: int  # kept
    components: int  # connected components of the kept pairs
    largest_component: int  # in queries
    splits: dict[str, dict[str, int]]  # per split: pairs, queries, components

    def __str__(self) -> str:
        shared = ", ".join(f">= {n}: {c:,}" for n, c in self.shared_at_least.items())
        verdict = f"{self.rejected:,} rejected" if self.verified else "unverified"
        lines = [
            f"queries with relevant products  {self.queries:>10,}",
            f"relevant products               {self.products:>10,}"
            f"  ({self.skipped_products:,} skipped as too popular)",
            f"query pairs by shared products  {shared}",
            f"candidate pairs                 {self.candidates:>10,}"
            f"  ({self.copies:,} copies dropped, {verdict})",
            f"pairs kept                      {self.pairs:>10,}",
            f"connected components            {self.components:>10,}"
            f"  (largest: {self.largest_component:,} queries)",
        ]
        for name, counts in self.splits.items():
            lines.append(
                f"  {name:<10} {counts['pairs']:>9,} pairs"
                f" {counts['queries']:>9,} queries"
                f" {counts['components']:>9,} components"
            )
        return "\n".join(lines)


class QueryPairs(NamedTuple):
    """(query, rewrite) pairs, both directions of each, and how they came about."""

    train: list[tuple[str, str]]
    validation: list[tuple[str, str]]
    test: list[tuple[str, str]]
    statistics: Statistics


def query_pairs(
    collection: Collection,
    *,
    k: int = 2,
    labels: tuple[str, ...] | None = None,
    max_degree: int = 100,
    equivalent: Equivalent | None = None,
    held_out: float = 0.2,
    seed: int = 0,
) -> QueryPairs:
    """Pairs the queries that share at least `k` relevant products, and splits them.

    With A [queries, products] the 0/1 matrix of relevance, A Aᵀ counts the shared
    products; it is formed as a sparse product, with memory linear in its entries.
    Pairs of queries that are equal when `folded` are dropped.

    The split deals out connected components of the remaining pairs, where queries
    that are equal when `folded` are one node:

    - a component with an official test query, or one that folds to the same, is in
      `test`; else, one with an official validation query in `validation`;
    - the others, in random order, are held out while they fit into the share
      `held_out` of these others' pairs, and are in `train` from there on; a component
      too large for what is left of the share is in `train`, so one giant component
      cannot starve training;
    - held-out components go in turn to `test` and `validation`, to those of the two
      that the collection itself names no query for; if it names both, none is held
      out. To split regardless of the official splits, replace `collection.split`.

    Args:
      collection: its judgements make the graph, its split the official splits.
      k: least number of shared products.
      labels: which judgements count as relevant; by default those that the collection
        calls relevant.
      max_degree: a product relevant to more queries than this ties everything to
        everything, and costs quadratic time; it is skipped, and counted.
      equivalent: keeps the candidates (a[i], b[i]) for which it returns True; called
        once.
      held_out: share of the other components' pairs that training does not see.
      seed: of the random order.

    Raises:
      ValueError: an argument is out of range, or `equivalent` does not return one
        bool per pair.

    Example:
      >>> from jaxqr.records import Collection, Judgements
      >>> rows = [(q, p, "E") for q in ("sofa", "couch") for p in ("1", "2")]
      >>> judgements = Judgements(*map(np.array, zip(*rows)))
      >>> split = {"sofa": "test", "couch": "train"}
      >>> query_pairs(Collection({}, split, judgements)).test
      [('sofa', 'couch'), ('couch', 'sofa')]
    """
    if k < 1 or max_degree < 2 or not 0 <= held_out < 1:
        raise ValueError(
            f"got {k=}, {max_degree=}, {held_out=}; expected k >= 1, max_degree >= 2 "
            "and 0 <= held_out < 1"
        )
    names = collection.labels.names
    labels = collection.labels.relevant if labels is None else labels
    if not labels or not set(labels) <= set(names):
        raise ValueError(f"got {labels=}; expected some of this collection's, {names}")
    relevance, texts = _relevance(collection, labels)
    degree = np.bincount(relevance.indices)
    kept = relevance[:, degree <= max_degree]
    shared = sp.csr_array(sp.triu(kept @ kept.T, k=1))
    shared.sort_indices()
    shared = shared.tocoo()
    at_least = np.cumsum(np.bincount(shared.data, minlength=2)[::-1])[::-1]

    enough = shared.data >= k
    a, b = shared.row[enough], shared.col[enough]
    candidates = len(a)
    folds, fold = np.unique([folded(text) for text in texts], return_inverse=True)
    differ = fold[a] != fold[b]
    a, b = a[differ], b[differ]
    copies = candidates - len(a)
    if equivalent is not None:
        verdict = np.asarray(equivalent(list(texts[a]), list(texts[b])))
        if verdict.shape != a.shape or verdict.dtype != bool:
            raise ValueError(
                f"equivalent returned {verdict.dtype} {verdict.shape}; expected bool "
                f"{a.shape}, one verdict per pair"
            )
        a, b = a[verdict], b[verdict]

    edges = sp.coo_array((np.ones(len(a), bool), (fold[a], fold[b])), (len(folds),) * 2)
    _, component = connected_components(edges, directed=False)
    official = _official(collection)
    # A fold is at least as far from training as each of its queries officially is.
    rank = np.fromiter((official.get(text, 0) for text in folds), int, len(folds))
    nodes = component.max(initial=-1) + 1
    dealt = np.zeros(nodes, int)
    np.maximum.at(dealt, component, rank)
    named = set(collection.split.values())
    open_splits = [i for i in (2, 1) if SPLITS[i] not in named]
    sizes = np.bincount(component[fold[a]], minlength=nodes)
    _hold_out(dealt, sizes, open_splits, held_out, seed)
    split = dealt[component[fold[a]]]

    dealt_pairs, counts = [], {}
    for code, name in enumerate(SPLITS):
        inside = split == code
        forth = list(zip(texts[a[inside]], texts[b[inside]], strict=True))
        dealt_pairs.append([pair for q, r in forth for pair in ((q, r), (r, q))])
        counts[name] = {
            "pairs": len(forth),
            "queries": len({query for query, _ in dealt_pairs[-1]}),
            "components": len(np.unique(component[fold[a[inside]]])),
        }
    used = np.unique(np.concatenate([a, b]))
    statistics = Statistics(
        queries=len(texts),
        products=len(degree),
        skipped_products=int((degree > max_degree).sum()),
        shared_at_least={
            n: int(pairs) for n, pairs in enumerate(at_least[:11]) if n and pairs
        },
        candidates=candidates,
        copies=copies,
        rejected=candidates - copies - len(a),
        verified=equivalent is not None,
        pairs=len(a),
        components=len(np.unique(component[fold[a]])),
        largest_component=int(np.bincount(component[fold[used]]).max(initial=0)),
        splits=counts,
    )
    train, validation, test = dealt_pairs
    pairs = QueryPairs(train, validation, test, statistics)
    check_leaks(pairs, collection)
    return pairs


def check_leaks(pairs: QueryPairs, collection: Collection) -> None:
    """Raises if a `folded` query is in two splits, or in a wrong one.

    Wrong is a split nearer to training than its official one. `query_pairs` calls this
    on its own result; call it again after changing pairs.

    Raises:
      ValueError: names a leaked query and its splits.
    """
    official = _official(collection)
    seen: dict[str, str] = {}
    for rank, name in enumerate(SPLITS):
        for query in {folded(query) for pair in getattr(pairs, name) for query in pair}:
            if seen.setdefault(query, name) != name:
                raise ValueError(
                    f"{query!r} is in {name} and in {seen[query]}; remove its pairs "
                    "from one of them"
                )
            if official.get(query, 0) > rank:
                expected = SPLITS[official[query]]
                raise ValueError(
                    f"{query!r} is in {name}, officially in {expected}; remove its "
                    f"pairs from {name}"
                )


def folded(query: str) -> str:
    """The query without what shoppers do not see or mean: one text for all its forms.

    Case, whitespace of any kind around and between words, invisible characters
    (zero-width joiners, soft hyphens, variation selectors) and the choice between
    composed and decomposed accents are undone: the canonical caseless matching of the
    Unicode Standard (section 3.13, D145), composed again. Compatibility characters
    stay: with them, "m²" would become "m2" and "½" the same as "1⁄2".

    >>> folded("  Red   SHOES "), folded("cafe\u0301") == folded("CAF\u00c9")
    ('red shoes', True)
    """
    text = unicodedata.normalize("NFD", _INVISIBLE.sub("", query)).casefold()
    return " ".join(unicodedata.normalize("NFC", text).split())


def _official(collection: Collection) -> dict[str, int]:
    """Folded query -> the furthest of its official splits, an index of `SPLITS`."""
    official: dict[str, int] = {}
    for query, name in collection.split.items():
        text = folded(query)
        official[text] = max(official.get(text, 0), SPLITS.index(name))
    return official


def _relevance(
    collection: Collection, labels: tuple[str, ...]
) -> tuple[sp.csr_array, np.ndarray]:
    """The 0/1 matrix [queries, products], and the text of each of its rows."""
    rows = np.isin(collection.judgements.label, labels)
    query, product = (
        pa.array(column[rows], pa.string()).dictionary_encode()
        for column in collection.judgements[:2]
    )
    shape = len(query.dictionary), len(product.dictionary)
    index = query.indices.to_numpy(), product.indices.to_numpy()
    relevance = sp.coo_array((np.ones(len(query), np.int32), index), shape).tocsr()
    relevance.data[:] = 1  # repeated rows were added up
    return relevance, query.dictionary.to_numpy(zero_copy_only=False)


def _hold_out(
    dealt: Int[np.ndarray, " W"],
    sizes: Int[np.ndarray, " W"],
    open_splits: list[int],
    held_out: float,
    seed: int,
) -> None:
    """Moves components from training to the open splits in turn, in place.

    Args:
      dealt: split of each component, an index of `SPLITS`.
      sizes: pairs of each component.
      open_splits: where to move them.
      held_out: share of training's pairs to move.
      seed: of the order.
    """
    free = np.flatnonzero((dealt == 0) & (sizes > 0))
    budget = held_out * sizes[free].sum()
    turns = itertools.cycle(open_splits)
    for component in np.random.default_rng(seed).permutation(free):
        if open_splits and sizes[component] <= budget:
            dealt[component] = next(turns)
            budget -= sizes[component]
