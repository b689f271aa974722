"""A split for cold start: products that the classifier has met in no query.

                    products that are sold already     cold products
    train           train: the classifier learns       -
    validation      validation                         -
    test            test: new queries                  cold: new queries and products
    independent     independent: another classifier, with other queries, that checks
                    what a generator writes

The first column lists the queries. Rows at "-" are not used: a training query that was
judged with a cold product would tell the classifier about it.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxqr.records import Collection

Unit = Literal["category", "product"]


class ColdStart(NamedTuple):
    """Rows of a collection's judgements, by what they are for; see the module's table.

    Rows of products without text are in none of them.
    """

    train: Int[np.ndarray, " _"]
    validation: Int[np.ndarray, " _"]
    test: Int[np.ndarray, " _"]
    cold: Int[np.ndarray, " _"]
    independent: Int[np.ndarray, " _"]
    products: tuple[str, ...]
    """The cold products, sorted by id."""

    @property
    def parts(self) -> dict[str, Int[np.ndarray, " _"]]:
        """The rows by the name of their part."""
        return {name: getattr(self, name) for name in self._fields[:-1]}


def cold_start(
    collection: Collection,
    *,
    unit: Unit = "category",
    share: float = 0.25,
    independent: float = 0.25,
    held_out: float = 0.1,
    seed: int = 0,
) -> ColdStart:
    """Splits judgements such that whole categories, or products, are unseen.

    Units are drawn at random until they hold at least `share` of the products that are
    judged for a query. Queries keep their split; where there are none for validation,
    or for test, some of the training queries are drawn.

    Args:
        collection: products, queries and judgements.
        unit: what is cold as a whole. A product without a category is its own.
        share: of the judged products, in (0, 1).
        independent: share of the training queries that only another classifier sees,
            in (0, 1).
        held_out: share of the training queries that becomes the test part, or the
            validation part, where there is none; in (0, 1).
        seed: of every draw.

    Raises:
        ValueError: a share that is not between 0 and 1, or a part without rows.
    """
    shares = {"share": share, "independent": independent, "held_out": held_out}
    for name, value in shares.items():
        if not 0 < value < 1:
            raise ValueError(f"{name}={value}: expected a number between 0 and 1")
    rng = np.random.default_rng(seed)
    queries, ids = collection.judgements.query, collection.judgements.product_id
    products = collection.products
    known = np.array([id in products for id in ids], np.bool_)
    judged = sorted(set(ids[known]))
    cold = _cold(
        {
            id: (products[id].category or id) if unit == "category" else id
            for id in judged
        },
        share * len(judged),
        rng,
    )
    part_of = _queries(collection.split, held_out, independent, rng)
    part = np.array([part_of[query] for query in queries])
    is_cold = np.array([id in cold for id in ids], np.bool_)

    def rows(name: str, where: np.ndarray) -> np.ndarray:
        return np.flatnonzero((part == name) & where & known)

    split = ColdStart(
        train=rows("train", ~is_cold),
        validation=rows("validation", ~is_cold),
        test=rows("test", ~is_cold),
        cold=rows("test", is_cold),
        independent=rows("independent", known),
        products=tuple(id for id in judged if id in cold),
    )
    if empty := [name for name, rows in split.parts.items() if not len(rows)]:
        raise ValueError(
            f"no judgements for {', '.join(empty)}: {len(split.products)} of "
            f"{len(judged)} judged products are cold, in units of a {unit}. Choose "
            "another share or unit, or give more judgements"
        )
    return split


def _cold(
    unit_of: dict[str, str], wanted: float, rng: np.random.Generator
) -> frozenset[str]:
    """The products of units drawn until there are at least as many as wanted."""
    members: dict[str, list[str]] = {}
    for id, unit in unit_of.items():
        members.setdefault(unit, []).append(id)
    units = sorted(members)
    cold: list[str] = []
    for at in rng.permutation(len(units)):
        if len(cold) >= wanted:
            break
        cold += members[units[at]]
    return frozenset(cold)


def _queries(
    split: dict[str, str],
    held_out: float,
    independent: float,
    rng: np.random.Generator,
) -> dict[str, str]:
    """The part of every query."""
    part = dict(split)
    missing = {"test", "validation"} - set(part.values())
    wanted = dict.fromkeys(sorted(missing), held_out)
    for name, share in (wanted | {"independent": independent}).items():
        left = sorted(query for query, of in part.items() if of == "train")
        chosen = rng.permutation(len(left))[: round(share * len(left))]
        part |= {left[i]: name for i in chosen}
    return part
