"""Text to text, and rollouts without a reward."""

import jax
import numpy as np
import pytest
import tiny

from jaxqr.data.pipeline import pair_batches
from jaxqr.train import rollout

SAMPLING = rollout.Sampling(16, 8)
GREEDY = SAMPLING._replace(temperature=0.0)
QUERIES = [query for query, _ in tiny.TRAIN]
STATES = [tiny.state_of(seed) for seed in range(3)]


def greedy(state, queries):
    return rollout.rewrite(
        tiny.GPT2, state.params, tiny.tokenizer(), queries, jax.random.key(9),
        sampling=GREEDY, batch_size=16,
    )  # fmt: skip


# Distillation's rollouts


def test_student_samples_continue_the_prompts():
    batches = rollout.StudentSamples(tiny.GPT2, tiny.sft_batches(), SAMPLING)
    given = tiny.sft_batches().next(None)
    place = batches.save()
    one = batches.next(STATES[0])
    np.testing.assert_array_equal(one.source, given.source)
    np.testing.assert_array_equal(one.source_mask, given.source_mask)
    assert one.target.shape == one.target_mask.shape == (8, 8)
    batches.load(place)
    tiny.assert_same_bits(batches.next(STATES[0]), one)
    batches.load(place)
    assert (batches.next(STATES[1]).target != one.target).any()


def mixture(inner_epochs=3, rollouts=16):
    corpus = tiny.tokenizer().plain([b for _, b in tiny.TRAIN], max_target=16)
    return rollout.MixtureRollouts(
        tiny.GPT2, tiny.GPT2, tiny.params(5), tiny.sft_batches(),
        pair_batches(corpus, batch_size=8, seed=1, fill=tiny.EOS), SAMPLING,
        alpha=0.2, rollouts=rollouts, inner_epochs=inner_epochs, batch_size=8,
    )  # fmt: skip


def content(batch):
    """Each rollout as bytes."""
    columns = (*batch.rollout, batch.student_logps, batch.teacher_logps)
    return [b"".join(x.tobytes() for x in row) for row in zip(*columns, strict=True)]


def test_every_rollout_is_used_once_per_inner_epoch():
    batches = mixture()
    first = [batches.next(STATES[0])]
    # Later parameters play no part until the rollouts are used up.
    first += [batches.next(STATES[1]) for _ in range(5)]
    assert first[0].rollout.source.shape == (8, 16)
    assert first[0].rollout.target.shape == (8, 8)
    assert first[0].student_logps.shape == first[0].teacher_logps.shape == (8, 8)
    assert len(first[0].corpus.source) == 8
    epochs = [
        content(a) + content(b) for a, b in zip(first[::2], first[1::2], strict=True)
    ]
    assert len(set(epochs[0])) == 16
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert not set(content(batches.next(STATES[1]))) & set(epochs[0])
    # Text has an epoch of its own.
    corpora = [batch.corpus.target.tobytes() for batch in first]
    assert len(set(corpora)) == 6


def test_rollouts_are_of_the_mixture_and_have_both_log_probabilities():
    batches = mixture(inner_epochs=1)
    batch = batches.next(STATES[0])
    rows = [
        tiny.Row(source[source_mask].tolist(), target[target_mask].tolist())
        for source, source_mask, target, target_mask in zip(*batch.rollout, strict=True)
    ]
    for params, logps in (
        (STATES[0].params, batch.student_logps),
        (tiny.params(5), batch.teacher_logps),
    ):
        expected = np.concatenate(tiny.token_logps(params, rows, width=24))
        np.testing.assert_allclose(
            logps[batch.rollout.target_mask], expected, atol=1e-4
        )
        assert (logps[~batch.rollout.target_mask] == 0).all()


def test_rollouts_must_fill_their_minibatches():
    with pytest.raises(
        ValueError, match="rollouts=12 is not a multiple of batch_size=8"
    ):
        mixture(rollouts=12)


# Text to text


def test_rewrites_come_in_order_and_by_query():
    queries = QUERIES[:5]
    texts = rollout.rewrite(
        tiny.GPT2, STATES[0].params, tiny.tokenizer(), queries, jax.random.key(0),
        sampling=SAMPLING, n=3, batch_size=16,
    )  # fmt: skip
    assert [len(of_query) for of_query in texts] == [3] * 5
    assert len({text for of_query in texts for text in of_query}) > 5
    once = greedy(STATES[0], queries)
    thrice = rollout.rewrite(
        tiny.GPT2, STATES[0].params, tiny.tokenizer(), queries, jax.random.key(0),
        sampling=GREEDY, n=3, batch_size=16,
    )  # fmt: skip
    assert thrice == [3 * of_query for of_query in once]
    # Across batches of another size, the last of them filled up.
    smaller = rollout.rewrite(
        tiny.GPT2, STATES[0].params, tiny.tokenizer(), queries, jax.random.key(3),
        sampling=GREEDY, batch_size=4,
    )  # fmt: skip
    assert smaller == once
    assert greedy(STATES[0], queries[::-1]) == once[::-1]


def test_batches_of_one_call_have_keys_of_their_own():
    texts = rollout.rewrite(
        tiny.GPT2, STATES[0].params, tiny.tokenizer(), QUERIES[:1], jax.random.key(0),
        sampling=SAMPLING, n=32, batch_size=16,
    )  # fmt: skip
    assert texts[0][:16] != texts[0][16:]


def test_no_queries():
    assert greedy(STATES[0], []) == []


def test_the_sampler_is_not_told_how_long_prompts_are():
    assert rollout.Sampling(32, 5, 0.5, 3, 0.9).arguments() == {
        "max_new_tokens": 5,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
    }
    assert rollout.Sampling(temperature=0.0).arguments()["temperature"] == 0
