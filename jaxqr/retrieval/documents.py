"""What engines have in common: the text of a product, its id, and the order of ties."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from jaxqr.records import Hits, Product
from jaxqr.retrieval.analysis import tokens

TIE = 1e-6
"""Two single-precision sums of the same terms in another order differ by less."""

Text = Callable[[Product], str]


def title(product: Product) -> str:
    """The title alone, as a search index with one field has it."""
    return product.title


def title_brand_color(product: Product) -> str:
    """The text that is searched by default: the title, then brand and colour.

    Brand and colour are left out where the title already has all their terms:
    repeated there they would count twice.

    Example:
        >>> title_brand_color(Product("1", "Nike Air Zoom", brand="NIKE", color="red"))
        'Nike Air Zoom red'
    """
    text = product.title
    known = set(tokens(text))
    for extra in (product.brand, product.color):
        if not known.issuperset(tokens(extra)):
            text = f"{text} {extra}"
    return text


def name_of(text: Text) -> str:
    """The module and name of a text function, which an index keeps."""
    return f"{text.__module__}.{text.__qualname__}"


def check_k(k: int) -> None:
    """Raise ValueError for lists without a length."""
    if k < 1:
        raise ValueError(f"k is {k}, expected the length of the lists, at least 1")


def check_weights(queries: Sequence[Mapping[str, float]]) -> None:
    """Raise ValueError for a weight that is not above 0 and finite."""
    for query in queries:
        for term, weight in query.items():
            if not 0 < weight < math.inf:
                raise ValueError(
                    f"the term {term!r} weighs {weight}, expected a finite number "
                    "above 0; leave out terms that do not count"
                )


def check_id(product_id: str, seen: set[str]) -> None:
    """Raise ValueError for an id that an index cannot keep; else add it to `seen`."""
    if not product_id:
        raise ValueError(
            f"product {len(seen) + 1} has the id ''; ids must not be empty, "
            "because '' pads lists. Give every product an id."
        )
    try:
        product_id.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"product {len(seen) + 1} has the id {product_id!r}, expected Unicode "
            "text; half a character cannot be kept. Give it another id."
        ) from None
    if product_id in seen:
        raise ValueError(
            f"product id {product_id!r} occurs twice (again as product "
            f"{len(seen) + 1}), expected distinct ids. Drop or rename one of them."
        )
    seen.add(product_id)


def ties_on(scores: Sequence[float], k: int) -> bool:
    """Whether the last of these falling scores ties with place `k`."""
    return len(scores) >= k and scores[-1] >= scores[k - 1] * (1 - TIE)


def in_order(found: Iterable[tuple[str, float]], k: int) -> list[tuple[str, float]]:
    """The `k` best of (id, score) pairs of falling score, ties by id.

    >>> in_order([("c", 2.0), ("b", 1.0), ("a", 1.0)], 2)
    [('c', 2.0), ('a', 1.0)]
    """
    placed: list[tuple[int, str, float]] = []
    place, last = 0, float("inf")
    for product_id, score in found:
        if score < last * (1 - TIE):
            if len(placed) >= k:
                break
            place += 1
        last = score
        placed.append((place, product_id, score))
    return [(product_id, score) for _, product_id, score in sorted(placed)[:k]]


def as_hits(rows: Sequence[Sequence[tuple[str, float]] | None], k: int) -> Hits:
    """Lists of (id, score) pairs as padded arrays; None is a search that failed."""
    lists = [row or [] for row in rows]
    ids = [[i for i, _ in row] + [""] * (k - len(row)) for row in lists]
    scores = np.zeros((len(rows), k), np.float32)
    for row, found in zip(scores, lists, strict=True):
        row[: len(found)] = [score for _, score in found]
    return Hits(
        np.array(ids, dtype=np.str_).reshape(len(rows), k),
        scores,
        np.array([row is not None for row in rows], np.bool_),
    )
