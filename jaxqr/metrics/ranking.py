"""Ranked lists: nDCG, recall, coverage, diversity."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from jaxtyping import Float, Real, Shaped

from jaxqr.metrics.rows import check_paired


def ndcg(
    gains: Real[np.ndarray, "Q M"], ideal: Real[np.ndarray, "Q J"], *, k: int = 10
) -> Float[np.ndarray, " Q"]:
    """Normalised discounted cumulative gain of the first `k` ranks.

    `DCG@k = sum of gain_i / log2(i + 1)` over ranks i = 1..k, divided by the DCG@k of
    the best order; 0 where a query has no product of positive gain. The gain is
    linear. Järvelin and Kekäläinen 2002.

    Args:
        gains: gain of the products in the order in which they were ranked, 0 for
            unjudged products and padding.
        ideal: gains of all judged products of the query in any order, padded with 0.
            Pass `gains` itself when the judged products are exactly the ranked ones.
        k: how many ranks count.

    Raises:
        ValueError: the two differ in their number of queries, or k is below 1.

    >>> gains = np.array([[0.0, 1.0, 0.1], [0.0, 0.0, 0.0]])
    >>> ndcg(gains, gains).round(4)
    array([0.6405, 0.    ])
    """
    check_paired(gains=len(gains), ideal=len(ideal))
    if k < 1:
        raise ValueError(f"k is {k}; it counts ranks, so pass 1 or more.")
    best = _dcg(-np.sort(-ideal, axis=1), k)
    return np.divide(_dcg(gains, k), best, out=np.zeros_like(best), where=best > 0)


def _dcg(gains: Real[np.ndarray, "Q M"], k: int) -> Float[np.ndarray, " Q"]:
    gains = gains[:, :k]
    return gains @ (1 / np.log2(np.arange(gains.shape[1]) + 2))


def recall(
    ids: Shaped[np.ndarray, "Q M"], relevant: Sequence[Collection[str]], *, k: int
) -> Float[np.ndarray, " Q"]:
    """Share of a query's relevant products among the first `k`: recall@k.

    NaN where a query has no relevant product.

    Args:
        ids: product ids, the best first, padded with "".
        relevant: ids of all relevant products of each query.
        k: how many ranks count.

    Raises:
        ValueError: the two differ in their number of queries, or k is below 1 or above
            the length of the lists.

    >>> recall(np.array([["a", "b", "c"]]), [{"a", "c", "d", "e"}], k=2)
    array([0.25])
    """
    check_paired(ids=len(ids), relevant=len(relevant))
    if not 1 <= k <= ids.shape[1]:
        raise ValueError(f"k is {k}, expected 1 to {ids.shape[1]}, the lists' length")
    found = (
        len(set(row[:k].tolist()).intersection(r))
        for row, r in zip(ids, relevant, strict=True)
    )
    return np.array(
        [
            n / len(wanted) if wanted else np.nan
            for n, wanted in zip(found, relevant, strict=True)
        ],
        np.float64,
    )


def product_coverage(lists: Iterable[Iterable[str]], relevant: Collection[str]) -> int:
    """Number of distinct relevant products that a query's reformulations return.

    Repeated reformulations and empty lists add nothing. Ids are compared as they are.
    What counts as relevant is the caller's to say, and to print with the number.
    MiniELM, section 4.2.2.

    Args:
        lists: product ids per reformulation, cut to the top k; "" is padding. One
            query's rows of `Hits.ids` will do.
        relevant: ids of the query's relevant products.

    >>> product_coverage([["a", "b"], ["b", "c"], ["", ""]], {"a", "b", "d"})
    2
    """
    returned = {product for ids in lists for product in ids} - {""}
    return len(returned.intersection(relevant))


def diversity(
    original: Shaped[np.ndarray, "Q M"], rewritten: Shaped[np.ndarray, "Q L"]
) -> Float[np.ndarray, " Q"]:
    """Share of a rewrite's products that the original query does not return.

    `|P_rewritten - P_original| / |P_rewritten|`, 0 where the rewrite returns nothing.
    MiniELM, section 3.2.

    Args:
        original: product ids, padded with "".
        rewritten: product ids, padded with "".

    Raises:
        ValueError: the two differ in their number of queries.

    >>> diversity(np.array([["a", "b"]]), np.array([["b", "c", ""]]))
    array([0.5])
    """
    check_paired(original=len(original), rewritten=len(rewritten))
    shares = np.zeros(len(rewritten))
    for i, (before, after) in enumerate(zip(original, rewritten, strict=True)):
        returned = set(after.tolist()) - {""}
        if returned:
            shares[i] = len(returned.difference(before.tolist())) / len(returned)
    return shares
