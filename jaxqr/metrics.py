"""What reports print: text overlap, ranking, coverage, significance.

Everything is numpy, in float64. A metric of texts or rankings returns one number per
row, [Q], so that the caller decides what to average and how to resample it:
`bootstrap_interval(rouge_l(predictions, references))`. scikit-learn and scipy.stats
take longer to import than all the rest, so the functions that need them import them.
"""

import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import regex
from jaxtyping import Float, Int, Real, Shaped

_PIECES = regex.compile(r"(?V1w)[^\p{L}\p{M}\p{N}]+|\b")
_DRAWS = 1 << 20  # indices a bootstrap holds at once: 8 MiB


# Text


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
    _check_paired(predictions=len(left), references=len(right))
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
    _check_paired(candidates=len(candidates), references=len(references))
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


# Ranking and coverage


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
    _check_paired(gains=len(gains), ideal=len(ideal))
    if k < 1:
        raise ValueError(f"k is {k}; it counts ranks, so pass 1 or more.")
    best = _dcg(-np.sort(-ideal, axis=1), k)
    return np.divide(_dcg(gains, k), best, out=np.zeros_like(best), where=best > 0)


def _dcg(gains: Real[np.ndarray, "Q M"], k: int) -> Float[np.ndarray, " Q"]:
    gains = gains[:, :k]
    return gains @ (1 / np.log2(np.arange(gains.shape[1]) + 2))


def macro_f1(
    predicted: Int[np.ndarray, " R"], labels: Int[np.ndarray, " R"], classes: int
) -> float:
    """Mean over all `classes` of F1, `2 TP / (2 TP + FP + FN)`.

    A class that is neither predicted nor a label counts as 0; scikit-learn's
    `f1_score(average="macro")` leaves it out unless it is told the classes, as here.

    Raises:
        ValueError: the two differ in length, are empty, or hold a class that is not
            in `0..classes - 1`.

    >>> macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    0.6666666666666666
    """
    from sklearn.metrics import f1_score

    _check_paired(predicted=len(predicted), labels=len(labels))
    _check_classes("macro_f1", np.concatenate([predicted, labels]), classes)
    return float(
        f1_score(
            labels,
            predicted,
            labels=np.arange(classes),
            average="macro",
            zero_division=0.0,  # pyright: ignore[reportArgumentType]
        )
    )


def pr_auc_micro(
    probabilities: Float[np.ndarray, "R K"], labels: Int[np.ndarray, " R"]
) -> float:
    """Average precision over all (row, class) decisions of a classifier.

    The R K decisions "row r is of class c" are ranked by probability, and
    `AP = sum_n (recall_n - recall_{n-1}) precision_n` over the distinct thresholds n,
    from the highest down: equal probabilities enter together, and nothing is
    interpolated. scikit-learn's `average_precision_score(average="micro")`.

    Raises:
        ValueError: the two differ in length, are empty, a label is no column, or a
            probability is NaN or infinite.

    >>> pr_auc_micro(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]))
    0.8333333333333333
    """
    from sklearn.metrics import average_precision_score

    _check_paired(probabilities=len(probabilities), labels=len(labels))
    classes = probabilities.shape[1]
    _check_classes("pr_auc_micro", labels, classes)
    truth = labels[:, None] == np.arange(classes)
    return float(average_precision_score(truth.ravel(), probabilities.ravel()))


def _check_classes(metric: str, given: np.ndarray, classes: int) -> None:
    if given.size == 0:
        raise ValueError(f"{metric} got no rows; it needs 1 or more.")
    if given.min() < 0 or given.max() >= classes:
        raise ValueError(
            f"{metric} got classes from {given.min()} to {given.max()}; of {classes} "
            f"classes they must lie in 0..{classes - 1}."
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
    _check_paired(original=len(original), rewritten=len(rewritten))
    shares = np.zeros(len(rewritten))
    for i, (before, after) in enumerate(zip(original, rewritten, strict=True)):
        returned = set(after.tolist()) - {""}
        if returned:
            shares[i] = len(returned.difference(before.tolist())) / len(returned)
    return shares


# Significance


class Interval(NamedTuple):
    """A mean and the bounds between which it would fall under resampling."""

    mean: float
    low: float
    high: float


class PairedInterval(NamedTuple):
    """Mean difference `after - before`, its interval, and how often it vanishes.

    `share_not_positive` is the share of resamples with a mean difference of 0 or
    less: a one-sided p-value for "after is better".
    """

    mean: float
    low: float
    high: float
    share_not_positive: float


def bootstrap_interval(
    values: Real[np.ndarray, " Q"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean over independent rows.

    `resamples` times draw Q rows with replacement and average; the bounds are the
    (1 - level) / 2 and (1 + level) / 2 quantiles: `scipy.stats.bootstrap` with
    `method="percentile"`, which unlike this refuses a single row. Two calls with one
    seed agree. Rows must be independent: pass one number per query, not one per
    product. Efron 1979.

    Raises:
        ValueError: there are no values, one of them is not finite, `level` is not
            between 0 and 1, or `resamples` is below 2.

    >>> interval = bootstrap_interval(np.array([0.0, 1.0, 1.0, 0.0, 1.0]))
    >>> interval.mean, interval.low, interval.high
    (0.6, 0.2, 1.0)
    """
    values = values.astype(np.float64)
    low, high, _ = _bootstrap(values, level, resamples, seed)
    return Interval(float(values.mean()), low, high)


def paired_bootstrap(
    before: Real[np.ndarray, " Q"],
    after: Real[np.ndarray, " R"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedInterval:
    """Compare two systems on the same rows by resampling rows, not systems.

    `bootstrap_interval` of `after - before`, and the share of resamples in which
    `after` is no better. Koehn 2004.

    Raises:
        ValueError: the two differ in length, and as for `bootstrap_interval`.

    >>> before = np.array([0.0, 0.2, 0.1, 0.3])
    >>> paired_bootstrap(before, before + 0.5)  # doctest: +ELLIPSIS
    PairedInterval(mean=0.5, low=0.5, high=0.5, share_not_positive=0.0)
    """
    _check_paired(before=len(before), after=len(after))
    difference = np.subtract(after, before, dtype=np.float64)
    low, high, means = _bootstrap(difference, level, resamples, seed)
    return PairedInterval(
        float(difference.mean()), low, high, float(np.mean(means <= 0))
    )


def _bootstrap(
    values: Float[np.ndarray, " Q"], level: float, resamples: int, seed: int
) -> tuple[float, float, Float[np.ndarray, " resamples"]]:
    """The bounds of the interval, and the mean of every resample."""
    from scipy import stats

    if not (values.size and np.isfinite(values).all()):
        raise ValueError(
            f"{np.count_nonzero(np.isfinite(values))} of {values.size} values are "
            "finite; the bootstrap needs 1 or more, all finite. Drop invalid rows."
        )
    if not 0 < level < 1 or resamples < 2:
        raise ValueError(
            f"level is {level} and resamples is {resamples}; level must lie between "
            "0 and 1 (0.95 is usual), resamples must be 2 or more."
        )
    if values.size == 1:
        values = values.repeat(2)  # the same means, of the two rows that scipy wants
    result = stats.bootstrap(
        (values,),
        np.mean,
        vectorized=True,
        n_resamples=resamples,
        batch=max(_DRAWS // values.size, 1),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return float(low), float(high), result.bootstrap_distribution


def _check_paired(**lengths: int) -> None:
    (left, m), (right, n) = lengths.items()
    if m != n:
        raise ValueError(
            f"{left} has {m} rows and {right} has {n}; pass one row of each per query."
        )
