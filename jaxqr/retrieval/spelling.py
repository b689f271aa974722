"""Spelling correction from the catalogue's own words; untrained."""

from collections import Counter
from collections.abc import Iterable, Sequence

from symspellpy import SymSpell, Verbosity

from jaxqr.retrieval.analysis import tokens

SHORTEST = 4
"""Letters below which a word is left alone: too many others are near."""
LONG = 7
"""Letters from which a word may have two errors."""


class SpellingCorrector:
    """Replaces words that the catalogue does not know by the nearest that it does.

    Nearest by Damerau-Levenshtein distance, at most 1, or 2 for words of 7 letters or
    more; of equally near ones the most frequent. Words with digits stay as they are.

    >>> correct = SpellingCorrector(["leather sofa", "red leather shoe"])
    >>> correct(["lether sofs", "red shoe"])
    ['leather sofa', 'red shoe']
    """

    def __init__(self, texts: Iterable[str]):
        """Learns the words of the texts, such as the catalogue's titles."""
        self._words = Counter(term for text in texts for term in tokens(text))
        self._index = SymSpell(max_dictionary_edit_distance=2)
        for word, count in sorted(self._words.items()):
            if word.isalpha():
                self._index.create_dictionary_entry(word, count)

    def __call__(self, queries: Sequence[str]) -> list[str]:
        """The corrected texts; those without an error are as they were."""
        return [self._correct(query) for query in queries]

    def _correct(self, query: str) -> str:
        words = tokens(query)
        corrected = [self._nearest(word) for word in words]
        return query if corrected == words else " ".join(corrected)

    def _nearest(self, word: str) -> str:
        if word in self._words or len(word) < SHORTEST or not word.isalpha():
            return word
        near = self._index.lookup(
            word, Verbosity.CLOSEST, max_edit_distance=1 + (len(word) >= LONG)
        )
        best = min(near, key=lambda x: (x.distance, -x.count, x.term), default=None)
        return best.term if best else word
