"""Classifiers: F1, areas under precision-recall curves, calibration."""

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from jaxqr.metrics.rows import check_paired

_CELLS = 1 << 21
"""Numbers that resampling holds at once: 16 MiB."""


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

    check_paired(predicted=len(predicted), labels=len(labels))
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
    probabilities: Float[np.ndarray, "R K"],
    labels: Int[np.ndarray, " R"],
    weights: Float[np.ndarray, " R"] | None = None,
) -> float:
    """Average precision over all (row, class) decisions of a classifier.

    The R K decisions "row r is of class c" are ranked by probability, and
    `AP = sum_n (recall_n - recall_{n-1}) precision_n` over the distinct thresholds n,
    from the highest down: equal probabilities enter together, and nothing is
    interpolated. scikit-learn's `average_precision_score(average="micro")`.

    Args:
        probabilities: of each class.
        labels: the true classes.
        weights: how much each row counts, 0 or more; None: all count the same.

    Raises:
        ValueError: they differ in length, are empty, a label is no column, or a
            probability is NaN or infinite.

    >>> pr_auc_micro(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]))
    0.8333333333333333
    """
    one = np.zeros(len(labels), np.int64)
    found = pr_auc_resampled(probabilities, labels, one, np.ones((1, 1)), weights)
    return float(found[0])


def pr_auc_resampled(
    probabilities: Float[np.ndarray, "R K"],
    labels: Int[np.ndarray, " R"],
    groups: Int[np.ndarray, " R"],
    counts: Real[np.ndarray, "B G"],
    weights: Float[np.ndarray, " R"] | None = None,
) -> Float[np.ndarray, " B"]:
    """`pr_auc_micro` of B resamples, which draw whole groups of rows.

    Args:
        probabilities: of each class.
        labels: the true classes.
        groups: of each row, such as the number of its query.
        counts: how often each resample draws each group; see `crossed_counts`.
        weights: how much each row counts besides; None: all count the same.

    Returns:
        One number for each resample; NaN where nothing was drawn.

    Raises:
        ValueError: as `pr_auc_micro`.
    """
    truth = _truth("pr_auc_resampled", probabilities, labels)
    classes = probabilities.shape[1]
    return _average_precision(
        probabilities.ravel(),
        truth.ravel(),
        np.repeat(groups, classes),
        counts,
        None if weights is None else np.repeat(weights, classes),
    )


def pr_auc_per_class(
    probabilities: Float[np.ndarray, "R K"],
    labels: Int[np.ndarray, " R"],
    weights: Float[np.ndarray, " R"] | None = None,
) -> Float[np.ndarray, " K"]:
    """Average precision of each class against the others; NaN for one without rows.

    Raises:
        ValueError: as `pr_auc_micro`.

    >>> pr_auc_per_class(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 0]))
    array([ 1., nan])
    """
    truth = _truth("pr_auc_per_class", probabilities, labels)
    one, all_once = np.zeros(len(labels), np.int64), np.ones((1, 1))
    return np.array(
        [
            _average_precision(column, right, one, all_once, weights)[0]
            for column, right in zip(probabilities.T, truth.T, strict=True)
        ]
    )


def _average_precision(
    scores: Float[np.ndarray, " N"],
    positive: Bool[np.ndarray, " N"],
    groups: Int[np.ndarray, " N"],
    counts: Real[np.ndarray, "B G"],
    weights: Float[np.ndarray, " N"] | None,
) -> Float[np.ndarray, " B"]:
    """Of N decisions in groups, under every set of counts of the groups."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # The last decision of each threshold.
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    groups, positive = groups[order], positive[order, None]
    by_group = counts.T.astype(np.float64)  # resamples last: sums run down the rows
    found = np.empty(len(counts))
    size = max(1, _CELLS // len(scores))
    for start in range(0, len(counts), size):
        given = by_group[groups, start : start + size]
        if weights is not None:
            given *= weights[order, None]
        right = np.cumsum(given * positive, axis=0)[ends]
        taken = np.cumsum(given, axis=0, out=given)[ends]
        steps = np.diff(right, axis=0, prepend=0.0)
        with np.errstate(invalid="ignore"):
            precision = np.where(taken > 0, right / taken, 0.0)
            found[start : start + size] = (steps * precision).sum(axis=0) / right[-1]
    return found


def ece(
    probabilities: Float[np.ndarray, "R K"],
    labels: Int[np.ndarray, " R"],
    weights: Float[np.ndarray, " R"] | None = None,
    *,
    bins: int = 15,
) -> float:
    """Expected calibration error of the most probable class.

    `sum_b w_b |accuracy_b - confidence_b|` over bins of equal width of that class's
    probability, w_b being the bin's share of the rows. Guo et al. 2017, eq. 3.

    Raises:
        ValueError: as `pr_auc_micro`, or `bins` is below 1.

    >>> ece(np.array([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1]))
    0.25
    """
    if bins < 1:
        raise ValueError(f"{bins=}: expected 1 or more")
    truth = _truth("ece", probabilities, labels)
    given = np.ones(len(labels)) if weights is None else weights
    best = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = truth[np.arange(len(labels)), best]
    # (a, b] as in the paper: a probability of 1 is in the last bin.
    bin = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(bin, given * (right - confidence), minlength=bins)
    return float(np.abs(gap).sum() / given.sum())


def _truth(
    metric: str, probabilities: Float[np.ndarray, "R K"], labels: Int[np.ndarray, " R"]
) -> Bool[np.ndarray, "R K"]:
    """Whether each decision is right, after the checks."""
    check_paired(probabilities=len(probabilities), labels=len(labels))
    classes = probabilities.shape[1]
    _check_classes(metric, labels, classes)
    if not np.isfinite(probabilities).all():
        raise ValueError(f"{metric} got a probability that is NaN or infinite.")
    return labels[:, None] == np.arange(classes)


def _check_classes(metric: str, given: np.ndarray, classes: int) -> None:
    if given.size == 0:
        raise ValueError(f"{metric} got no rows; it needs 1 or more.")
    if given.min() < 0 or given.max() >= classes:
        raise ValueError(
            f"{metric} got classes from {given.min()} to {given.max()}; of {classes} "
            f"classes they must lie in 0..{classes - 1}."
        )
