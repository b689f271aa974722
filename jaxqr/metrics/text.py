"""Texts: overlap with references, variety among themselves, copies."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import regex
from jaxtyping import Float

from jaxqr.metrics.rows import check_paired

_PIECES = regex.compile(r"(?V1w)[^\p{L}\p{M}\p{N}]+|\b")


def exact_match(
    predictions: Sequence[str], references: Sequence[str]
) -> Float[np.ndarray, " Q"]:
    r"""1.0 where two texts agree up to case and whitespace, else 0.0.

    Canonically equivalent texts (composed and decomposed accents, Hangul syllables and
    their jamo) are one text: both are compared in Unicode's form NFC.

    Raises:
        ValueError: the two differ in length.

    >>> exact_match(["USB  cable ", "usb cables"], ["usb cable", "usb cable"])
    array([1., 0.])
    >>> exact_match(["cafe\u0301"], ["Caf\u00e9"])
    array([1.])
    """
    return _per_pair(
        lambda a, b: float(_canonical(a).split() == _canonical(b).split()),
        predictions,
        references,
    )


def rouge_l(
    predictions: Sequence[str], references: Sequence[str]
) -> Float[np.ndarray, " Q"]:
    """ROUGE-L F1 in [0, 1]: the longest common subsequence of words.

    `2 P R / (P + R)` with `P = LCS / words of the prediction` and `R = LCS / words of
    the reference`; 0 where either has no words. Words are lower-cased maximal runs of
    letters, marks and numbers in the form NFC, cut further at Unicode word boundaries
    (UAX 29), which gives Han and Hiragana one word per character. No stemming. On ASCII
    text this is Google's `rouge_score`, whose [a-z0-9] sees nothing in other scripts.
    Lin 2004, section 3.1, with beta 1.

    Raises:
        ValueError: the two differ in length.

    >>> rouge_l(["red running shoes", "赤い靴"], ["shoes for running, red", "赤い鞄"])
    array([0.28571429, 0.66666667])
    """

    def f1(prediction, reference):
        a, b = _words(prediction), _words(reference)
        # 2 P R / (P + R), with the LCS cancelled.
        return 2 * _common_subsequence(a, b) / max(len(a) + len(b), 1)

    return _per_pair(f1, predictions, references)


def _words(text: str) -> list[str]:
    return [piece for piece in _PIECES.split(_canonical(text)) if piece]


def _canonical(text: str) -> str:
    """Lower case in NFC, the same for all canonically equivalent spellings.

    Lower case first: it may compose where upper case does not. J with a caron is two
    code points, its lower case has one of its own.
    """
    return unicodedata.normalize("NFC", text.lower())


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, one column of the table at a time.

    A column is the bits of one integer: bit i is 0 where the length grows from
    `a[:i]` to `a[:i + 1]`. Hyyrö 2004, "Bit-parallel LCS-length computation
    revisited".
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    everywhere = (1 << len(a)) - 1
    column = everywhere
    for word in b:
        matches = column & places.get(word, 0)
        column = (column + matches | column - matches) & everywhere
    return len(a) - column.bit_count()


def _per_pair(
    metric: Callable[[str, str], float], left: Sequence[str], right: Sequence[str]
) -> Float[np.ndarray, " Q"]:
    check_paired(predictions=len(left), references=len(right))
    pairs = zip(left, right, strict=True)
    return np.fromiter((metric(a, b) for a, b in pairs), np.float64, len(left))


class BertScore(NamedTuple):
    """How well the tokens of two texts match, per pair of texts."""

    precision: Float[np.ndarray, " Q"]
    recall: Float[np.ndarray, " Q"]
    f1: Float[np.ndarray, " Q"]


def bert_score(
    candidates: Sequence[Float[np.ndarray, "_ D"]],
    references: Sequence[Float[np.ndarray, "_ D"]],
) -> BertScore:
    """Greedy matching of contextual token embeddings by cosine similarity.

    Precision is the mean, over the candidate's tokens, of the similarity to the
    nearest reference token; recall the same with the two exchanged; F1 their
    harmonic mean. No idf weights, no rescaling. A text without tokens scores 0, and F1
    is 0 where precision and recall do not sum to more than 0. Zhang et al. 2020,
    section 3.

    Args:
        candidates: one [T D] array per text, the special tokens and padding left out.
        references: likewise; T may differ, D may not.

    Raises:
        ValueError: the two differ in length, or in the width of their embeddings.

    >>> east, north = [1.0, 0.0], [0.0, 2.0]
    >>> score = bert_score([np.array([east])], [np.array([east, north])])
    >>> [part.item() for part in score]  # doctest: +ELLIPSIS
    [1.0, 0.5, 0.666...]
    """
    check_paired(candidates=len(candidates), references=len(references))
    scores = np.zeros((3, len(candidates)))
    pairs = zip(candidates, references, strict=True)
    for i, (candidate, reference) in enumerate(pairs):
        if candidate.shape[-1] != reference.shape[-1]:
            raise ValueError(
                f"Pair {i} has embeddings of width {candidate.shape[-1]} and "
                f"{reference.shape[-1]}; take both from one model."
            )
        if len(candidate) and len(reference):
            similarity = _unit(candidate) @ _unit(reference).T
            p, r = similarity.max(axis=1).mean(), similarity.max(axis=0).mean()
            scores[:, i] = p, r, 2 * p * r / (p + r) if p + r > 0 else 0.0
    return BertScore(*scores)


def _unit(x: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T D"]:
    x = x.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of the n-grams of all texts that are different ones; NaN without any.

    Li et al. 2016 (distinct-1, distinct-2). Words are those of `rouge_l`. It falls with
    the number of texts: compare sets of one size.

    >>> distinct_n(["red shoe", "red shirt"], 1)
    0.75
    """
    if n < 1:
        raise ValueError(f"{n=}: expected 1 or more words")
    grams = [gram for text in texts for gram in _ngrams(_words(text), n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def self_bleu(texts: Sequence[str], *, max_n: int = 4) -> Float[np.ndarray, " Q"]:
    """Each text's BLEU against all the others: 1 where another one says the same.

    `BP exp(mean_n log p_n)` over n-grams of 1 to `max_n` words, as far as the text has
    any. p_n is the share of its n-grams that another text has, each counted at most as
    often as there; above one word, 1 is added to both counts (Lin and Och 2004). The
    brevity penalty BP compares with the other text of the closest length, the shorter
    of two. Zhu et al. 2018 report the mean over texts. A text without words is 0.

    >>> self_bleu(["red shoe", "red shoe", "blue hat"]).round(2)
    array([1., 1., 0.])
    """
    split = [_words(text) for text in texts]
    counts = [[Counter(_ngrams(w, n)) for n in range(1, max_n + 1)] for w in split]
    # The two largest counts of an n-gram in one text: the second is for its owner.
    largest: dict[tuple[str, ...], tuple[int, int]] = {}
    for of_text in counts:
        for gram, count in (item for of_n in of_text for item in of_n.items()):
            first, second = largest.get(gram, (0, 0))
            largest[gram] = max(first, count), max(second, min(first, count))
    lengths = Counter(map(len, split))
    scores = np.zeros(len(texts))
    for row, (words, of_text) in enumerate(zip(split, counts, strict=True)):
        others = [length for length in lengths if length != len(words)]
        if lengths[len(words)] > 1:
            others.append(len(words))
        logs = []
        for n, of_n in enumerate(of_text, 1):
            total = sum(of_n.values())
            if not total:
                break
            matched = sum(
                min(count, first if count < first else max(second, 0))
                for gram, count in of_n.items()
                for first, second in (largest[gram],)
            )
            smooth = n > 1
            share = (matched + smooth) / (total + smooth)
            logs.append(np.log(share) if share else -np.inf)
        if logs and others:
            closest = min(others, key=lambda length: (abs(length - len(words)), length))
            brevity = min(0.0, 1 - closest / len(words))
            scores[row] = np.exp(np.mean(logs) + brevity)
    return scores


def copied(texts: Sequence[str], sources: Sequence[str]) -> Float[np.ndarray, " Q"]:
    """Share of a text's words that stand in its source, such as a product's title.

    1 is a text without a word of its own. A text without words is 0.

    >>> copied(["red shoes"], ["Red Shoe"])
    array([0.5])
    """
    check_paired(texts=len(texts), sources=len(sources))
    shares = np.zeros(len(texts))
    for row, (text, source) in enumerate(zip(texts, sources, strict=True)):
        words, there = _words(text), set(_words(source))
        if words:
            shares[row] = sum(word in there for word in words) / len(words)
    return shares


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
