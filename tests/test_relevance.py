"""M1: expected gains from the encoder's logits, each pair classified once."""

from concurrent.futures import ThreadPoolExecutor

import golden
import jax
import numpy as np
import pytest
import tiny
from scipy.special import softmax

from jaxqr import models
from jaxqr.data.tokenize import pad_right
from jaxqr.records import Labels, Product
from jaxqr.rewards import Relevance
from jaxqr.rewards.classifier import Classifier
from jaxqr.rewards.relevance import RelevanceModel, product_text

PRODUCTS = {
    product.id: product
    for product in (
        Product("p1", "trainer in red", brand="Acme", color="Red"),
        Product("p2", "acme couch", brand="Acme", color="blue"),
        Product("p3", "light " * 60),
        Product("p4", ""),
    )
}
QUERIES = ["red shoe", "blue sofa"]
IDS = np.array([["p1", "p2", "p3"], ["p2", "p4", ""]])


@pytest.fixture(scope="module")
def params():
    drawn = models.init(tiny.BERT, jax.random.key(0))
    return jax.tree.map(lambda x: 8 * x, drawn)


@pytest.fixture
def classifier(params):
    return Classifier(tiny.BERT, params, tiny.tokenizer(), max_tokens=32)


@pytest.fixture
def relevance(classifier):
    return RelevanceModel(classifier, PRODUCTS, batch_size=4)


@pytest.fixture
def classified(relevance, monkeypatch):
    """Every pair that reaches the encoder."""
    seen, inner = [], relevance.probabilities

    def note(queries, products):
        seen.extend(zip(queries, products, strict=True))
        return inner(queries, products)

    monkeypatch.setattr(relevance, "probabilities", note)
    return seen


def probabilities(params, pairs):
    """One row at a time, in one width."""
    rows = tiny.tokenizer().encoder(
        [query for query, _ in pairs],
        [product_text(PRODUCTS[product]) for _, product in pairs],
        max_tokens=32,
    )
    tokens, mask = pad_right([row.tokens for row in rows], 32, 7)
    segments, _ = pad_right([row.segments for row in rows], 32, 0)
    logits = np.concatenate(
        [
            golden.apply(
                tiny.BERT, params, *(x[i : i + 1] for x in (tokens, mask, segments)),
                method="classify",
            )
            for i in range(len(rows))
        ]
    )  # fmt: skip
    return softmax(np.float64(logits), axis=1)


def test_gains_are_expectations_over_the_labels(relevance, params):
    assert isinstance(relevance, Relevance)
    gains = relevance(QUERIES, IDS)
    pairs = [(q, p) for q, row in zip(QUERIES, IDS, strict=True) for p in row if p]
    table = probabilities(params, pairs)
    expected = table @ [1.0, 0.1, 0.01, 0.0]
    np.testing.assert_allclose(gains.ravel()[:5], expected, atol=1e-5)
    assert gains[1, 2] == 0
    assert (gains.shape, gains.dtype) == ((2, 3), np.float32)
    assert np.ptp(expected) > 0.01
    actual = relevance.probabilities(*map(list, zip(*pairs, strict=True)))
    np.testing.assert_allclose(actual, table, atol=1e-5)


def test_gains_are_configurable(classifier, params):
    labels = Labels()._replace(gains=(0.0, 0.5, 1.0, 0.25))
    relevance = RelevanceModel(classifier, PRODUCTS, labels, batch_size=4)
    table = probabilities(params, [("red shoe", "p1")])
    np.testing.assert_allclose(
        relevance(["red shoe"], np.array([["p1"]]))[0],
        table @ [0.0, 0.5, 1.0, 0.25],
        atol=1e-5,
    )
    assert Labels().gains == (1.0, 0.1, 0.01, 0.0)


def test_every_pair_is_classified_once(relevance, classified):
    twice = relevance(QUERIES * 2, np.concatenate([IDS, IDS]))
    np.testing.assert_array_equal(twice[:2], twice[2:])
    pairs = [(q, p) for q, row in zip(QUERIES, IDS, strict=True) for p in row if p]
    assert sorted(classified) == sorted(pairs)
    np.testing.assert_array_equal(relevance(QUERIES, IDS), twice[:2])
    assert len(classified) == len(pairs)
    relevance(["blue sofa"], np.array([["p2", "p1", ""]]))
    assert sorted(classified) == sorted([*pairs, ("blue sofa", "p1")])


def test_threads_share_what_is_known(relevance, classified):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: relevance(QUERIES, IDS), range(8)))
    assert len(classified) == 5
    for gains in results:
        np.testing.assert_array_equal(gains, results[0])


def test_order_and_company_change_nothing(relevance, classifier):
    gains = relevance(QUERIES, IDS)
    other = RelevanceModel(classifier, PRODUCTS, batch_size=4)
    np.testing.assert_allclose(
        other(QUERIES[::-1], IDS[::-1, ::-1])[::-1, ::-1], gains, atol=1e-6
    )


def test_nothing_to_do(relevance, classified):
    padding = np.full((2, 3), "")
    assert relevance(QUERIES, padding).tolist() == [[0] * 3] * 2
    assert relevance([], np.zeros((0, 3), "<U2")).shape == (0, 3)
    assert relevance.probabilities([], []).shape == (0, 4)
    assert classified == []


def test_what_the_encoder_reads():
    texts = {id: product_text(product) for id, product in PRODUCTS.items()}
    assert texts["p1"] == "trainer in red Acme"  # the title names the colour
    assert texts["p2"] == "acme couch blue"  # and here the brand


def test_a_folder_holds_a_relevance_model(relevance, classifier, tmp_path):
    classifier.save(tmp_path)
    loaded = RelevanceModel(Classifier.load(tmp_path, max_tokens=32), PRODUCTS)
    np.testing.assert_allclose(
        loaded(QUERIES[1:], IDS[1:]), relevance(QUERIES[1:], IDS[1:]), atol=1e-5
    )
