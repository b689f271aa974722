"""Rounds that are scored: who drew them, and what is preferred to what."""

import jax
import numpy as np
import pytest
import tiny

from jaxqr.data.pipeline import Batches
from jaxqr.rewards import Reward, Sidecar
from jaxqr.train import online, rollout
from jaxqr.types import Pairs

SAMPLING = rollout.Sampling(16, 8)
GREEDY = SAMPLING._replace(temperature=0.0)
QUERIES = [query for query, _ in tiny.TRAIN]
STATES = [tiny.state_of(seed) for seed in range(3)]


def greedy(state, queries):
    return rollout.rewrite(
        tiny.GPT2, state.params, tiny.tokenizer(), queries, jax.random.key(9),
        sampling=GREEDY, batch_size=16,
    )  # fmt: skip


# Best against worst


def candidates(rows, n):
    """Candidate r has tokens r + 1 and is r % 3 + 1 long; query q has tokens q."""
    tokens = np.repeat(np.arange(1, rows + 1, dtype=np.int32)[:, None], 4, axis=1)
    mask = np.arange(4)[None] <= (np.arange(rows) % 3)[:, None]
    source = np.repeat(np.arange(rows // n, dtype=np.int32)[:, None], 4, axis=1)
    pairs = Pairs(source, source >= 0, tokens, mask)
    return online.Candidates(pairs, np.zeros(tokens.shape, np.float32))


def scored(total, valid=None, **flags):
    total = np.array(total, np.float32)
    valid = (
        np.ones(total.shape, np.bool_) if valid is None else np.array(valid, np.bool_)
    )
    parts = {"half": total / 2}
    return Reward(
        total, parts, valid, {k: np.array(v, np.bool_) for k, v in flags.items()}
    )


def summary(candidates, reward):
    """What is logged of a round."""
    return online._summary(candidates, reward) | online.prefer(candidates, reward)[1]


def winners(batch):
    """(best, worst, weight) by number of candidate, counted from 0."""
    columns = batch.chosen[:, 0] - 1, batch.rejected[:, 0] - 1, batch.weight
    return [tuple(row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def test_the_better_of_two_is_chosen():
    batch, _ = online.prefer(candidates(6, 2), scored([0.1, 0.7, 0.9, 0.2, 0.5, 0.5]))
    assert winners(batch)[:2] == [(1, 0, 1.0), (2, 3, 1.0)]
    assert batch.weight.tolist() == [1, 1, 0]  # a tie
    assert batch.weight.dtype == np.float32
    lengths = np.arange(6) % 3 + 1
    for rows, mask in (
        (batch.chosen, batch.chosen_mask),
        (batch.rejected, batch.rejected_mask),
    ):
        assert mask.sum(axis=1).tolist() == lengths[rows[:, 0] - 1].tolist()
    # Each row keeps its own query's source.
    assert batch.source[:, 0].tolist() == [0, 1, 2]
    assert batch.source_mask.all()


def test_the_best_of_many_meets_the_worst():
    total = [0.3, 0.9, 0.1, 0.5, 0.2, 0.2, 0.2, 0.2]
    batch, _ = online.prefer(candidates(8, 4), scored(total))
    assert winners(batch)[0] == (1, 2, 1.0)
    assert batch.weight.tolist() == [1, 0]


def test_what_was_not_scored_is_neither_best_nor_worst():
    # The zeros of failed rows must not become the worst, nor NaN the best.
    total = [0.0, 0.9, 0.4, 0.6] + [0.0, 0.0, 0.7, 0.0] + [0.0] * 4
    valid = [False, True, True, True] + [False, False, True, False] + [False] * 4
    reward = scored(total, valid)
    batch, _ = online.prefer(candidates(12, 4), reward)
    report = summary(candidates(12, 4), reward)
    assert winners(batch)[0] == (1, 2, 1.0)
    assert batch.weight.tolist() == [1, 0, 0]  # one score, or none, is no pair
    assert report["failed"] == pytest.approx(8 / 12)
    assert report["tied"] == 0
    assert report["reward"] == pytest.approx((0.9 + 0.4 + 0.6 + 0.7) / 4)


def test_the_report():
    total, valid = [0.1, 0.7, 0.4, 0.4, 0.9, 0.0], [True] * 5 + [False]
    reward = scored(total, valid, copy=[True, False, True, False, False, False])
    report = summary(candidates(6, 2), reward)
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
    report = summary(candidates(4, 2), scored([0.0] * 4, [False] * 4))
    unknown = {"reward", "half", "chosen_score", "rejected_score"}
    assert {name for name, value in report.items() if np.isnan(value)} == unknown
    assert report["failed"] == 1


# Rounds


def vowels(queries: list[str], rewrites: list[str]) -> Reward:
    counts = [sum(c in "aeiou" for c in text) for text in rewrites]
    return scored(np.array(counts, np.float32))


def rounds(submit, overlap, sampling=SAMPLING, n=2, finish=online.prefer):
    queries = Batches(QUERIES, list, batch_size=16 // n, seed=0)
    return online.OnlineRollouts(
        tiny.GPT2, tiny.tokenizer(), queries, submit, Reward, finish, sampling,
        candidates=n, overlap=overlap,
    )  # fmt: skip


@pytest.mark.parametrize("overlap", [False, True])
def test_which_parameters_drew_which_batch(overlap):
    asked = []

    def submit(queries, rewrites):
        asked.append((queries, rewrites))
        return sidecar.submit(queries, rewrites)

    with Sidecar(vowels) as sidecar:
        batches = rounds(submit, overlap, GREEDY)
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
        batches = rounds(sidecar.submit, True, n=4)
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
        batches = online.OnlineRollouts(
            tiny.GPT2, tiny.tokenizer(), queries, sidecar.submit, Reward, online.prefer,
            SAMPLING,
        )  # fmt: skip
        first, second = batches.next(STATES[0]), batches.next(STATES[0])
    np.testing.assert_array_equal(first.source, second.source)
    assert (first.chosen != second.chosen).any()


def test_queued_rounds_are_saved_with_their_rewards():
    with Sidecar(vowels) as sidecar:
        batches = rounds(sidecar.submit, True)
        batches.next(STATES[0])
        saved = batches.save()
        expected = [batches.next(state) for state in STATES[1:]]
        expected_report = batches.report()
        fresh = rounds(sidecar.submit, True)
        fresh.load(saved)
        again = [fresh.next(state) for state in STATES[1:]]
    tiny.assert_same_bits(again, expected)
    assert fresh.report() == expected_report


def test_a_search_engine_that_stays_down_costs_no_round():
    """The round that stopped the run is saved, and scored when the run goes on."""
    down = [True]

    def reward(queries, rewrites):
        if down[0]:
            raise ConnectionError("search engine is down")
        return vowels(queries, rewrites)

    with Sidecar(reward, max_consecutive_failures=1) as sidecar:
        batches = rounds(sidecar.submit, False)
        with pytest.raises(RuntimeError, match="search engine is down"):
            batches.next(STATES[0])
        saved = batches.save()
    down[0] = False
    with Sidecar(reward) as sidecar:
        fresh = rounds(sidecar.submit, False)
        fresh.load(saved)
        again = fresh.next(STATES[1])  # drawn before, by another state
        expected = rounds(sidecar.submit, False).next(STATES[0])
    tiny.assert_same_bits(again, expected)


def test_what_finishes_a_round_sees_all_of_it():
    """A policy gradient needs every candidate and its log-probability at the draw."""

    def keep(candidates, reward):
        return (candidates, reward.total), {"mine": 1.0}

    with Sidecar(vowels) as sidecar:
        batches = rounds(sidecar.submit, False, n=4, finish=keep)
        (pairs, logps), total = batches.next(STATES[0])
        report = batches.report()
    assert pairs.source.shape == (4, 16)
    assert pairs.target.shape == logps.shape == (16, 8)
    texts = tiny.tokenizer().decode(pairs.target, pairs.target_mask)
    assert total.tolist() == vowels([], texts).total.tolist()
    assert report["mine"] == 1
    assert report["reward"] == pytest.approx(total.mean())
    sources, targets = (
        [row[mask].tolist() for row, mask in zip(*columns, strict=True)]
        for columns in (pairs[:2], pairs[2:])
    )
    rows = [tiny.Row(sources[i // 4], target) for i, target in enumerate(targets)]
    expected = np.concatenate(tiny.token_logps(STATES[0].params, rows, width=24))
    np.testing.assert_allclose(logps[pairs.target_mask], expected, atol=1e-4)


def test_a_preference_needs_two():
    with pytest.raises(ValueError, match="candidates=1 per query: a preference needs"):
        online.prefer(candidates(4, 1), scored([0.1] * 4))
