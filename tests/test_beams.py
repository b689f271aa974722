"""Beam search against enumeration, its definition in lists, and transformers."""

import dataclasses
import re
from collections import Counter
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxqr import decode, models, vocab
from jaxqr.decode import beams
from jaxqr.types import Features, Pairs, PromptBatch

V, EOS, WIDTH = 5, 0, 4


# A model that compiles fast and forgets nothing: h <- tanh(h A + e), logits W h + b.


class State(NamedTuple):
    hidden: Any

    def repeat(self, n):
        return State(jnp.repeat(self.hidden, n, axis=0))

    def take(self, index):
        by_prompt = self.hidden.reshape(len(index), -1, self.hidden.shape[-1])
        taken = jnp.take_along_axis(by_prompt, index[..., None], axis=1)
        return State(taken.reshape(-1, self.hidden.shape[-1]))


class Config(NamedTuple):
    eos_token_id: int | tuple[int, ...] | None = EOS


class Recurrent(NamedTuple):
    config: Config = Config()

    def apply(self, params, *inputs, method):
        return getattr(self, method)(params, *inputs)

    def prefill(self, params, prompts, max_new_tokens):
        hidden = jnp.zeros((len(prompts.tokens), len(params["A"])))
        for tokens, mask in zip(prompts.tokens.T, prompts.mask.T, strict=True):
            _, new = self.decode_step(params, State(hidden), tokens)
            hidden = jnp.where(mask[:, None], new.hidden, hidden)
        return Features(hidden[:, None], params["W"], params["b"]), State(hidden)

    def decode_step(self, params, cache, tokens):
        hidden = jnp.tanh(cache.hidden @ params["A"] + params["E"][tokens])
        return Features(hidden[:, None], params["W"], params["b"]), State(hidden)


TOY = Recurrent()


def toy_params(seed, vocabulary=V, width=4):
    rng = np.random.default_rng(seed)
    shapes = {"A": (width, width), "E": (vocabulary, width), "W": (vocabulary, width)}
    params = {k: 1.5 * rng.normal(size=s) for k, s in shapes.items()}
    bias = {"b": 2.0 * (np.arange(vocabulary) == EOS)}
    return jax.tree.map(np.float32, params | bias)


def toy_prompts(seed, vocabulary=V, rows=2):
    rng = np.random.default_rng(seed)
    mask = np.array([[0, 1, 1], [1, 1, 1], [0, 0, 1]], bool)[:rows]
    return PromptBatch(rng.integers(0, vocabulary, mask.shape).astype(np.int32), mask)


EITHER = Recurrent(Config((3, EOS)))
MANY = PromptBatch(*(np.repeat(x, 20, axis=0) for x in toy_prompts(4, 9, rows=3)))


def toy_logps(params, tokens):
    """The distribution of the token after `tokens`, in float64."""
    params = {k: np.float64(v) for k, v in params.items()}
    hidden = np.zeros(len(params["A"]))
    for token in tokens:
        hidden = np.tanh(hidden @ params["A"] + params["E"][token])
    return log_softmax(params["W"] @ hidden + params["b"])


def after(params, prompts, row):
    """`toy_logps` of continuations of a prompt."""
    prompt = prompts.tokens[row][prompts.mask[row]].tolist()
    return lambda tokens: toy_logps(params, (*prompt, *tokens))


# The definition


class Found(NamedTuple):
    score: float
    logp: float
    tokens: tuple[int, ...]


def definition(
    next_logps, *, width, size, groups=1, diversity=0.0, length_penalty=1.0, ends=(EOS,)
):
    """Diverse beam search of one prompt with lists; sequences are read whole."""
    running = [[Found(0.0, 0.0, ())] for _ in range(groups)]
    ended = [[] for _ in range(groups)]
    done = [False] * groups
    for t in range(1, width + 1):
        chosen = Counter()
        for g in (g for g in range(groups) if not done[g]):
            found = sorted(
                (
                    Found(score + p - diversity * chosen[v], logp + p, (*tokens, v))
                    for score, logp, tokens in running[g]
                    for v, p in enumerate(next_logps(tokens))
                ),
                reverse=True,
            )
            leaving = [
                f._replace(score=f.score / t**length_penalty)
                for f in found[:size]
                if f.tokens[-1] in ends or t == width
            ]
            ended[g] = sorted(ended[g] + leaving, reverse=True)[:size]
            running[g] = [f for f in found if f.tokens[-1] not in ends][:size]
            chosen.update(f.tokens[-1] for f in running[g])
            best = running[g][0].score / t**length_penalty
            done[g] = len(ended[g]) == size and best <= ended[g][-1].score
    return sorted((f for group in ended for f in group), reverse=True)


