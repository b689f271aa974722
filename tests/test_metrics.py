"""Metrics against hand-derived values and brute force."""

import itertools
import math
import re
import subprocess
import sys
import unicodedata

import jaxtyping
import numpy as np
import pytest

from jaxqr import metrics


@pytest.fixture
def unchecked():
    """Switches off the shape checks of the tests, which users do not have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# Text


def test_exact_match_folds_case_and_space_only():
    predictions = ["USB-C  cable", " usb-c cable\n", "usb c cable", "", "x"]
    references = ["usb-c cable", "usb-c cable", "usb-c cable", " ", ""]
    assert metrics.exact_match(predictions, references).tolist() == [1, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("red shoes", "red shoes", 1.0),
        ("red shoes", "shoes red", 0.5),  # LCS 1 of 2 and 2
        ("a b c d", "a x c", 4 / 7),  # LCS 2: P 2/4, R 2/3
        ("Don't-STOP 3.5mm", "don t stop 3 5mm", 1.0),  # ASCII: split as rouge_score
        ("foo_bar", "foo bar", 1.0),
        ("café crème", "CAFÉ", 2 / 3),  # not "caf"
        ("nai\u0308ve", "nai ve", 0.0),  # marks stay inside their word
        ("防水カバー", "防水ケース", 4 / 6),  # 防, 水 and one word of Katakana
        ("беспроводные наушники", "наушники", 2 / 3),
        ("", "", 0.0),
        ("!?", "shoes", 0.0),
        ("shoes", "", 0.0),
    ],
)
def test_rouge_l_by_hand(prediction, reference, expected):
    forward = metrics.rouge_l([prediction], [reference])
    assert forward == pytest.approx([expected])
    assert metrics.rouge_l([reference], [prediction]) == pytest.approx(forward)


SPELLINGS = [  # texts with marks; the metrics must not see how they are encoded
    "Café crème brûlée",
    "Nguyễn giày đỏ cỡ lớn, thuật tuệ",  # two marks on one letter
    "한국어 무선 이어폰",  # syllables, which decompose into jamo
    "スカート ピンク ガラス",  # voiced Kana
    "ǰ ΐ ᾳ",  # composed in lower case, not in upper case
    "İstanbul Ǆ Ω Å",  # upper case of its own, and what NFC replaces
    "q\u0323\u0307 s\u0323\u0307",  # the first has no composed form
    "\u0958\u0932\u092e",  # a letter with a dot, never composed in NFC
    "\ufb2a\u05dc\u05d5\u05dd",  # a letter's presentation form, likewise
]


@pytest.mark.parametrize("text", SPELLINGS)
@pytest.mark.parametrize("change", [str, str.lower, str.upper])
def test_equivalent_encodings_are_one_text(text, change):
    def shuffled(decomposed):
        """Marks of different classes in another order, which is the same text."""
        return re.sub("\u0323(\u0307|\u0302)", "\\1\u0323", decomposed)

    text = change(text)
    composed = unicodedata.normalize("NFC", text)
    decomposed = unicodedata.normalize("NFD", text)
    forms = [text, composed, decomposed, shuffled(decomposed)]
    assert len({*forms}) > 1
    for a, b in itertools.product(forms, repeat=2):
        assert metrics.exact_match([a], [b]) == [1]
        assert metrics.rouge_l([a], [b]) == [1]
        assert metrics.rouge_l([f"{a} x"], [b]) == metrics.rouge_l([f"{a} x"], [a])


def test_every_character_equals_its_decomposition():
    characters = [chr(c) for c in range(0x20000) if not 0xD800 <= c < 0xE000]
    decomposed = [unicodedata.normalize("NFD", c) for c in characters]
    assert metrics.exact_match(characters, decomposed).all()
    cased = [c.upper() for c in characters if unicodedata.normalize("NFD", c) != c]
    decomposed = [unicodedata.normalize("NFD", c) for c in cased]
    assert metrics.exact_match(cased, decomposed).all()


def test_case_is_folded_where_only_lower_case_is_composed():
    upper = ["J\u030c", "\u0399\u0308\u0301", "H\u0331", "I\u0307"]
    lower = ["\u01f0", "\u0390", "\u1e96", "\u0130".lower()]
    assert metrics.exact_match(upper, lower).all()
    assert metrics.rouge_l(upper, lower).all()


def test_accents_and_compatibility_forms_still_differ():
    left = ["cafe", "Ω", "ﬁ", "㎝", "đ", "ｱ"]
    right = ["café", "O", "fi", "cm", "d", "ア"]
    assert not metrics.exact_match(left, right).any()
    assert not metrics.rouge_l(left, right).any()


def test_a_lone_surrogate_is_a_character_like_others():
    assert metrics.exact_match(["caf\ud800"], ["caf\ud800"]) == [1]
    assert metrics.exact_match(["caf\ud800"], ["caf"]) == [0]


def longest_common(a, b):
    """The length by enumerating the subsequences of `a`, longest first."""
    for length in range(len(a), 0, -1):
        for words in itertools.combinations(a, length):
            rest = iter(b)
            if all(word in rest for word in words):
                return length
    return 0


def test_rouge_l_finds_the_longest_common_subsequence():
    rng = np.random.default_rng(0)
    texts = [rng.choice(list("abc"), rng.integers(1, 9)).tolist() for _ in range(120)]
    left, right = texts[:60], texts[60:]
    actual = metrics.rouge_l([" ".join(a) for a in left], [" ".join(b) for b in right])
    for f1, a, b in zip(actual, left, right, strict=True):
        p, r = longest_common(a, b) / len(a), longest_common(a, b) / len(b)
        assert f1 == pytest.approx(2 * p * r / (p + r) if p + r else 0)


def test_bert_score_by_hand():
    # Unit vectors at 0, 60 and 90 degrees; lengths must not matter.
    def at(degrees, length=1.0):
        return length * np.array(
            [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]
        )

    candidate = np.stack([at(0, 3.0), at(60, 0.1)])
    reference = np.stack([at(90), at(0, 2.0), at(0)])
    score = metrics.bert_score([candidate, reference], [reference, candidate])
    near = math.cos(math.radians(30))
    precision, recall = (1 + near) / 2, (near + 1 + 1) / 3
    f1 = 2 * precision * recall / (precision + recall)
    np.testing.assert_allclose(score.precision, [precision, recall])
    np.testing.assert_allclose(score.recall, [recall, precision])
    np.testing.assert_allclose(score.f1, [f1, f1])


def test_bert_score_of_nothing_is_zero():
    something, nothing, zero = np.ones((2, 3)), np.ones((0, 3)), np.zeros((1, 3))
    score = metrics.bert_score(
        [nothing, something, zero, something], [something, nothing, something, -zero]
    )
    assert np.all(np.array(score) == 0)
    opposed = metrics.bert_score([something], [-something])
    np.testing.assert_allclose(opposed.precision, [-1])
    assert opposed.f1 == [0]


# Ranking and coverage


def test_ndcg_by_hand():
    gains = np.array([[0.0, 1.0, 0.1], [1.0, 0.1, 0.0], [0.0, 0.0, 0.0]])
    judged = np.array([[0.1, 1.0, 0.0, 1.0], [0.1, 1.0, 0.0, 0.0], [1.0, 0, 0, 0]])
    log3 = math.log2(3)
    first = (1 / log3 + 0.1 / 2) / (1 + 1 / log3 + 0.1 / 2)
    np.testing.assert_allclose(metrics.ndcg(gains, judged), [first, 1, 0])
    # Two ranks: the third product and the third of the ideal order drop out.
    np.testing.assert_allclose(
        metrics.ndcg(gains, judged, k=2), [(1 / log3) / (1 + 1 / log3), 1, 0]
    )
    np.testing.assert_allclose(metrics.ndcg(gains, judged, k=1), [0, 1, 0])


def test_ndcg_is_the_share_of_the_best_permutation():
    gains = np.array([[3, 0, 2, 1, 2]])  # whole numbers are gains too
    discounted = {
        order: sum(gain / math.log2(i + 2) for i, gain in enumerate(order[:4]))
        for order in itertools.permutations(gains[0].tolist())
    }
    best = max(discounted.values())
    for order in itertools.islice(discounted, 0, None, 7):
        actual = metrics.ndcg(np.array([order]), gains, k=4)
        assert actual == pytest.approx([discounted[order] / best])


def test_ndcg_without_positive_gains_is_zero():
    assert metrics.ndcg(np.zeros((2, 3)), np.zeros((2, 5))).tolist() == [0, 0]
    assert metrics.ndcg(np.zeros((2, 0)), np.ones((2, 5))).tolist() == [0, 0]
    assert metrics.ndcg(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)


def average_precision(probabilities, labels):
    """By the definition: precision and recall at every threshold, from scratch."""
    truth = np.eye(probabilities.shape[1], dtype=bool)[labels]
    total, before = 0.0, 0.0
    for threshold in sorted(set(probabilities.ravel()), reverse=True):
        chosen = probabilities >= threshold
        recall = truth[chosen].sum() / truth.sum()
        total += (recall - before) * truth[chosen].mean()
        before = recall
    return total


@pytest.mark.parametrize("decimals", [1, 8])
def test_pr_auc_by_definition(decimals):
    rng = np.random.default_rng(0)
    probabilities = np.round(rng.dirichlet(np.ones(4), 50), decimals)
    labels = rng.integers(0, 4, 50)
    expected = average_precision(probabilities, labels)
    assert metrics.pr_auc_micro(probabilities, labels) == pytest.approx(expected)
    order = rng.permutation(50)  # ties must not depend on the order of the rows
    assert metrics.pr_auc_micro(probabilities[order], labels[order]) == pytest.approx(
        expected
    )


def test_pr_auc_of_extremes():
    labels = np.array([0, 1, 2, 1])
    right = np.eye(3)[labels]
    assert metrics.pr_auc_micro(right, labels) == 1
    assert metrics.pr_auc_micro(np.full((4, 3), 1 / 3), labels) == pytest.approx(1 / 3)
    # Wrong everywhere: every hit enters last, in one tie of all 12 decisions.
    assert metrics.pr_auc_micro(1 - right, labels) == pytest.approx(4 / 12)


def test_macro_f1_by_hand():
    predicted, labels = np.array([0, 0, 0, 1, 3]), np.array([0, 0, 1, 1, 1])
    # Class 0: P 2/3, R 1. Class 1: P 1, R 1/3. Class 2: never met. Class 3: P 0.
    expected = (0.8 + 0.5 + 0 + 0) / 4
    assert metrics.macro_f1(predicted, labels, 4) == pytest.approx(expected)


def test_macro_f1_by_definition():
    rng = np.random.default_rng(5)
    predicted, labels = rng.integers(0, 4, (2, 200))
    f1 = []
    for c in range(6):  # classes 4 and 5 are never met
        right = np.sum((predicted == c) & (labels == c))
        p, r = right / max(sum(predicted == c), 1), right / max(sum(labels == c), 1)
        f1.append(2 * p * r / (p + r) if p + r else 0.0)
    assert metrics.macro_f1(predicted, labels, 6) == pytest.approx(np.mean(f1))
    assert metrics.macro_f1(labels, labels, 4) == 1
    assert metrics.macro_f1(labels, (labels + 1) % 4, 4) == 0


def test_product_coverage_counts_distinct_relevant_products():
    lists = np.array([["a", "b", ""], ["b", "c", "d"], ["b", "c", "d"]])
    assert metrics.product_coverage(lists, {"a", "c", "x"}) == 2
    assert metrics.product_coverage(lists, ["b", "b", ""]) == 1
    assert metrics.product_coverage(lists, set()) == 0
    assert metrics.product_coverage([], {"a"}) == 0


def test_diversity_divides_by_the_rewrites_list():
    original = np.array([["a", "b", "c", "d"], ["a", "b", "", ""], ["", "", "", ""],
                         ["a", "b", "c", "d"], ["a", "b", "c", "d"]])  # fmt: skip
    rewritten = np.array([["a", "x", "y"], ["b", "a", ""], ["x", "", ""],
                          ["", "", ""], ["a", "", ""]])  # fmt: skip
    np.testing.assert_allclose(
        metrics.diversity(original, rewritten), [2 / 3, 0, 1, 0, 0]
    )


# Significance


def test_bootstrap_interval_approaches_the_exact_distribution():
    # Resampled means of (0, 0, 3) are Binomial(3, 1/3): P(0) = 8/27, P(<= 1) = 20/27,
    # P(<= 2) = 26/27. So the 0.25 and 0.75 quantiles are 0 and 2.
    interval = metrics.bootstrap_interval(np.array([0, 0, 3]), level=0.5)
    assert interval == (1.0, 0.0, 2.0)
    wide = metrics.bootstrap_interval(np.array([0, 0, 3]), level=0.95)
    assert wide == (1.0, 0.0, 3.0)


def test_bootstrap_interval_agrees_with_the_normal_one_on_many_rows():
    values = np.random.default_rng(1).normal(2.0, 3.0, 4000)
    interval = metrics.bootstrap_interval(values, level=0.9)
    half = 1.6449 * values.std() / math.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        interval = metrics.bootstrap_interval(
            rng.exponential(1.0, 60), level=0.9, resamples=300
        )
        covered += interval.low <= 1.0 <= interval.high
    # Binomial(200, 0.9) has a deviation of 4.2; skewed data cover a little less.
    assert 163 <= covered <= 193


def test_bootstrap_depends_on_the_seed_and_not_on_the_blocks(monkeypatch):
    values = np.random.default_rng(3).normal(size=50)
    one = metrics.bootstrap_interval(values, resamples=101)
    assert one == metrics.bootstrap_interval(values, resamples=101)
    assert one != metrics.bootstrap_interval(values, resamples=101, seed=1)
    for draws in (1, 350):  # 1 and 7 resamples at once
        monkeypatch.setattr(metrics.significance, "_DRAWS", draws)
        assert metrics.bootstrap_interval(values, resamples=101) == one


def test_bootstrap_draws_rows_as_the_seed_says():
    values = np.random.default_rng(6).normal(size=20)
    rows = np.random.default_rng(9).integers(20, size=(500, 20))
    low, high = np.quantile(values[rows].mean(axis=1), [0.1, 0.9])
    interval = metrics.bootstrap_interval(values, level=0.8, resamples=500, seed=9)
    assert interval == pytest.approx((values.mean(), low, high))


def test_bootstrap_of_constants_and_single_rows_has_no_width():
    constant = metrics.bootstrap_interval(np.full(7, 0.25))
    single = metrics.bootstrap_interval(np.array([0.25], np.float32))
    assert constant == single == (0.25, 0.25, 0.25)


def test_paired_bootstrap_resamples_pairs():
    rng = np.random.default_rng(4)
    before = rng.normal(0, 10, 300)  # rows differ far more than the systems do
    after = before + rng.normal(0.5, 1, 300)
    better = metrics.paired_bootstrap(before, after)
    assert better[:3] == metrics.bootstrap_interval(after - before)
    assert 0 < better.low < better.mean == pytest.approx(0.5, abs=0.2)
    assert better.share_not_positive == 0
    worse = metrics.paired_bootstrap(after, before)
    assert worse.share_not_positive == 1
    assert worse.mean == -better.mean


def test_paired_bootstrap_counts_the_resamples_that_do_not_improve():
    # Differences 1 and -1: resampled means are 1, 0, 0, -1 with equal chance.
    interval = metrics.paired_bootstrap(
        np.array([0, 1]), np.array([1, 0]), resamples=20_000
    )
    assert interval[:3] == (0, -1, 1)
    assert interval.share_not_positive == pytest.approx(0.75, abs=0.015)
    same = metrics.paired_bootstrap(np.ones(3), np.ones(3))
    assert same == (0, 0, 0, 1)


# Refusals


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("metric", "left", "right"),
    [
        (metrics.exact_match, ["a"], ["a", "b"]),
        (metrics.rouge_l, ["a", "b"], ["a"]),
        (metrics.bert_score, [np.ones((1, 2))], []),
        (metrics.ndcg, np.ones((2, 3)), np.ones((1, 3))),
        (metrics.pr_auc_micro, np.ones((2, 3)), np.array([0])),
        (lambda a, b: metrics.macro_f1(a, b, 2), np.array([0]), np.array([0, 1])),
        (metrics.diversity, np.full((1, 2), "a"), np.full((2, 2), "a")),
        (metrics.paired_bootstrap, np.ones(2), np.ones(1)),
    ],
)
def test_different_lengths_are_refused(metric, left, right):
    with pytest.raises(ValueError, match=r"has \d rows and .* has \d; pass one row"):
        metric(left, right)


@pytest.mark.usefixtures("unchecked")
def test_what_has_no_value_is_refused():
    with pytest.raises(ValueError, match="width 2 and 3"):
        metrics.bert_score([np.ones((1, 2))], [np.ones((1, 3))])
    with pytest.raises(ValueError, match="k is 0"):
        metrics.ndcg(np.ones((1, 2)), np.ones((1, 2)), k=0)
    with pytest.raises(ValueError, match="no rows"):
        metrics.pr_auc_micro(np.ones((0, 2)), np.zeros(0, int))
    for label in (-1, 2):
        with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
            metrics.pr_auc_micro(np.ones((1, 2)), np.array([label]))
    with pytest.raises(ValueError, match="macro_f1 got no rows"):
        metrics.macro_f1(np.zeros(0, int), np.zeros(0, int), 2)
    for pair in ([0, 1], [0, -1]), ([2, 1], [0, 1]), ([0, 1], [0, 2]):
        with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
            metrics.macro_f1(*map(np.array, pair), 2)
    with pytest.raises(ValueError, match="NaN"):
        metrics.pr_auc_micro(np.array([[np.nan, 1.0]]), np.array([0]))
    for values in (np.zeros(0), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="Drop invalid rows"):
            metrics.bootstrap_interval(values)
    for wrong in ({"level": 1.0}, {"level": 0.0}, {"resamples": 1}):
        with pytest.raises(ValueError, match="level must lie between"):
            metrics.paired_bootstrap(np.ones(2), np.ones(2), **wrong)


def test_importing_it_takes_no_statistics_library():
    code = (
        "import sys, jaxqr.metrics;"
        "print({'sklearn', 'scipy', 'pandas', 'jax'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
