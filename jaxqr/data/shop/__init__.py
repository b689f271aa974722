"""A synthetic shop in which the relevance of every product to every query is known.

The catalogue and the shoppers speak different languages: the shop sells "crimson
athletic shoes", shoppers type "bright red sneakers", misspell, leave out what they
want or add what does not matter. Relevance follows from attributes (`true_label`), so
a rewriter can be measured on the true gain of what it finds, judged or not. Words are
in `words` and `assortment`, products come from `catalogue`, phrasings from `queries`.

Intents have about 15 to 60 exact products, more than one result page: a rewrite can
stay relevant and show products that are new. The judged products of two intents
overlap in at most one relevant product, as they would by themselves in a catalogue of
millions; so `jaxqr.data.q2q` finds the phrasings of one intent, and splits by intent.
"""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxqr.data.shop.assortment import TYPES
from jaxqr.data.shop.catalogue import Attributes, fill_shelves
from jaxqr.data.shop.queries import (
    KINDS,
    Intent,
    candidate_intents,
    phrase,
    relevance,
    type_relevance,
    wordings,
)
from jaxqr.records import Collection, Judgements

_MATCHES = (15, 60)
_EXACT = (6, 10)  # judged exact products of an intent: least and most
_JUDGED = {"E": (6, 10), "S": (4, 8), "C": (2, 5)}  # per query, [least, most)
_LISTED = (22, 29)  # judged products per query, [least, most); the rest are I


class Truth(NamedTuple):
    """What only the shop's maker knows: from it the relevance of anything follows."""

    intents: dict[str, Intent]
    """What each query states."""
    attributes: dict[str, Attributes]
    """What each product is, by id."""
    phrasing: dict[str, str]
    """How each query is phrased, one of `queries.KINDS`."""

    def save(self, path: Path) -> None:
        """Writes one JSON file, whole or not at all."""
        value = self._asdict()
        partial = path.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> "Truth":
        """Reads what `save` wrote."""
        value = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            {
                query: Intent(kind, tuple(map(tuple, constraints)))
                for query, (kind, constraints) in value["intents"].items()
            },
            {id: Attributes(*fields) for id, fields in value["attributes"].items()},
            value.get("phrasing", {}),  # files of earlier versions lack it
        )


class Shop(NamedTuple):
    """The shop as its search team sees it, and the truth that it does not."""

    collection: Collection
    truth: Truth


def make(
    *,
    num_products: int = 6000,
    num_intents: int = 800,
    num_types: int | None = None,
    test_share: float = 0.15,
    seed: int = 0,
) -> Shop:
    """Stocks a shop, and lets several shoppers phrase each of `num_intents` intents.

    Every intent has 4 to 10 queries, one or two of them in the catalogue's words, and
    every query 22 to 28 judged products. Equal arguments give equal shops.

    Args:
      num_products: size of the catalogue.
      num_intents: in a large catalogue, at most about one per 6 products.
      num_types: how many types of product there are, up to `len(TYPES)`; by default
        all of them in a large catalogue, fewer in a small one.
      test_share: share of the intents whose queries are all in the "test" split.
      seed: of every random choice.

    Raises:
      ValueError: `test_share` is not in [0, 1), or so few products do not make so
        many intents.

    Example:
      >>> shop = make(num_products=800, num_intents=20)
      >>> query, intent = next(iter(shop.truth.intents.items()))
      >>> product_id, attributes = next(iter(shop.truth.attributes.items()))
      >>> true_label(shop.truth, query, product_id) in "ESCI"
      True
    """
    if num_products < 1 or num_intents < 1 or not 0 <= test_share < 1:
        raise ValueError(
            f"got {num_products=}, {num_intents=}, {test_share=}; expected positive "
            "numbers and 0 <= test_share < 1"
        )
    if num_types is not None and not 1 <= num_types <= len(TYPES):
        raise ValueError(f"got {num_types=}; expected 1 to {len(TYPES)}, or None")
    rng = np.random.default_rng(seed)
    products, attributes = fill_shelves(rng, num_products, num_types)
    pools = _pools(rng, attributes, num_intents)
    tests = set(rng.permutation(num_intents)[: round(test_share * num_intents)])
    intents: dict[str, Intent] = {}
    phrasing: dict[str, str] = {}
    split: dict[str, str] = {}
    rows: list[tuple[str, str, str]] = []
    stated = set(pools)
    for number, (intent, pool) in enumerate(pools.items()):
        for query, kind, meant in _phrasings(rng, intent, intents, stated):
            intents[query], phrasing[query] = meant, kind
            split[query] = "test" if number in tests else "train"
            rows += _judge(rng, query, meant, pool, attributes)
    columns = (np.array(column, object) for column in zip(*rows, strict=True))
    query, product_id, label = columns
    judgements = Judgements(query, product_id, label.astype("U1"))
    collection = Collection(products, split, judgements)
    return Shop(collection, Truth(intents, attributes, phrasing))