def listed(found: decode.Beams, row: int) -> list[Found]:
    """The continuations of a prompt; what is not there is checked and left out."""
    tokens, scores, mask, logps = (np.asarray(x)[row] for x in found)
    assert (np.diff(scores[scores > -np.inf]) <= 0).all()
    lengths = mask.sum(axis=1)
    np.testing.assert_array_equal(mask, np.arange(mask.shape[1]) < lengths[:, None])
    assert (tokens[~mask] == EOS).all()
    none = lengths == 0
    assert (scores[none] == -np.inf).all()
    assert (logps[none] == -np.inf).all()
    return [
        Found(float(s), float(p), tuple(t[:n].tolist()))
        for s, p, t, n in zip(scores, logps, tokens, lengths, strict=True)
        if n
    ]


def assert_found(actual, expected, tolerance=1e-5):
    """The same continuations with the same numbers; equal scores in any order."""
    assert len(actual) == len(expected)
    for field in ("score", "logp"):
        np.testing.assert_allclose(
            [getattr(f, field) for f in sorted(actual, key=lambda f: f.tokens)],
            [getattr(f, field) for f in sorted(expected, key=lambda f: f.tokens)],
            rtol=tolerance,
            atol=tolerance,
        )
    assert Counter(f.tokens for f in actual) == Counter(f.tokens for f in expected)


# Against enumeration and the definition


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5, -1.0])
def test_a_beam_that_holds_everything_is_an_enumeration(length_penalty):
    """1 + 4 + 16 + 64 sequences that end within four tokens, 256 that do not."""
    params, prompts = toy_params(0), toy_prompts(0)
    found = decode.beam_search(
        TOY, params, prompts, max_new_tokens=WIDTH, num_beams=345,
        length_penalty=length_penalty,
    )  # fmt: skip
    for row in range(2):
        next_logps = after(params, prompts, row)
        every = []
        for length in range(1, WIDTH + 1):
            for tokens in product(range(V), repeat=length):
                closed = tokens[-1] == EOS
                if EOS in tokens[:-1] or not (closed or length == WIDTH):
                    continue
                logp = sum(next_logps(tokens[:t])[v] for t, v in enumerate(tokens))
                every.append(Found(logp / length**length_penalty, logp, tokens))
        assert len(every) == 341
        actual = listed(found, row)
        assert_found(actual, every)
        order = [f.tokens for f in sorted(every, reverse=True)]
        assert [f.tokens for f in actual] == order


SETTINGS = [  # beams, groups, what ends a text
    (4, 1, (EOS,)),
    (4, 2, (EOS,)),
    (3, 3, (EOS,)),
    (6, 2, (EOS, 3)),
]


@pytest.mark.parametrize(("num_beams", "num_groups", "ends"), SETTINGS)
def test_results_are_those_of_the_definition(num_beams, num_groups, ends):
    vocabulary, width, early = 9, 6, 0
    compiled = beams._beam_search._cache_size()
    model = Recurrent(Config(ends if len(ends) > 1 else ends[0]))
    prompts = toy_prompts(1, vocabulary, rows=3)
    for seed, length_penalty, diversity in product(
        range(4), (0.0, 1.0, 2.0), (0.0, 0.4, 3.0) if num_groups > 1 else (0.0,)
    ):
        params = toy_params(seed, vocabulary)
        found = decode.beam_search(
            model, params, prompts, max_new_tokens=width, num_beams=num_beams,
            num_groups=num_groups, diversity_penalty=diversity,
            length_penalty=length_penalty,
        )  # fmt: skip
        for row in range(3):
            expected = definition(
                after(params, prompts, row), width=width, ends=ends,
                size=num_beams // num_groups, groups=num_groups,
                diversity=diversity, length_penalty=length_penalty,
            )  # fmt: skip
            assert_found(listed(found, row), expected)
            early += sum(len(f.tokens) < width for f in expected)
    assert early > 50  # texts end in the middle of the search, too
    assert beams._beam_search._cache_size() == compiled + 1  # whatever the penalties


