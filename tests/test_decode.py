"""Sampling against enumeration, teacher forcing, and a loop without a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqr import decode, models, vocab
from jaxqr.decode import generation, sampling
from jaxqr.types import Pairs, PromptBatch

V, EOS, NEW = 13, 0, 6


@pytest.fixture(scope="module")
def tiny():
    """A model whose next-token distributions are far from flat."""
    config = models.preset(
        "gpt2-tiny", vocab_size=V, n_positions=32, n_embd=16, n_head=2,
        eos_token_id=EOS, bos_token_id=EOS,
    )  # fmt: skip
    model = models.build(config)
    params = models.init(model, jax.random.key(1))
    return model, jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, params)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]], bool)
    mask = np.tile(mask, (8, 1))
    return PromptBatch(rng.integers(1, V, mask.shape).astype(np.int32), mask)


def forced(model, params, prompts, generated):
    """Teacher-forced log-probabilities of generated tokens."""
    batch = Pairs(*prompts, generated.tokens, generated.mask)
    features, tokens, mask = model.apply(params, batch, method="completion")
    return np.where(mask, vocab.token_logps(features, tokens), 0.0)[:, 1:]


def test_log_probabilities_are_the_teacher_forced_ones(tiny, prompts):
    drawn = decode.generate(*tiny, prompts, jax.random.key(3), max_new_tokens=NEW)
    np.testing.assert_allclose(
        drawn.logps, forced(*tiny, prompts, drawn), rtol=0, atol=1e-4
    )


def test_greedy_is_the_argmax_of_a_loop_without_cache(tiny, prompts):
    model, params = tiny
    drawn = decode.generate(
        model, params, prompts, jax.random.key(0), max_new_tokens=NEW, temperature=0.0
    )
    width = prompts.tokens.shape[1]
    tokens = np.pad(prompts.tokens, ((0, 0), (0, NEW)))
    mask = np.pad(prompts.mask, ((0, 0), (0, NEW)))
    done = np.zeros(len(tokens), bool)
    apply = jax.jit(model.apply)
    for t in range(width, width + NEW):
        features = apply(params, tokens, mask)
        logits = features.hidden[:, t - 1] @ features.unembed.T
        tokens[:, t] = np.where(done, EOS, np.argmax(logits, axis=-1))
        mask[:, t] = ~done
        done |= tokens[:, t] == EOS
    np.testing.assert_array_equal(drawn.tokens, tokens[:, width:])
    np.testing.assert_array_equal(drawn.mask, mask[:, width:])


def test_samples_of_one_prompt(tiny, prompts):
    """The prompt is read once; each row is what the prompt's own row would be."""
    model, params = tiny
    many = decode.generate(
        model, params, prompts, jax.random.key(0), max_new_tokens=NEW, n=3
    )
    rows = len(prompts.tokens)
    assert many.tokens.shape == (3 * rows, NEW)
    repeated = PromptBatch(*(np.repeat(x, 3, axis=0) for x in prompts))
    expected = decode.generate(
        model, params, repeated, jax.random.key(0), max_new_tokens=NEW
    )
    np.testing.assert_array_equal(many.tokens, expected.tokens)
    np.testing.assert_array_equal(many.mask, expected.mask)
    np.testing.assert_allclose(many.logps, expected.logps, atol=1e-5)
    assert len({row.tobytes() for row in np.asarray(many.tokens[:3])}) > 1


def test_end_of_text_is_inside_the_mask_and_nothing_follows(tiny, prompts):
    drawn = decode.generate(
        *tiny, prompts, jax.random.key(5), max_new_tokens=NEW, temperature=3.0
    )
    ended = 0
    for tokens, mask, logps in zip(*map(np.asarray, drawn), strict=True):
        length = mask.sum()
        assert mask[:length].all()
        assert not (tokens[: length - 1] == EOS).any()
        if length < NEW:
            assert tokens[length - 1] == EOS
            assert logps[length - 1] < 0
            ended += 1
        assert (tokens[length:] == EOS).all()
        assert (logps[length:] == 0).all()
    assert ended > 0


