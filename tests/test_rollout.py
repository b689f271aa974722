"""Rollouts: which parameters drew which batch, and what is preferred to what."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
import tiny

from jaxqr.data.pipeline import Batches, pair_batches
from jaxqr.rewards import Reward, Sidecar
from jaxqr.train import rollout
from jaxqr.types import TrainState

SAMPLING = rollout.Sampling(16, 8)
GREEDY = SAMPLING._replace(temperature=0.0)
QUERIES = [query for query, _ in tiny.TRAIN]


def state_of(seed, step=0):
    key = jax.random.key(seed)
    return TrainState(tiny.params(seed), (), key, jax.numpy.int32(step))


STATES = [state_of(seed) for seed in range(3)]


def greedy(state, queries):
    return rollout.rewrite(
        tiny.GPT2, state.params, tiny.tokenizer(), queries, jax.random.key(9),
        sampling=GREEDY, batch_size=16,
    )  # fmt: skip


# Best against worst


class Done(NamedTuple):
    """A score that is there; nothing waits for it here."""

    def result(self):
        raise AssertionError("prefer() is given the reward")


def a_round(rows):
    """Candidate r has tokens r + 1 and is r % 3 + 1 long."""
    tokens = np.repeat(np.arange(1, rows + 1, dtype=np.int32)[:, None], 4, axis=1)
    mask = np.arange(4)[None] <= (np.arange(rows) % 3)[:, None]
    return rollout._Round(10 * tokens, tokens > 0, tokens, mask, Done())


def scored(total, valid=None, **flags):
    total = np.array(total, np.float32)
    valid = (
        np.ones(total.shape, np.bool_) if valid is None else np.array(valid, np.bool_)
    )
    parts = {"half": total / 2}
    return Reward(
        total, parts, valid, {k: np.array(v, np.bool_) for k, v in flags.items()}
    )


def winners(batch):
    """(best, worst, weight) by number of candidate, counted from 0."""
    columns = batch.chosen[:, 0] - 1, batch.rejected[:, 0] - 1, batch.weight
    return [tuple(row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def test_the_better_of_two_is_chosen():
    batch, _ = rollout.prefer(a_round(6), scored([0.1, 0.7, 0.9, 0.2, 0.5, 0.5]), 2)
    assert winners(batch)[:2] == [(1, 0, 1.0), (2, 3, 1.0)]
    assert batch.weight.tolist() == [1, 1, 0]  # a tie
    assert batch.weight.dtype == np.float32
    lengths = np.arange(6) % 3 + 1
    for rows, mask in (
        (batch.chosen, batch.chosen_mask),
        (batch.rejected, batch.rejected_mask),
    ):
        assert mask.sum(axis=1).tolist() == lengths[rows[:, 0] - 1].tolist()
    # Both candidates continue their own query's source.
    assert (batch.source[:, 0] // 10 - 1).tolist() == [1, 2, 4]
    assert batch.source_mask.all()


def test_the_best_of_many_meets_the_worst():
    total = [0.3, 0.9, 0.1, 0.5, 0.2, 0.2, 0.2, 0.2]
    batch, _ = rollout.prefer(a_round(8), scored(total), 4)
    assert winners(batch)[0] == (1, 2, 1.0)
    assert batch.weight.tolist() == [1, 0]


def test_what_was_not_scored_is_neither_best_nor_worst():
    # The zeros of failed rows must not become the worst, nor NaN the best.
    total = [0.0, 0.9, 0.4, 0.6] + [0.0, 0.0, 0.7, 0.0] + [0.0] * 4
    valid = [False, True, True, True] + [False, False, True, False] + [False] * 4
    batch, report = rollout.prefer(a_round(12), scored(total, valid), 4)
    assert winners(batch)[0] == (1, 2, 1.0)
    assert batch.weight.tolist() == [1, 0, 0]  # one score, or none, is no pair
    assert report["failed"] == pytest.approx(8 / 12)
    assert report["tied"] == 0
    assert report["reward"] == pytest.approx((0.9 + 0.4 + 0.6 + 0.7) / 4)


def test_the_report():
    total, valid = [0.1, 0.7, 0.4, 0.4, 0.9, 0.0], [True] * 5 + [False]
    reward = scored(total, valid, copy=[True, False, True, False, False, False])
    _, report = rollout.prefer(a_round(6), reward, 2)
    assert report == pytest.approx(
        {
            "reward": 0.5,  # of the five valid candidates
            "half": 0.25,
            "copy": 2 / 6,
            "chosen_score": 0.7,  # of the one pair that counts
            "rejected_score": 0.1,
            "tied": 1 / 3,
            "failed": 1 / 6,
            "length": 2.0,
        }
    )


def test_a_report_of_nothing():
    _, report = rollout.prefer(a_round(4), scored([0.0] * 4, [False] * 4), 2)
    unknown = {"reward", "half", "chosen_score", "rejected_score"}
    assert {name for name, value in report.items() if np.isnan(value)} == unknown
    assert report["failed"] == 1


# Online preferences


def vowels(queries: list[str], rewrites: list[str]) -> Reward:
    counts = [sum(c in "aeiou" for c in text) for text in rewrites]
    return scored(np.array(counts, np.float32))


def online(submit, overlap, sampling=SAMPLING, candidates=2):
    queries = Batches(QUERIES, list, batch_size=16 // candidates, seed=0)
    return rollout.OnlinePreferences(
        tiny.GPT2, tiny.tokenizer(), queries, submit, Reward, sampling,
        candidates=candidates, overlap=overlap,
    )  # fmt: skip


@pytest.mark.parametrize("overlap", [False, True])
def test_which_parameters_drew_which_batch(overlap):
    asked = []

    def submit(queries, rewrites):
        asked.append((queries, rewrites))
        return sidecar.submit(queries, rewrites)

    with Sidecar(vowels) as sidecar:
        batches = online(submit, overlap, GREEDY)
        sizes, trained = [], []
        for state in STATES:
            trained.append(batches.next(state))
            sizes.append(len(asked))
    assert sizes == ([2, 3, 4] if overlap else [1, 2, 3])
    # Round r was drawn by the state of its own step, or of the step before.
    drawn_by = [STATES[0], *STATES] if overlap else STATES
    order = Batches(QUERIES, list, batch_size=8, seed=0)
    for (queries, rewrites), state in zip(asked, drawn_by, strict=True):
        assert queries[::2] == queries[1::2] == order.next(None)
        (expected,) = zip(*greedy(state, queries), strict=True)
        assert rewrites == list(expected)
        assert any(greedy(other, queries) != greedy(state, queries) for other in STATES)
    # Steps are trained on the rounds in turn.
    for batch, (queries, rewrites) in zip(trained, asked, strict=False):
        prompts = tiny.tokenizer().source(queries[::2], 16)
        assert [s[m].tolist() for s, m in zip(*batch[:2], strict=True)] == prompts
        chosen = tiny.tokenizer().decode(batch.chosen, batch.chosen_mask)
        assert chosen == rewrites[::2]
        assert (batch.weight == 0).all()  # greedy candidates are equal


def test_candidates_differ_and_the_best_is_chosen():
    with Sidecar(vowels) as sidecar:
        batches = online(sidecar.submit, True, candidates=4)
        first = batches.next(STATES[0])
        report = batches.report()
    assert first.chosen.shape == first.rejected.shape == (4, 8)
    chosen, rejected = (
        vowels([], tiny.tokenizer().decode(*side)).total
        for side in (
            (first.chosen, first.chosen_mask),
            (first.rejected, first.rejected_mask),
        )
    )
    counted = first.weight > 0
    assert counted.any()
    assert (chosen > rejected)[counted].all()
    assert (chosen == rejected)[~counted].all()
    assert report["chosen_score"] == pytest.approx(chosen[counted].mean())
    assert report["rejected_score"] == pytest.approx(rejected[counted].mean())


def test_two_rounds_of_one_state_are_drawn_apart():
    queries = Batches(QUERIES[:1], list, batch_size=8, seed=0)
    with Sidecar(vowels) as sidecar:
        batches = rollout.OnlinePreferences(
            tiny.GPT2, tiny.tokenizer(), queries, sidecar.submit, Reward, SAMPLING
        )
        first, second = batches.next(STATES[0]), batches.next(STATES[0])
    np.testing.assert_array_equal(first.source, second.source)
    assert (first.chosen != second.chosen).any()


def test_queued_rounds_are_saved_with_their_rewards():
    with Sidecar(vowels) as sidecar:
        batches = online(sidecar.submit, True)
        batches.next(STATES[0])
        saved = batches.save()
        expected = [batches.next(state) for state in STATES[1:]]
        expected_report = batches.report()
        fresh = online(sidecar.submit, True)
        fresh.load(saved)
        again = [fresh.next(state) for state in STATES[1:]]
    tiny.assert_same_bits(again, expected)
    assert fresh.report() == expected_report


def test_a_preference_needs_two():
    with pytest.raises(ValueError, match="candidates=1: a preference needs two"):
        online(Sidecar(vowels).submit, False, candidates=1)


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
