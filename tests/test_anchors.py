"""Anchor lists: judges that tell good from poor, that drift, that words win over."""

import json

import numpy as np
import pytest

from experiments.judges import Watched
from jaxqr.records import Interactions, Judgements, Labels, Product
from jaxqr.rewards import sample_profiles
from jaxqr.rewards.anchors import anchors, click_rates, watch

LABELS = Labels()
QUERIES = [f"red thing {i}" for i in range(8)]
PRODUCTS = {
    f"{label}{i}": Product(f"{label}{i}", f"title {label} {i}")
    for label in LABELS.names
    for i in range(4)
}
ROWS = [(q, p, p[0]) for q in QUERIES for p in PRODUCTS]
ROWS += [("few", "E0", "E"), ("few", "unknown", "E")]
JUDGEMENTS = Judgements(*map(np.array, zip(*ROWS, strict=True)))
FIXED = anchors(JUDGEMENTS, PRODUCTS, LABELS, sample_profiles(3, 0), n=6)


class Judge:
    """Clicks good products, and those whose titles have the query's words.

    `words` is what they are worth to it, `mood` is added to everything.
    """

    def __init__(self, words: float = 0.0, mood: float = 0.0, fails: int = -1):
        self.words, self.mood, self.fails = words, mood, fails

    def __call__(self, queries, hits, gains, profiles):
        known = PRODUCTS | FIXED.products
        rates = [
            np.mean([self.click(q, known[i]) for i in ids])
            for q, ids in zip(queries, hits.ids.tolist(), strict=True)
        ]
        click = np.array(rates, np.float32)
        valid = np.arange(len(click)) != self.fails
        return Interactions(np.where(valid, click, 0), click, click, valid)

    def click(self, query: str, product: Product) -> float:
        good = 0.5 * (product.title.split()[-2] == "E")
        return good + self.mood + self.words * (query in product.title)


def test_half_of_the_lists_are_good_and_the_poor_ones_are_stuffed():
    good = ~(FIXED.poor | FIXED.stuffed)
    assert (good.sum(), FIXED.poor.sum(), FIXED.stuffed.sum()) == (3, 3, 3)
    assert "few" not in FIXED.queries
    assert len({*FIXED.queries}) == 6
    labels = np.vectorize(lambda i: i[0])(FIXED.hits.ids)
    # four exact products and a substitute; four irrelevant ones and a complement
    assert all(sorted(row) == list("EEEES") for row in labels[good].tolist())
    assert all(sorted(row) == list("CIIII") for row in labels[FIXED.poor].tolist())
    for query, poor, stuffed in zip(
        np.array(FIXED.queries)[FIXED.poor],
        FIXED.hits.ids[FIXED.poor].tolist(),
        FIXED.hits.ids[FIXED.stuffed].tolist(),
        strict=True,
    ):
        for product, copy in zip(poor, stuffed, strict=True):
            title = f"{query} {PRODUCTS[product].title}"
            assert FIXED.products[copy] == PRODUCTS[product]._replace(
                id=copy, title=title
            )
    again = anchors(JUDGEMENTS, PRODUCTS, LABELS, sample_profiles(3, 0), n=6)
    np.testing.assert_array_equal(again.hits.ids, FIXED.hits.ids)


def test_what_anchors_tell():
    fair = click_rates(Judge(), FIXED)
    assert watch(FIXED, fair).click == pytest.approx(0.4)  # four of five at 0.5
    assert watch(FIXED, fair).stuffing == 0.0
    assert np.isnan(watch(FIXED, fair).drift)
    won = watch(FIXED, click_rates(Judge(words=0.3), FIXED), fair)
    assert won.stuffing == pytest.approx(0.3)
    assert won.drift == pytest.approx(0.1)  # a third of the lists, by 0.3
    moved = watch(FIXED, click_rates(Judge(mood=-0.25, fails=2), FIXED), fair)
    assert moved.drift == pytest.approx(0.25)
    assert moved.click == pytest.approx(0.4)


def test_without_judgements_nothing_is_told():
    none = Judgements(*[np.zeros(0, np.str_)] * 3)
    fixed = anchors(none, PRODUCTS, LABELS, sample_profiles(3, 0))
    assert fixed.hits.ids.shape == (0, 5)
    assert np.isnan(watch(fixed, np.zeros(0))).all()


def test_a_judge_that_moves_is_told(tmp_path, caplog):
    def told(judge, name="m"):
        caplog.clear()
        watched = Watched(judge, FIXED, name, tmp_path / "anchors.json")
        return watched(), caplog.text

    first, warning = told(Judge())
    assert warning == ""
    assert np.isnan(first["anchors_drift"])
    assert json.loads((tmp_path / "anchors.json").read_text())["judge"] == "m"
    same, warning = told(Judge())
    assert (same["anchors_drift"], warning) == (0.0, "")
    moved, warning = told(Judge(mood=0.1, fails=0))
    assert moved["anchors_drift"] == pytest.approx(0.1)
    assert "the judge m answers otherwise" in warning
    won, warning = told(Judge(words=0.2))
    assert won["anchors_stuffing"] == pytest.approx(0.2)
    assert "their titles begin with the query's words" in warning
    other, warning = told(Judge(mood=0.3), name="another judge")
    assert np.isnan(other["anchors_drift"])
    assert "otherwise" not in warning


def test_a_judge_that_failed_on_a_list_at_first_is_compared_on_the_others(tmp_path):
    path = tmp_path / "anchors.json"
    Watched(Judge(fails=1), FIXED, "m", path)()
    found = Watched(Judge(mood=0.1), FIXED, "m", path)()
    assert found["anchors_drift"] == pytest.approx(0.1)
