"""What shoppers want, and the many ways in which they type it."""

from collections import defaultdict
from itertools import combinations
from typing import NamedTuple

import numpy as np

from jaxqr.data.shop.assortment import COMPLEMENTS, TYPES
from jaxqr.data.shop.catalogue import Attributes, choose, term
from jaxqr.data.shop.words import EXTRAS

KINDS = ("clean", "synonym", "misspelled", "vague", "over-specified")
"""How a query is phrased.

clean           the catalogue's own words for the type and every constraint
synonym         shoppers' words for some of them
misspelled      one or two typing errors
vague           at least one of the intent's constraints is not stated
over-specified  further words that constrain nothing ("gift for my daughter")
"""

# How often each kind says a thing in the shopper's words, not the catalogue's.
_COLLOQUIAL: dict[str, float] = dict(
    zip(KINDS, (0.0, 0.7, 0.25, 0.4, 0.35), strict=True)
)
_ORDER = ("brand", "feature", "color", "style", "material", "type", "audience")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    letter: row[max(i - 1, 0) : i] + row[i + 1 : i + 2]
    for row in _ROWS
    for i, letter in enumerate(row)
}


class Intent(NamedTuple):
    """What a query asks for: a type, and the value of some facets, sorted by facet."""

    type: str
    constraints: tuple[tuple[str, str], ...]


def type_relevance(wanted: str, given: str) -> str:
    """The best label that a product of type `given` can have."""
    if given == wanted:
        return "E"
    if TYPES[given].family == TYPES[wanted].family:
        return "S"
    return "C" if given in COMPLEMENTS[wanted] else "I"


def relevance(intent: Intent, attributes: Attributes) -> str:
    """The true label: follows from the attributes alone.

    E: the type, and all constraints hold; S: the type, but a constraint fails, or a
    type of the same family; C: a type used together with it; I: all else.
    """
    label = type_relevance(intent.type, attributes.type)
    if label == "E" and any(getattr(attributes, f) != v for f, v in intent.constraints):
        return "S"
    return label


def candidate_intents(
    rng: np.random.Generator,
    attributes: dict[str, Attributes],
    matches: tuple[int, int],
) -> dict[Intent, list[str]]:
    """Intents of 1 to 3 constraints with their products, in random order.

    Only those that between `matches[0]` and `matches[1]` products fulfil. The order
    favours no number of constraints, though there are many more with three.
    """
    found = defaultdict(list)
    for id, a in attributes.items():
        values = [
            (facet, value)
            for facet, value in sorted(a._asdict().items())
            if value and facet not in ("type", "size")
        ]
        for size in (1, 2, 3):
            for constraints in combinations(values, size):
                found[Intent(a.type, constraints)].append(id)
    fewest, most = matches
    intents = [i for i, ids in found.items() if fewest <= len(ids) <= most]
    sizes = np.array([len(intent.constraints) for intent in intents], int)
    # Weighted order without replacement (Efraimidis & Spirakis 2006).
    keys = rng.exponential(size=len(intents)) * np.bincount(sizes, minlength=1)[sizes]
    return {intents[i]: found[intents[i]] for i in np.argsort(keys)}


def phrase(rng: np.random.Generator, intent: Intent, kind: str) -> tuple[str, Intent]:
    """One query for the intent, and what it states: fewer constraints if vague."""
    if kind == "vague":
        kept = rng.permutation(len(intent.constraints))
        kept = np.sort(kept[: rng.integers(len(kept))])
        intent = Intent(intent.type, tuple(intent.constraints[i] for i in kept))
    meant = {"type": intent.type, **dict(intent.constraints)}
    facets = [facet for facet in _ORDER if facet in meant]
    # A query of synonyms has one at least: for its type.
    colloquial = {f for f in facets if rng.random() < _COLLOQUIAL[kind]}
    if kind == "synonym" and not any(term(f, meant[f]).shopper for f in colloquial):
        colloquial = {"type"}
    parts = []
    for facet in facets:
        wordings = term(facet, meant[facet])
        said = wordings.shopper if facet in colloquial else ()
        part = choose(rng, said or wordings.catalogue).lower()
        parts.append(f"for {part}" if facet == "audience" else part)
    if kind != "clean" and rng.random() < 0.4:
        parts = [parts[i] for i in rng.permutation(len(parts))]
    if kind == "over-specified":
        for extra in rng.permutation(EXTRAS)[: rng.integers(1, 3)]:
            parts.insert(len(parts) if rng.random() < 0.7 else 0, str(extra))
    text = " ".join(parts)
    return (_misspell(rng, text) if kind == "misspelled" else text), intent


def wordings(intent: Intent) -> str:
    """All the catalogue's wordings of each part of an intent, in one text."""
    meant = {"type": intent.type, **dict(intent.constraints)}
    words = [w for f in _ORDER if f in meant for w in term(f, meant[f]).catalogue]
    return " ".join(words).lower()


def _misspell(rng: np.random.Generator, text: str) -> str:
    """One or two typing errors in words of four letters or more."""
    words = text.split()
    long = [i for i, word in enumerate(words) if len(word) >= 4]
    for i in rng.permutation(long)[: rng.integers(1, 3)]:
        words[i] = _typo(rng, words[i])
    return " ".join(words)


def _typo(rng: np.random.Generator, word: str) -> str:
    """A neighbouring key, or a letter dropped, doubled or swapped with the next."""
    while True:
        at = int(rng.integers(1, len(word)))
        before, letter, after = word[:at], word[at], word[at + 1 :]
        key = choose(rng, tuple(_NEIGHBOURS.get(letter, letter)))
        swapped = before[:-1] + letter + before[-1]
        changes = (before + key, before, before + letter * 2, swapped)
        if (typo := choose(rng, changes) + after) != word:
            return typo
