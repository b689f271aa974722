"""Fills the shelves: products with attributes, and texts that tell some of them."""

from typing import NamedTuple, TypeVar

import numpy as np

from jaxqr.data.shop.assortment import COMPLEMENTS, TYPES
from jaxqr.data.shop.words import BRANDS, CHATTER, FACETS, FACTS, OTHERS, TITLES, Term
from jaxqr.records import Product

T = TypeVar("T")

_ABSENT = {"style": 0.3, "feature": 0.35}
"""Share of products that have no value of a facet, though their type knows it."""


class Attributes(NamedTuple):
    """What a product is. Facets without a value are ""."""

    type: str
    brand: str
    color: str = ""
    material: str = ""
    style: str = ""
    audience: str = ""
    feature: str = ""
    size: str = ""


def term(facet: str, value: str) -> Term:
    """The wordings of one value of `type`, `brand` or a facet of `FACETS`."""
    if facet == "type":
        return TYPES[value].term
    return Term((value,)) if facet == "brand" else FACETS[facet][value]


def choose(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    """One of the options; many times faster than `rng.choice` on few of them."""
    return options[rng.integers(len(options))]


def fill_shelves(
    rng: np.random.Generator, num_products: int, num_types: int | None
) -> tuple[dict[str, Product], dict[str, Attributes]]:
    """Products of the first `num_types` types and their attributes, by product id.

    Types and the values of their facets have Zipf-like frequencies. By default a
    small shop sells few types, so that there are enough products of each.
    """
    if num_types is None:
        num_types = int(np.clip(num_products // 80, 8, len(TYPES)))
    types = np.array(list(TYPES)[:num_types])
    popularity = rng.permutation(_zipf(num_types, 0.25))
    kinds = np.sort(rng.choice(num_types, num_products, p=popularity))
    attributes = []
    for kind, count in enumerate(np.bincount(kinds, minlength=num_types)):
        attributes += _attributes(rng, str(types[kind]), int(count))
    # Ids must not tell the type.
    order = rng.permutation(num_products)
    by_id = {f"P{i:06d}": attributes[at] for i, at in enumerate(order)}
    return {id: _product(rng, id, a) for id, a in by_id.items()}, by_id


def _zipf(n: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, n + 1) ** -exponent
    return weights / weights.sum()


def _attributes(
    rng: np.random.Generator, type_name: str, count: int
) -> list[Attributes]:
    kind = TYPES[type_name]
    columns = {"type": [type_name] * count}
    brands = tuple(name for name, _ in BRANDS[kind.department])
    for facet, values in {"brand": brands, **kind.facets}.items():
        drawn = rng.choice(values, count, p=_zipf(len(values), 0.9))
        absent = rng.random(count) < _ABSENT.get(facet, 0.0)
        columns[facet] = np.where(absent, "", drawn).tolist()
    if kind.sizes:
        columns["size"] = rng.choice(kind.sizes, count).tolist()
    return [
        Attributes(**dict(zip(columns, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    ]


def _product(rng: np.random.Generator, id: str, attributes: Attributes) -> Product:
    kind = TYPES[attributes.type]
    words = _words(rng, attributes)
    title = _fill(choose(rng, TITLES), words).replace(" ,", ",")
    # Title and text word the same attribute independently of each other.
    words = _words(rng, attributes)
    facts = [_fill((fact,), words) for fact in rng.permutation(FACTS)]
    facts = [fact[0].upper() + fact[1:] for fact in facts if fact]
    sentences = [facts[0] + ".", choose(rng, CHATTER), choose(rng, CHATTER)]
    if rng.random() < 0.6:
        sentences.append(_other(rng, attributes))
    tier = dict(BRANDS[kind.department])[attributes.brand]
    return Product(
        id=id,
        title=" ".join(word[0].upper() + word[1:] for word in title.split()),
        description=" ".join(dict.fromkeys(sentences)),
        bullets="\n".join(facts[1 : 2 + rng.integers(3)]),
        brand=attributes.brand,
        color=words.get("color", "") if rng.random() < 0.8 else "",
        category=f"{kind.department} > {attributes.type}",
        price=round(float(kind.price * tier * rng.lognormal(0.0, 0.35)), 2),
    )


def _words(rng: np.random.Generator, attributes: Attributes) -> dict[str, str]:
    """One catalogue wording for every attribute that the product has."""
    words = {"size": attributes.size} if attributes.size else {}
    for facet, value in zip(Attributes._fields[:-1], attributes[:-1], strict=True):
        if value:
            words[facet] = choose(rng, term(facet, value).catalogue)
    return words


def _fill(chunks: tuple[str, ...], words: dict[str, str]) -> str:
    """Fills the chunks whose words there are, and leaves out the others."""
    filled = []
    for chunk in chunks:
        try:
            filled.append(chunk.format_map(words))
        except KeyError:
            continue
    return " ".join(filled)


def _other(rng: np.random.Generator, attributes: Attributes) -> str:
    """A sentence that names what the product is not; "" if there is nothing."""
    kind = TYPES[attributes.type]
    others = {
        facet: term(facet, choose(rng, rest)).catalogue[0]
        for facet in ("color", "audience")
        if (
            rest := tuple(
                value
                for value in kind.facets.get(facet, ())
                if value != getattr(attributes, facet)
            )
        )
    }
    others["type"] = choose(rng, tuple(sorted(COMPLEMENTS[attributes.type])))
    return _fill((choose(rng, OTHERS),), others)
