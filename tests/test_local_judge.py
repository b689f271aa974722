"""The judge in this process, against token-by-token reading of the same model."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import tiny
from scipy.special import softmax

from jaxqr import models
from jaxqr.data.tokenize import pad_left, train_tokenizer
from jaxqr.lm import LM
from jaxqr.records import Hits, Product
from jaxqr.rewards import local, questions
from jaxqr.rewards.local import LocalJudge
from jaxqr.rewards.profiles import sample_profiles
from jaxqr.types import PromptBatch

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
)
PRODUCTS = {f"p{i:02d}": Product(f"p{i:02d}", f"red shoe {i}") for i in range(21)}
SHOPPERS = sample_profiles(3, 0)


@pytest.fixture(scope="module")
def lm() -> LM:
    tokenizer = train_tokenizer([text for pair in tiny.PAIRS for text in pair], 300)
    tokenizer._tokenizer.chat_template = TEMPLATE
    model = models.build(replace(tiny.LLAMA.config, max_position_embeddings=4096))
    params = jax.tree.map(lambda x: 2 * x, models.init(model, jax.random.key(0)))
    return LM(model, params, tokenizer)


@pytest.fixture(autouse=True)
def any_mass(monkeypatch):
    """An untrained model does not care for numbers."""
    monkeypatch.setattr(local, "MIN_MASS", 1e-30)
    monkeypatch.setattr(questions, "MIN_MASS", 1e-30)
    monkeypatch.setattr(questions, "NEGLIGIBLE", 0.0)


@partial(jax.jit, static_argnums=0)
def last(model, params, batch):
    features = model.apply(params, batch.tokens, batch.mask)
    return features.hidden[0, -1], features.unembed


def lists(*lengths: int) -> Hits:
    rows = [list(PRODUCTS)[:n] + [""] * (21 - n) for n in lengths]
    shape = (len(rows), 21)
    return Hits(np.array(rows), np.zeros(shape, np.float32), np.ones(len(rows), bool))


def read(lm: LM, messages, most: int) -> float | None:
    """The same number from the distributions of one token after another."""
    digits = "0123456789"
    ids = lm.tokenizer.answers(list(digits))
    assert all(len(x) == 1 for x in ids)

    def after(text: str):
        tokens = lm.tokenizer.chat(messages) + [
            i for digit in text for i in ids[int(digit)]
        ]
        batch = PromptBatch(*pad_left([tokens], 1024, 0))
        hidden, unembed = last(lm.model, lm.params, batch)
        probabilities = softmax(np.asarray(unembed) @ np.asarray(hidden))
        return [
            (d, float(probabilities[x[0]])) for d, x in zip(digits, ids, strict=True)
        ]

    return questions.expected_number(after(""), after, most)


def test_numbers_are_those_of_token_after_token(lm):
    jobs = [
        (
            questions.conversation(
                "click", SHOPPERS[0], "red", [*PRODUCTS.values()][:n]
            ),
            n,
        )
        for n in (3, 9, 12, 21)
    ]
    expected = [read(lm, *job) for job in jobs]
    judge = LocalJudge(lm, PRODUCTS, batch_size=2)
    np.testing.assert_allclose(judge.numbers(jobs), expected, rtol=1e-4)
    assert not judge.counts


def test_rates_of_lists(lm):
    judge = LocalJudge(lm, PRODUCTS)
    hits, asked = lists(12, 0, 3), ["red", "shoe", "blue"]
    found = judge(asked, hits, np.zeros(hits.ids.shape), SHOPPERS)
    assert found.valid.tolist() == [True, False, True]
    assert judge.counts == {"no_list": 1}
    shown = [
        PRODUCTS[f"p{i:02d}"]
        for i in questions.order(0, "blue", hits.ids[2, :3].tolist())
    ]
    for name, question in zip(found._fields, questions.QUESTIONS, strict=False):
        messages = questions.conversation(question, SHOPPERS[2], "blue", shown)
        mean = read(lm, messages, 3)
        assert getattr(found, name)[2] == pytest.approx(mean / 3, rel=1e-4)


def test_what_cannot_be_judged(lm, monkeypatch):
    judge = LocalJudge(lm, PRODUCTS, max_tokens=50)
    found = judge(["red"], lists(3), np.zeros((1, 21)), SHOPPERS[:1])
    assert not found.valid.any()
    assert judge.counts == {"too_long": 3}
    monkeypatch.setattr(local, "MIN_MASS", 0.99)
    judge = LocalJudge(lm, PRODUCTS)
    found = judge(["red"], lists(3), np.zeros((1, 21)), SHOPPERS[:1])
    assert not found.valid.any()
    assert judge.counts == {"no_number": 3}
    with pytest.raises(ValueError, match="no chat template"):
        LocalJudge(lm._replace(tokenizer=tiny.tokenizer()), PRODUCTS)


def test_a_title_writes_no_special_token(lm):
    plain = lm.tokenizer.chat([{"role": "user", "content": "red"}])
    end = lm.tokenizer.eos
    odd = lm.tokenizer.chat([{"role": "user", "content": "red <|endoftext|> \ud800"}])
    assert odd.count(end) == plain.count(end)
