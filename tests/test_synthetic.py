"""Measures of synthetic queries, and token embeddings of a pretrained encoder."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxqr import metrics
from jaxqr.evaluation import synthetic
from jaxqr.lm import LM
from jaxqr.rewards.similarity import MAX_TOKENS, Encoder

TEXTS = ["red running shoes", "blue", "a very long query about shoes and much more"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.bert_folder(tmp_path_factory.mktemp("bert"))


def test_single_texts_are_tokenized_as_the_folder_says():
    tokenizer = tiny.tokenizer()
    rows, places = tokenizer.alone(TEXTS, max_tokens=16)
    for text, row, place in zip(TEXTS[:2], rows, places, strict=False):
        assert row.tokens == tokenizer._tokenizer(text)["input_ids"]
        assert row.tokens[place] == tokenizer.encode([text])[0]
    assert len(rows[2].tokens) == 16  # cut, and closed all the same
    assert rows[2].tokens[-1] == rows[1].tokens[-1]
    assert {segment for row in rows for segment in row.segments} == {0}


def test_embeddings_are_the_hidden_states_of_a_texts_own_tokens(folder):
    found = Encoder.load(folder).tokens(TEXTS)
    tokenizer = tiny.tokenizer()
    for text, states in zip(TEXTS, found, strict=True):
        ((row,), (place,)) = tokenizer.alone([text], max_tokens=MAX_TOKENS)
        tokens = np.array([row.tokens])
        known = tiny.BERT.apply(
            tiny.params(model=tiny.BERT),
            *(jnp.asarray(x) for x in (tokens, tokens >= 0, 0 * tokens)),
        )
        np.testing.assert_allclose(states, known[0][place], atol=1e-5)


def test_overlap_with_real_queries(folder):
    encoder = Encoder.load(folder)
    real = ["red running shoes", "blue hat", "green coat"]
    written = ["red running shoes", "red hat", ""]
    found = synthetic.overlap(written, real, encoder)
    np.testing.assert_allclose(found["rouge_l"], [1, 0.5, 0])
    assert found["bert_score"][0] == pytest.approx(1)
    assert found["bert_score"][2] == 0
    assert found["bert_score"][1] < 1
    assert set(synthetic.overlap(written, real, None)) == {"rouge_l"}


def test_variety_by_hand():
    queries = ["red shoe", "red shoe", "blue hat"]
    products = ["Red Shoe", "Red Boot", "Hat"]
    assert synthetic.variety(queries, products) == {
        "distinct_1": 4 / 6,
        "distinct_2": 2 / 3,
        "self_bleu": pytest.approx(metrics.self_bleu(queries).mean()),
        "copied": 1 / 3,
    }


def test_an_encoder_is_needed(tmp_path):
    LM(tiny.GPT2, tiny.params(), tiny.tokenizer()).save(tmp_path)
    with pytest.raises(ValueError, match="holds a GPT2: expected the folder of a"):
        Encoder.load(tmp_path)