def test_one_beam_is_greedy():
    for seed in range(4):
        params = toy_params(seed, 9)
        found = decode.beam_search(EITHER, params, MANY, max_new_tokens=6, num_beams=1)
        greedy = decode.generate(
            EITHER, params, MANY, jax.random.key(0), max_new_tokens=6, temperature=0.0
        )
        np.testing.assert_array_equal(found.tokens[:, 0], greedy.tokens)
        np.testing.assert_array_equal(found.mask[:, 0], greedy.mask)
        logps = np.sum(greedy.logps, axis=1)
        np.testing.assert_allclose(found.logps[:, 0], logps, atol=1e-5)
        np.testing.assert_allclose(
            found.scores[:, 0], logps / np.sum(greedy.mask, axis=1), atol=1e-5
        )


def test_any_of_several_tokens_ends_a_sample():
    drawn = decode.generate(
        EITHER, toy_params(3, 9), MANY, jax.random.key(0), max_new_tokens=6
    )
    tokens, mask = np.asarray(drawn.tokens), np.asarray(drawn.mask)
    ends = np.isin(tokens, (3, EOS))
    np.testing.assert_array_equal(mask, np.cumsum(ends, axis=1) - ends == 0)
    assert (tokens[~mask] == 3).all()
    assert {*tokens[ends & mask]} == {3, EOS}
    assert mask[:, -1].any()


def test_a_large_penalty_leaves_no_token_twice():
    params, prompts = toy_params(3, 40), toy_prompts(3, 40, rows=3)
    params["b"][EOS] = -200.0  # no text ends

    def distinct(diversity):
        found = decode.beam_search(
            Recurrent(), params, prompts, max_new_tokens=1, num_beams=6,
            num_groups=3, diversity_penalty=diversity,
        )  # fmt: skip
        return [len({*row}) for row in np.asarray(found.tokens[..., 0])]

    counts = [distinct(diversity) for diversity in (0.0, 1.0, 50.0)]
    assert counts[0] == [2, 2, 2]
    assert sum(counts[0]) < sum(counts[1]) < sum(counts[2])
    assert counts[2] == [6, 6, 6]


def test_the_vocabulary_is_never_sorted():
    program = beams._beam_search.lower(
        TOY, toy_params(0, 3000), toy_prompts(0), jnp.float32(0), jnp.float32(1),
        max_new_tokens=2, num_beams=4, num_groups=2,
    )  # fmt: skip
    text = program.compile().as_text()
    sorts = re.findall(r"= (.*) sort\(", text)
    assert "[8,3000]" in text  # the logits of all beams
    assert sorts
    assert not any("3000" in shape for shape in sorts)


def test_what_cannot_be_searched():
    arguments = TOY, toy_params(0), toy_prompts(0)
    with pytest.raises(ValueError, match=r"num_beams=4 .* num_groups=3 .*multiple"):
        decode.beam_search(*arguments, max_new_tokens=2, num_beams=4, num_groups=3)
    with pytest.raises(ValueError, match="num_beams=0"):
        decode.beam_search(*arguments, max_new_tokens=2, num_beams=0)
    with pytest.raises(ValueError, match=r"diversity_penalty=0\.5 .*num_groups > 1"):
        decode.beam_search(
            *arguments, max_new_tokens=2, num_beams=4, diversity_penalty=0.5
        )
    for ends in (None, (), 50256, (50256, -1)):
        endless = Recurrent(Config(ends))
        with pytest.raises(ValueError, match=r"eos_token_id=.* ends no row"):
            decode.beam_search(endless, *arguments[1:], max_new_tokens=2, num_beams=2)


# With the models, and against transformers


SIZE = (6, 3)  # beams and groups; compiled once


@cache
def stored():
    return golden.load("beams")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """The golden GPT-2, with an end-of-text token that it likes."""
    folder = golden.write_folder("gpt2", tmp_path_factory.mktemp("gpt2"))
    model, params = models.load_pretrained(folder)
    config = dataclasses.replace(model.config, eos_token_id=int(stored()["eos"]))
    return models.build(config), params


@pytest.fixture(scope="module")
def prompts():
    """Prompts of three lengths."""
    return PromptBatch(stored()["tokens"].astype(np.int32), stored()["mask"])


def beam_search(model, params, prompts, *, size=SIZE, diversity=0.0, length=1.0):
    return decode.beam_search(
        model, params, prompts, max_new_tokens=8, num_beams=size[0],
        num_groups=size[1], diversity_penalty=diversity, length_penalty=length,
    )  # fmt: skip


