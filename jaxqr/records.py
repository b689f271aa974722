"""What a shop is made of, on the host: products, judgements, collections."""

from typing import NamedTuple

import numpy as np

LABELS = ("E", "S", "C", "I")
"""ESCI's relevance labels, best first: Exact, Substitute, Complement, Irrelevant."""

GAINS = {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}
"""Graded relevance of each label (Reddy et al. 2022, section 4)."""


class Product(NamedTuple):
    """One product. Texts may be empty; `price` is None where it is not known."""

    id: str
    title: str
    description: str = ""
    bullets: str = ""
    brand: str = ""
    color: str = ""
    category: str = ""
    price: float | None = None


class Judgements(NamedTuple):
    """Relevance judgements as columns of equal length, one row per (query, product)."""

    query: np.ndarray  # [R] of str
    product_id: np.ndarray  # [R] of str
    label: np.ndarray  # [R] of "E" | "S" | "C" | "I"


class Collection(NamedTuple):
    """Products, queries and judgements: what search is trained and measured on.

    `split` maps every query to "train", "validation" or "test". A judgement's product
    may lack text, and so be missing from `products`; its query is always in `split`.
    """

    products: dict[str, Product]
    split: dict[str, str]
    judgements: Judgements