def test_keys_decide(tiny, prompts):
    one, again, other = (
        np.asarray(
            decode.generate(
                *tiny, prompts, jax.random.key(k), max_new_tokens=NEW
            ).tokens
        )
        for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_compiles_once_whatever_the_sampling(tiny, prompts):
    before = generation._generate._cache_size()
    for i, arguments in enumerate(
        [{}, {"temperature": 0}, {"temperature": 0.5, "top_p": 0.9}, {"top_k": 2}]
    ):
        decode.generate(
            *tiny, prompts, jax.random.key(i), max_new_tokens=NEW + 1, **arguments
        )
    assert generation._generate._cache_size() == before + 1


def test_rows_do_not_depend_on_their_padding(tiny, prompts):
    wider = PromptBatch(*(np.pad(x, ((0, 0), (3, 0))) for x in prompts))
    arguments = {"max_new_tokens": NEW, "temperature": 1.0}
    key = jax.random.key(7)
    narrow = decode.generate(*tiny, prompts, key, **arguments)
    wide = decode.generate(*tiny, wider, key, **arguments)
    np.testing.assert_array_equal(narrow.tokens, wide.tokens)
    np.testing.assert_allclose(narrow.logps, wide.logps, atol=1e-5)


def test_mixture_is_the_student_at_alpha_0_and_the_teacher_at_1(tiny, prompts):
    model, params = tiny
    teacher_params = jax.tree.map(lambda x: -x, params)
    key = jax.random.key(11)
    alone = [
        decode.generate(model, p, prompts, key, max_new_tokens=NEW)
        for p in (params, teacher_params)
    ]
    for alpha, expected in zip((0.0, 1.0), alone, strict=True):
        mixed = decode.generate_mixture(
            model, params, model, teacher_params, prompts, key,
            alpha=alpha, max_new_tokens=NEW,
        )  # fmt: skip
        np.testing.assert_array_equal(mixed.tokens, expected.tokens)
        for p, logps in (
            (params, mixed.student_logps),
            (teacher_params, mixed.teacher_logps),
        ):
            np.testing.assert_allclose(
                logps, forced(model, p, prompts, mixed), rtol=0, atol=1e-4
            )


# The sampler by itself


def truncated(logits, temperature, top_k, top_p):
    """Row probabilities by sorting, in float64; the definition."""
    rows = []
    for row in np.float64(logits) / temperature:
        p = np.exp(row - row.max())
        order = np.argsort(-p)
        if top_k:
            p[order[top_k:]] = 0
        p /= p.sum()
        before = np.cumsum(p[order]) - p[order]
        if top_p < 1:
            p[order[before >= top_p]] = 0
        rows.append(p / p.sum())
    return np.array(rows)


SETTINGS = [
    (1.0, 0, 1.0),
    (0.7, 0, 1.0),
    (1.0, 5, 1.0),
    (1.0, 0, 0.6),
    (1.3, 7, 0.8),
    (1.0, 100, 0.6),  # the nucleus is in the head, the mass it is a share of is not
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size", [40, 1000])  # below and above sampling.HEAD
def test_kept_tokens_are_those_of_the_definition(settings, size):
    temperature, top_k, top_p = settings
    flat = np.random.default_rng(2).normal(size=(4, size)).astype(np.float32)
    for logits in (flat, 5 * flat):  # the nucleus outside and inside the head
        scaled = logits / np.float32(temperature)
        kept, _ = survivors(scaled, top_k, top_p)
        expected = truncated(logits, temperature, top_k, top_p) > 0
        np.testing.assert_array_equal(kept, expected)


def survivors(logits, top_k, top_p):
    """Which tokens are kept; what the head makes of it must agree."""
    logits = jnp.asarray(logits - logits.max(axis=1, keepdims=True))
    head, tokens, lowest, inside = sampling._truncation(logits, jnp.int32(top_k), top_p)
    kept = np.asarray(logits >= lowest)
    np.testing.assert_array_equal(
        head, -np.sort(-np.asarray(logits), axis=1)[:, : head.shape[1]]
    )
    np.testing.assert_array_equal(np.take_along_axis(logits, tokens, axis=1), head)
    if inside:
        for row, ids, mine in zip(kept, tokens, head >= lowest, strict=True):
            assert set(np.flatnonzero(row)) == set(np.asarray(ids)[mine])
    return kept, bool(inside)


def test_top_k_beyond_the_head():
    logits = np.random.default_rng(3).normal(size=(2, 1000)).astype(np.float32)
    for top_k in (50, 400):
        kept, inside = survivors(logits, top_k, 1.0)
        np.testing.assert_array_equal(np.sum(kept, axis=1), [top_k, top_k])
        assert inside == (top_k == 50)
    kept, _ = survivors(logits, 0, 0.3)
    expected = truncated(logits, 1.0, 0, 0.3) > 0
    np.testing.assert_array_equal(kept, expected)


def test_tied_tokens_are_kept_together():
    """Also where the tie reaches beyond the head, in which only some would be."""
    logits = np.zeros((1, 1000), np.float32)
    logits[0, 400:410] = 3.0
    for top_k, count, among_the_best in ((3, 10, True), (11, 1000, False)):
        kept, inside = survivors(logits, top_k, 1.0)
        assert (kept.sum(), inside) == (count, among_the_best)
    drawn = decode.sample(
        jnp.asarray(np.repeat(logits, 500, 0)), jax.random.key(0), top_k=3
    )
    assert set(np.asarray(drawn)) == set(range(400, 410))


def test_frequencies_are_the_probabilities():
    logits = np.random.default_rng(4).normal(size=(1, 8)).astype(np.float32) * 2
    rows = 20_000
    drawn = decode.sample(
        jnp.asarray(np.repeat(logits, rows, 0)),
        jax.random.key(0), temperature=1.5, top_k=6, top_p=0.9,
    )  # fmt: skip
    share = np.bincount(np.asarray(drawn), minlength=8) / rows
    expected = truncated(logits, 1.5, 6, 0.9)[0]
    deviation = np.sqrt(expected * (1 - expected) / rows)
    assert (np.abs(share - expected) <= 4 * deviation + 1e-12).all()


def test_an_excluded_token_is_never_drawn():
    logits = np.full((4096, 50), -np.inf, np.float32)
    logits[:, 17], logits[:, 31] = 0.0, -20.0
    drawn = np.asarray(decode.sample(jnp.asarray(logits), jax.random.key(1)))
    assert set(drawn) <= {17, 31}


def test_an_end_of_text_must_be_predicted(tiny, prompts):
    """One that is not would never come, and every row would run to its full length."""
    model, params = tiny

    def draw(**fields):
        other = models.build(dataclasses.replace(model.config, **fields))
        return decode.generate(
            other, params, prompts, jax.random.key(0), max_new_tokens=NEW
        )

    for ends in (None, (), V, 50256, (V, -1)):
        message = rf"eos_token_id=.* ends no row: .* one of the {V} tokens"
        with pytest.raises(ValueError, match=message):
            draw(eos_token_id=ends)
    with pytest.raises(ValueError, match=r"eos_token_id=12 .* one of the 12 tokens"):
        draw(eos_token_id=12, num_tokens=12)
    # Of several the others count, and the first of them fills finished rows.
    drawn = draw(eos_token_id=(50256, EOS, 3))
    expected = draw(eos_token_id=(EOS, 3))
    np.testing.assert_array_equal(drawn.tokens, expected.tokens)
    assert not np.asarray(drawn.mask).all()