def test_results_with_a_cache_and_padding_are_those_without(gpt2, prompts):
    model, params = gpt2
    ends = (model.config.eos_token_id,)

    @cache
    def logps(tokens):
        padded = np.array([tokens + (0,) * (14 - len(tokens))], np.int32)
        mask = np.arange(14)[None] < len(tokens)
        features = golden.apply(model, params, padded, mask)
        last = np.float64(features.hidden[0, len(tokens) - 1])
        return log_softmax(np.float64(features.unembed) @ last)

    found = beam_search(*gpt2, prompts, diversity=0.5)
    for row, (tokens, mask) in enumerate(zip(*prompts, strict=True)):
        prompt = tuple(tokens[mask].tolist())
        expected = definition(
            lambda new, prompt=prompt: logps(prompt + new),
            width=8, size=2, groups=3, diversity=0.5, ends=ends,
        )  # fmt: skip
        tokens = np.where(found.mask, found.tokens, EOS)
        assert_found(listed(found._replace(tokens=tokens), row), expected)


def test_without_a_penalty_groups_are_one_search_done_over(gpt2, prompts):
    found = beam_search(*gpt2, prompts)
    for tokens in np.asarray(found.tokens):
        assert [*Counter(row.tobytes() for row in tokens).values()] == [3, 3]


def test_log_probabilities_are_the_teacher_forced_ones(prompts):
    """Of a model with an encoder, whose memory all beams of a prompt share."""
    config = models.preset(
        "t5-tiny", vocab_size=97, d_model=32, d_ff=32, d_kv=16, num_heads=2,
        num_layers=1, eos_token_id=17,
    )  # fmt: skip
    model = models.build(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape, scale=0.3).astype(np.float32),
        jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0)),
    )
    found = beam_search(model, params, prompts, diversity=0.5)
    flat = (x.reshape(-1, 8) for x in (found.tokens, found.mask))
    pairs = Pairs(*prompts, *flat)
    features, tokens, mask = golden.apply(model, params, pairs, method="completion")
    logps = np.where(mask, vocab.token_logps(features, tokens), 0).sum(axis=1)
    np.testing.assert_allclose(found.logps, logps.reshape(-1, SIZE[0]), atol=1e-4)
    assert (np.asarray(found.mask).sum(axis=2) > 3).mean() > 0.5
    for tokens in np.asarray(found.tokens):
        assert len({row.tobytes() for row in tokens}) > 3


def test_diverse_beams_are_those_of_transformers(gpt2, prompts):
    ended = []
    names = [k.removesuffix("/tokens") for k in stored() if "/tokens" in k]
    for name in names:
        diversity, length = map(float, name.split(" "))
        found = beam_search(*gpt2, prompts, diversity=diversity, length=length)
        tokens, scores = stored()[f"{name}/tokens"], stored()[f"{name}/scores"]
        np.testing.assert_allclose(found.scores, scores, atol=1e-5)
        np.testing.assert_array_equal(np.where(found.mask, found.tokens, 1), tokens)
        ended.append(np.mean(~found.mask[..., -1]))
    assert len(names) == 9
    assert 0.6 < np.mean(ended) < 0.8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_beams", [2, 4])
def test_beams_are_those_of_live_transformers(gpt2, prompts, num_beams, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    models.save_pretrained(tmp_path, *gpt2)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    width = prompts.tokens.shape[1]
    for length_penalty in (0.0, 1.0, 2.0, -1.0):
        expected = theirs.generate(
            torch.tensor(prompts.tokens, dtype=torch.long),
            attention_mask=torch.tensor(prompts.mask).long(),
            max_new_tokens=8,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            length_penalty=length_penalty,
            early_stopping=False,
            do_sample=False,
            pad_token_id=1,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = beam_search(*gpt2, prompts, size=(num_beams, 1), length=length_penalty)
        new = expected.sequences[:, width:].numpy()
        new = np.pad(new, ((0, 0), (0, 8 - new.shape[1])), constant_values=1)
        tokens = np.where(found.mask, found.tokens, 1).reshape(-1, 8)
        np.testing.assert_array_equal(tokens, new)
        np.testing.assert_allclose(
            np.ravel(found.scores), expected.sequences_scores, rtol=1e-5
        )
