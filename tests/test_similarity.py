"""Sentence vectors and the similarity of queries and products."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxqr.records import Product
from jaxqr.rewards.similarity import Encoder, Similarity

TEXTS = ["red running shoes", "blue", "", "a very long query about shoes and much more"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.bert_folder(tmp_path_factory.mktemp("bert"))


def test_a_texts_vector_is_the_scaled_mean_of_its_tokens(folder):
    encoder = Encoder.load(folder)
    found = encoder.texts(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ((row,), _) = encoder.tokenizer.alone([text], max_tokens=64)
        tokens = jnp.array([row.tokens])
        states = tiny.BERT.apply(encoder.params, tokens, tokens >= 0, 0 * tokens)
        mean = np.asarray(states)[0].mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    assert encoder.texts([]).shape == (0, tiny.BERT.config.hidden_size)


def test_similarity_by_hand(folder):
    def compass(texts):
        """Vectors by the first letter."""
        asked.append(list(texts))
        where = {"n": [1.0, 0.0], "e": [0.0, 1.0], "s": [-1.0, 0.0], "x": [0.6, 0.8]}
        return np.array([where[t[0]] for t in texts], np.float32).reshape(-1, 2)

    asked: list[list[str]] = []
    products = {
        i: Product(i, title) for i, title in [("1", "n"), ("2", "s"), ("3", "x")]
    }
    similar = Similarity(compass, products)
    ids = np.array([["1", "2", "3"], ["3", "", ""]])
    np.testing.assert_allclose(
        similar(["north", "east"], ids), [[1, 0, 0.6], [0.8, 0, 0]], atol=1e-6
    )
    assert asked == [["north", "east"], ["n", "s", "x"]]
    similar(["east"], np.array([["1"]]))
    assert asked[2:] == [[], []]  # all known


def test_only_the_mean_is_supported(tmp_path, folder):
    tiny.bert_folder(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    config = tmp_path / "1_Pooling" / "config.json"
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    config.write_text(json.dumps(modes | {"word_embedding_dimension": 8}))
    np.testing.assert_array_equal(
        Encoder.load(tmp_path).texts(TEXTS), Encoder.load(folder).texts(TEXTS)
    )
    config.write_text(json.dumps(dict.fromkeys(modes, True)))
    with pytest.raises(ValueError, match="pooling_mode_cls_token, pooling_mode_mean"):
        Encoder.load(tmp_path)
