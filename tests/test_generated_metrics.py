"""Metrics of generated texts, and of classifiers over several seeds."""

import collections
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from jaxqr import metrics

TEXTS = [
    "red running shoes",
    "red running shoes for men",
    "blue shoes",
    "shoes shoes shoes",
    "red running shoes",
    "",
    "a b c d e f",
]


def bleu(candidate, references, max_n=4):
    """BLEU by its definition, add-one above single words."""

    def grams(words, n):
        return collections.Counter(
            tuple(words[i : i + n]) for i in range(len(words) - n + 1)
        )

    words, others = candidate.split(), [text.split() for text in references]
    logs = []
    for n in range(1, max_n + 1):
        mine = grams(words, n)
        if not mine:
            break
        matched = sum(
            min(count, max(grams(other, n)[gram] for other in others))
            for gram, count in mine.items()
        )
        more = 0 if n == 1 else 1
        share = (matched + more) / (mine.total() + more)
        logs.append(math.log(share) if share else -math.inf)
    if not logs:
        return 0.0
    length = min((abs(len(o) - len(words)), len(o)) for o in others)[1]
    return math.exp(min(0, 1 - length / len(words)) + sum(logs) / len(logs))


def test_self_bleu_by_definition():
    expected = [bleu(t, TEXTS[:i] + TEXTS[i + 1 :]) for i, t in enumerate(TEXTS)]
    found = metrics.self_bleu(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[0] == found[4] == 1.0  # it is there twice
    assert found[5] == 0.0
    assert 0 < found[3] < found[1] < 1


def test_self_bleu_of_one_text_is_zero():
    assert metrics.self_bleu(["red shoes"]).tolist() == [0.0]


def test_distinct_by_hand():
    assert metrics.distinct_n(["a b a", "a b"], 1) == 2 / 5
    assert metrics.distinct_n(["a b a", "a b"], 2) == 2 / 3
    assert math.isnan(metrics.distinct_n(["a"], 2))
    with pytest.raises(ValueError, match="n=0: expected 1 or more"):
        metrics.distinct_n(["a"], 0)


def test_copied_by_hand():
    texts = ["Acme RED shoe", "blue shoe", "hat", ""]
    found = metrics.copied(texts, ["red shoe acme 12"] * 4)
    assert found.tolist() == [1.0, 0.5, 0.0, 0.0]


def rows(seed, decimals=2, count=40, classes=3):
    """Rounded, so that many probabilities are equal."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), count).round(decimals)
    return probabilities, rng.integers(classes, size=count), rng


def expected(probabilities, labels, weights):
    truth = labels[:, None] == np.arange(probabilities.shape[1])
    each = np.repeat(weights, probabilities.shape[1])
    return average_precision_score(
        truth.ravel(), probabilities.ravel(), sample_weight=each
    )


@pytest.mark.parametrize("decimals", [1, 2, 6])
def test_weighted_pr_auc_is_that_of_scikit_learn(decimals):
    probabilities, labels, rng = rows(decimals, decimals)
    weights = rng.integers(1, 5, len(labels)) * rng.random(len(labels))
    found = metrics.pr_auc_micro(probabilities, labels, weights)
    assert found == pytest.approx(expected(probabilities, labels, weights), abs=1e-12)
    by_class = metrics.pr_auc_per_class(probabilities, labels, weights)
    for k, column in enumerate(probabilities.T):
        known = average_precision_score(labels == k, column, sample_weight=weights)
        assert by_class[k] == pytest.approx(known, abs=1e-12)


def test_a_resample_is_the_rows_that_it_draws(monkeypatch):
    probabilities, labels, rng = rows(3)
    groups = rng.integers(8, size=len(labels))
    drawn = rng.integers(8, size=(5, 8))
    counts = np.stack([np.bincount(d, minlength=8) for d in drawn])
    weights = rng.random(len(labels))
    by_hand = []
    for d in drawn:
        rows_drawn = np.concatenate([np.flatnonzero(groups == g) for g in d])
        of_rows = (x[rows_drawn] for x in (probabilities, labels, weights))
        by_hand.append(metrics.pr_auc_micro(*of_rows))
    given = probabilities, labels, groups, counts, weights
    found = metrics.pr_auc_resampled(*given)
    np.testing.assert_allclose(found, by_hand, atol=1e-12)
    monkeypatch.setattr(metrics.classification, "_CELLS", 250)  # two at a time
    np.testing.assert_allclose(found, metrics.pr_auc_resampled(*given), rtol=1e-14)


def test_ece_by_hand():
    """Two bins of two: 0.9 and 0.7 with one right each, 0.6 and 0.6 both right."""
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.4, 0.6], [0.6, 0.4]])
    labels = np.array([0, 0, 1, 0])
    one_bin = abs(3 / 4 - np.mean([0.9, 0.7, 0.6, 0.6]))
    assert metrics.ece(probabilities, labels, bins=1) == pytest.approx(one_bin)
    three = (2 * abs(1 - 0.6) + abs(1 - 1.6)) / 4  # up to 2/3, and above
    assert metrics.ece(probabilities, labels, bins=3) == pytest.approx(three)
    certain = np.eye(2)[[0, 1, 1]]
    assert metrics.ece(certain, np.array([0, 1, 0])) == pytest.approx(1 / 3)
    weights = np.array([1.0, 1.0, 2.0])
    assert metrics.ece(certain, np.array([0, 1, 0]), weights) == pytest.approx(0.5)


def test_a_seed_more_widens_the_interval_as_theory_says():
    """Variance of the mean of crossed random effects, seeds and queries."""
    rng = np.random.default_rng(0)
    seeds, queries = 20, 200
    of_seed, of_query = rng.normal(size=(seeds, 1)), rng.normal(size=queries)
    values = 0.3 * of_seed + of_query
    seed_counts, query_counts = metrics.crossed_counts(seeds, queries, 4000)
    means = np.einsum("bs,sq,bq->b", seed_counts, values, query_counts)
    means = means / (seeds * queries)
    variance = (0.3 * of_seed).var() / seeds + of_query.var() / queries
    assert means.var() == pytest.approx(variance, rel=0.1)
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)


def test_one_seed_is_the_usual_bootstrap():
    values = np.random.default_rng(1).random(50)
    seed_counts, query_counts = metrics.crossed_counts(1, 50, 4000)
    assert (seed_counts == 1).all()
    found = np.quantile(query_counts @ values / 50, (0.025, 0.975))
    usual = metrics.bootstrap_interval(values)
    np.testing.assert_allclose(found, (usual.low, usual.high), atol=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, y: metrics.ece(p, y, bins=0), "bins=0: expected 1"),
        (lambda p, y: metrics.pr_auc_per_class(p * np.nan, y), "NaN or infinite"),
        (lambda p, y: metrics.pr_auc_micro(p, y + 1), "of 3 classes"),
        (lambda p, y: metrics.crossed_counts(0, 3, 3), "num_seeds=0"),
        (lambda p, y: metrics.copied(["a"], []), "texts has 1 rows"),
    ],
)
def test_refused(call, message):
    probabilities, labels, _ = rows(0)
    with pytest.raises(ValueError, match=message):
        call(probabilities, labels)