def own_words(truth: Truth, query: str) -> str:
    """What a query states, in the catalogue's words: the best that a rewrite can say.

    Raises:
      ValueError: the shop does not know the query.
    """
    if query not in truth.intents:
        raise ValueError(f"got query {query!r}; expected one of truth.intents")
    return wordings(truth.intents[query])


def true_label(truth: Truth, query: str, product_id: str) -> str:
    """The true relevance, E, S, C or I, of any product to any query of the shop.

    Raises:
      ValueError: the shop does not know the query or the product.
    """
    if query not in truth.intents or product_id not in truth.attributes:
        raise ValueError(
            f"got query {query!r} and product {product_id!r}; expected a query of "
            "truth.intents (the shopper's own, not a rewrite) and an id of "
            "truth.attributes"
        )
    return relevance(truth.intents[query], truth.attributes[product_id])


def _pools(
    rng: np.random.Generator, attributes: dict[str, Attributes], num_intents: int
) -> dict[Intent, dict[str, list[str]]]:
    """Intents, and the products by label from which those judged are drawn."""
    by_type = defaultdict(list)
    for id, a in attributes.items():
        by_type[a.type].append(id)
    pools: dict[Intent, dict[str, list[str]]] = {}
    owners = defaultdict(list)  # product -> numbers of the intents that have it
    related: dict[str, dict[str, list[str]]] = {}  # type -> label -> products
    for intent, matching in candidate_intents(rng, attributes, _MATCHES).items():
        if len(pools) == num_intents:
            break
        overlap = Counter()
        exact = _disjoint(rng, matching, owners, overlap, _EXACT[1])
        if len(exact) < _EXACT[0]:
            continue
        if intent.type not in related:
            related[intent.type] = labelled = defaultdict(list)
            for other, ids in by_type.items():
                labelled[type_relevance(intent.type, other)] += ids
        labelled = related[intent.type]
        matches = set(matching)
        substitutes = [id for id in labelled["E"] if id not in matches]
        substitutes += labelled["S"]
        pool = {
            "E": exact,
            "S": _disjoint(rng, substitutes, owners, overlap, 8),
            "C": _sample(rng, labelled["C"], 6),
            "I": _sample(rng, labelled["I"], 20),
        }
        for id in (*pool["E"], *pool["S"]):
            owners[id].append(len(pools))
        pools[intent] = pool
    if len(pools) < num_intents:
        raise ValueError(
            f"{len(attributes)} products make {len(pools)} intents, not {num_intents}; "
            f"ask for fewer intents, or for about {8 * num_intents} products"
        )
    return pools


def _disjoint(
    rng: np.random.Generator,
    ids: list[str],
    owners: dict[str, list[int]],
    overlap: Counter,
    most: int,
) -> list[str]:
    """Up to `most` of the ids such that no earlier intent has two of those chosen.

    `overlap` counts the chosen ones by earlier intent, and is updated.
    """
    chosen = []
    for id in _sample(rng, ids, len(ids)):
        if len(chosen) == most:
            break
        if not any(overlap[owner] for owner in owners[id]):
            overlap.update(owners[id])
            chosen.append(id)
    return chosen


def _sample(rng: np.random.Generator, ids: list[str], most: int) -> list[str]:
    return [ids[i] for i in rng.permutation(len(ids))[:most]]


def _phrasings(
    rng: np.random.Generator,
    intent: Intent,
    known: dict[str, Intent],
    stated: set[Intent],
) -> list[tuple[str, str, Intent]]:
    """4 to 10 new queries for one intent, with kind and meaning.

    A vague query must not mean what another intent, or its vague form, already means:
    one meaning then has one set of phrasings. `stated` is updated.
    """
    wanted = int(rng.integers(4, 11))
    own = {intent}
    phrasings: dict[str, tuple[str, str, Intent]] = {}
    cleans = int(rng.integers(1, 3))
    # Some draws repeat a query or a meaning; three per query leave enough.
    for draw in range(3 * wanted):
        kind = KINDS[0] if draw < cleans else KINDS[rng.integers(1, len(KINDS))]
        query, meant = phrase(rng, intent, kind)
        if query in known or query in phrasings or meant in stated - own:
            continue
        own.add(meant)
        phrasings[query] = (query, kind, meant)
        if len(phrasings) == wanted:
            break
    stated |= own
    return list(phrasings.values())


def _judge(
    rng: np.random.Generator,
    query: str,
    intent: Intent,
    pool: dict[str, list[str]],
    attributes: dict[str, Attributes],
) -> list[tuple[str, str, str]]:
    """Rows (query, product id, label); the label is that of what the query states."""
    judged = []
    for label, bounds in _JUDGED.items():
        judged += _sample(rng, pool[label], int(rng.integers(*bounds)))
    judged += _sample(rng, pool["I"], int(rng.integers(*_LISTED)) - len(judged))
    return [(query, id, relevance(intent, attributes[id])) for id in judged]
