"""The reward of adversarial queries, by hand."""

import math

import numpy as np
import pytest

from jaxqr.rewards.adversarial import hardness, terminal_score

LABELS = {"Exact": 0, "Irrelevant": 1}
SOURCES = [
    {"product": "red sofa", "label": "Exact"},
    {"product": "red sofa", "label": "Irrelevant"},
    {"product": "blue mug", "label": "Irrelevant"},
]


class Reader:
    """A classifier that finds a query relevant if the product has its first word."""

    def __init__(self, sure=0.75):
        self.asked, self.sure = [], sure

    def __call__(self, queries, products):
        rows = list(zip(queries, products, strict=True))
        self.asked += rows
        found = [
            self.sure if q.split()[0] in p.split() else 1 - self.sure for q, p in rows
        ]
        return np.float32([[x, 1 - x] for x in found])


def test_the_loss_is_against_the_label_that_the_query_was_written_for():
    reader = Reader()
    texts = ["red couch", "red couch", "blue cup"]
    reward = hardness(SOURCES, texts, classifier=reader, labels=LABELS)
    expected = [-math.log(0.75), -math.log(0.25), -math.log(0.25)]
    np.testing.assert_allclose(reward.total, expected, rtol=1e-6)
    assert reward.total.dtype == np.float32
    np.testing.assert_array_equal(reward.parts["classifier_loss"], reward.total)
    assert reward.valid.all()
    assert reader.asked == [
        ("red couch", "red sofa"),
        ("red couch", "red sofa"),
        ("blue cup", "blue mug"),
    ]


def test_an_empty_query_is_not_hard_and_is_not_asked_about():
    reader = Reader()
    texts = [" ", "", "blue cup"]
    reward = hardness(SOURCES, texts, classifier=reader, labels=LABELS)
    assert reward.total.tolist()[:2] == [0, 0]
    assert reward.flags["empty"].tolist() == [True, True, False]
    assert reader.asked == [("blue cup", "blue mug")]
    nothing = hardness(SOURCES[:1], [""], classifier=reader, labels=LABELS)
    assert nothing.total.tolist() == [0]


def test_a_loss_without_bound_is_cut_and_counted():
    texts = ["red couch", "red couch", "cup"]
    sure = Reader(sure=1.0)
    reward = hardness(SOURCES, texts, classifier=sure, labels=LABELS, max_loss=3.0)
    assert reward.total.tolist() == [0, 3, 0]
    assert reward.flags["clipped"].tolist() == [False, True, False]


def test_what_cannot_be_scored_is_refused():
    other = [{"product": "red sofa", "label": "Partial"}]
    with pytest.raises(ValueError, match="labels Partial: expected one of Exact, Irr"):
        hardness(other, ["red"], classifier=Reader(), labels=LABELS)
    with pytest.raises(ValueError, match="max_loss=0"):
        hardness(SOURCES, [""] * 3, classifier=Reader(), labels=LABELS, max_loss=0.0)


LOGPS = np.float32([[-1.0, -2.0, 99.0], [-4.0, 99.0, 99.0]])
MASK = np.array([[True, True, False], [True, False, False]])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 0.9 * 2 + 0.1 * 1.5, 0.9 * 1 + 0.1 * 4
        ({}, [1.95, 1.3]),
        ({"pgen_sign": "prose"}, [1.65, 0.5]),
        ({"per_token": False}, [2.1, 1.3]),
        ({"alpha": 1.0}, [2.0, 1.0]),
        ({"alpha": 0.0}, [1.5, 4.0]),
    ],
)
def test_the_score_of_a_finished_text(options, expected):
    loss = np.float32([2.0, 1.0])
    score = terminal_score(loss, LOGPS, MASK, **options)
    np.testing.assert_allclose(score, expected, rtol=1e-6)
    assert score.dtype == np.float32


def test_settings_without_meaning_are_refused():
    loss = np.float32([2.0, 1.0])
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        terminal_score(loss, LOGPS, MASK, alpha=1.5)
