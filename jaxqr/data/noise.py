"""Pairs for a model that starts from nothing: a corrupted text, and the text.

Restoring a text (Lewis et al. 2020, BART) teaches what every rewriter needs before it
can learn anything of queries: to copy words it has never seen, to spell them, and to
put them in order. It needs no judgements, only the shop's own text.
"""

import re
from collections.abc import Sequence

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def denoising_pairs(
    texts: Sequence[str], copies: int, rng: np.random.Generator, *, max_words: int = 6
) -> list[tuple[str, str]]:
    """(corrupted, text) pairs of `copies` spans of every text.

    A span is 1 to `max_words` words in a row, in lower case and without punctuation
    at the words' ends, as shoppers type.

    >>> denoising_pairs(["Red shoe"], 1, np.random.default_rng(0))
    [('shoered', 'red shoe')]
    """
    pairs = []
    for text in texts:
        words = _typed(text)
        for _ in range(copies if words else 0):
            length = min(len(words), int(rng.integers(1, max_words + 1)))
            start = int(rng.integers(0, len(words) - length + 1))
            span = words[start : start + length]
            pairs.append((corrupted(span, rng), " ".join(span)))
    return pairs


def selection_pairs(
    texts: Sequence[str], copies: int, rng: np.random.Generator, *, max_words: int = 5
) -> list[tuple[str, str]]:
    """(text, some of its words) pairs, `copies` of every text.

    1 to `max_words` of the words in their order, in lower case, as a shopper would name
    a product: what a model has to learn first that writes queries for products.

    >>> selection_pairs(["Red leather shoe"], 1, np.random.default_rng(1))
    [('Red leather shoe', 'red leather shoe')]
    """
    pairs = []
    for text in texts:
        words = _typed(text)
        for _ in range(copies if words else 0):
            count = min(len(words), int(rng.integers(1, max_words + 1)))
            chosen = sorted(rng.choice(len(words), count, replace=False))
            pairs.append((text, " ".join(words[i] for i in chosen)))
    return pairs


def corrupted(words: Sequence[str], rng: np.random.Generator) -> str:
    """The words with some of this done to them, each independently, or none of it.

    A word is left out (never the last one that is left), two neighbours change
    places, two words are run together, a word gets a typing error.

    >>> corrupted(["red", "shoe"], np.random.default_rng(3))
    'shoe'
    """
    words = list(words)
    drop, swap, join, typo = rng.random(4) < (0.25, 0.25, 0.1, 0.4)
    if drop and len(words) > 1:
        del words[int(rng.integers(len(words)))]
    if swap and len(words) > 1:
        i = int(rng.integers(len(words) - 1))
        words[i], words[i + 1] = words[i + 1], words[i]
    if join and len(words) > 1:
        i = int(rng.integers(len(words) - 1))
        words[i : i + 2] = [words[i] + words[i + 1]]
    if typo:
        i = int(rng.integers(len(words)))
        words[i] = _mistyped(words[i], rng)
    return " ".join(words)


def _mistyped(word: str, rng: np.random.Generator) -> str:
    """One letter left out, doubled, replaced, or changed with the next one."""
    if len(word) < 4:
        return word
    i = int(rng.integers(len(word) - 1))
    other = LETTERS[int(rng.integers(len(LETTERS)))]
    middle = ("", 2 * word[i], other, None)[int(rng.integers(4))]
    if middle is None:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word[:i] + middle + word[i + 1 :]


def _typed(text: str) -> list[str]:
    """Its words as shoppers type: lower case, no punctuation at their ends."""
    return [word for word in map(_bare, text.lower().split()) if word]


def _bare(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word)
