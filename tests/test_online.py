"""Rounds that are scored: who drew them, and what is preferred to what."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxqr import losses
from jaxqr.data.pipeline import Batches
from jaxqr.decode import Sampling
from jaxqr.records import Reward
from jaxqr.rewards.pool import ScoringPool
from jaxqr.train.checkpoint import Checkpoints
from jaxqr.train.rollouts import finish, online
from jaxqr.train.rollouts.draw import Candidates, Samples
from jaxqr.types import Pairs

SAMPLING = Sampling(16, 8)
GREEDY = SAMPLING._replace(temperature=0.0)
QUERIES = [query for query, _ in tiny.TRAIN]
STATES = [tiny.state_of(seed) for seed in range(3)]


def greedy(state, queries):
    rewrites = (
        tiny.lm()
        .with_params(state.params)
        .rewrite(queries, sampling=GREEDY, batch_size=16)
    )
    return [rewrite.text for (rewrite,) in rewrites]


# Best against worst


def candidates(rows, n):
    """Candidate r has tokens r + 1 and is r % 3 + 1 long; query q has tokens q."""
    tokens = np.repeat(np.arange(1, rows + 1, dtype=np.int32)[:, None], 4, axis=1)
    mask = np.arange(4)[None] <= (np.arange(rows) % 3)[:, None]
    source = np.repeat(np.arange(rows // n, dtype=np.int32)[:, None], 4, axis=1)
    pairs = Pairs(source, source >= 0, tokens, mask)
    sources = [f"query {row // n}" for row in range(rows)]
    texts = [f"candidate {row}" for row in range(rows)]
    return Candidates(sources, texts, pairs, np.zeros(tokens.shape, np.float32))


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
    return online._summary(candidates, reward) | finish.prefer(candidates, reward)[1]


def winners(batch):
    """(best, worst, weight) by number of candidate, counted from 0."""
    columns = batch.chosen[:, 0] - 1, batch.rejected[:, 0] - 1, batch.weight
    return [tuple(row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def test_the_better_of_two_is_chosen():
    batch, _ = finish.prefer(candidates(6, 2), scored([0.1, 0.7, 0.9, 0.2, 0.5, 0.5]))
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
    batch, _ = finish.prefer(candidates(8, 4), scored(total))
    assert winners(batch)[0] == (1, 2, 1.0)
    assert batch.weight.tolist() == [1, 0]


def test_what_was_not_scored_is_neither_best_nor_worst():
    # The zeros of failed rows must not become the worst, nor NaN the best.
    total = [0.0, 0.9, 0.4, 0.6] + [0.0, 0.0, 0.7, 0.0] + [0.0] * 4
    valid = [False, True, True, True] + [False, False, True, False] + [False] * 4
    reward = scored(total, valid)
    batch, _ = finish.prefer(candidates(12, 4), reward)
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


def rounds(submit, lag, sampling=SAMPLING, n=2, finish=finish.prefer):
    queries = Batches(QUERIES, list, batch_size=16 // n, seed=0)
    draw = Samples(tiny.lm(7), queries, sampling, n=n)
    return online.OnlineRollouts(draw, submit, finish, lag=lag)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_which_parameters_drew_which_batch(lag):
    asked = []

    def submit(queries, rewrites):
        asked.append((queries, rewrites))
        return pool.submit(queries, rewrites)

    with ScoringPool(vowels) as pool:
        batches = rounds(submit, lag, GREEDY)
        sizes, trained = [], []
        for state in STATES:
            trained.append(batches.next(state))
            sizes.append(len(asked))
    assert sizes == [lag + 1, lag + 2, lag + 3]
    # Round r was drawn by the state of `lag` steps before its own.
    drawn_by = [STATES[0]] * lag + STATES
    order = Batches(QUERIES, list, batch_size=8, seed=0)
    for (queries, rewrites), state in zip(asked, drawn_by, strict=True):
        assert queries[::2] == queries[1::2] == order.next(None)
        assert rewrites == greedy(state, queries)
        assert any(greedy(other, queries) != greedy(state, queries) for other in STATES)
    # Steps are trained on the rounds in turn.
    for batch, (queries, rewrites) in zip(trained, asked, strict=False):
        prompts = tiny.tokenizer().source(queries[::2], 16)
        assert [s[m].tolist() for s, m in zip(*batch[:2], strict=True)] == prompts
        chosen = tiny.tokenizer().decode(batch.chosen, batch.chosen_mask)
        assert chosen == rewrites[::2]
        assert (batch.weight == 0).all()  # greedy candidates are equal


def test_candidates_differ_and_the_best_is_chosen():
    with ScoringPool(vowels) as pool:
        batches = rounds(pool.submit, True, n=4)
        first = batches.next(STATES[0])
        report = batches.report()
    assert first.chosen.shape == first.rejected.shape == (4, 8)
    chosen, rejected = (
        vowels([], tiny.tokenizer().decode(*columns)).total
        for columns in (
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
    with ScoringPool(vowels) as pool:
        draw = Samples(tiny.lm(), queries, SAMPLING, n=2)
        batches = online.OnlineRollouts(draw, pool.submit, finish.prefer)
        first, second = batches.next(STATES[0]), batches.next(STATES[0])
    np.testing.assert_array_equal(first.source, second.source)
    assert (first.chosen != second.chosen).any()


def test_queued_rounds_are_saved_with_their_rewards():
    with ScoringPool(vowels) as pool:
        batches = rounds(pool.submit, True)
        batches.next(STATES[0])
        saved = batches.save()
        expected = [batches.next(state) for state in STATES[1:]]
        expected_report = batches.report()
        fresh = rounds(pool.submit, True)
        fresh.load(saved)
        again = [fresh.next(state) for state in STATES[1:]]
    tiny.assert_same_bits(again, expected)
    assert fresh.report() == expected_report


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("limit", [1, 3])
def test_a_search_engine_that_stays_down_costs_no_round(limit, lag):
    """The rounds that stopped the run are saved, and scored when the run goes on."""
    down = [True]

    def reward(queries, rewrites):
        if down[0]:
            raise ConnectionError("search engine is down")
        return vowels(queries, rewrites)

    states = [*STATES, *STATES]
    with ScoringPool(reward, max_consecutive_failures=limit) as pool:
        batches = rounds(pool.submit, lag)
        for state in states[: limit - 1]:  # failures that may happen
            assert (batches.next(state).weight == 0).all()
        with pytest.raises(RuntimeError, match="search engine is down"):
            batches.next(states[limit - 1])
        saved = batches.save()
    down[0] = False
    with ScoringPool(reward) as pool:
        fresh = rounds(pool.submit, lag)
        fresh.load(saved)
        again = fresh.next(STATES[1])  # drawn before, by another state
        unbroken = rounds(pool.submit, lag)
        for state in states[:limit]:
            expected = unbroken.next(state)
    assert expected.weight.any()
    tiny.assert_same_bits(again, expected)


def test_a_failure_that_may_happen_is_the_same_after_it_was_saved():
    """Whoever asks first, the save or the step: the batch counts for nothing."""
    failing = [False]

    def reward(queries, rewrites):
        if failing[0]:
            raise ConnectionError("search engine is down")
        return vowels(queries, rewrites)

    with ScoringPool(reward) as pool:

        def submit(queries, rewrites):
            pending = pool.submit(queries, rewrites)
            pending._done.wait()
            return pending

        batches = rounds(submit, True)
        failing[0] = False
        batches.next(STATES[0])  # draws two rounds
        failing[0] = True
        batches.next(STATES[1])  # and a third, whose scoring fails
        failing[0] = False
        saved = batches.save()
        expected = [batches.next(state) for state in STATES[1:]]
        fresh = rounds(submit, True)
        fresh.load(saved)
        again = [fresh.next(state) for state in STATES[1:]]
    assert (expected[0].weight == 0).all()
    assert expected[1].weight.any()
    tiny.assert_same_bits(again, expected)


def test_what_finishes_a_round_sees_all_of_it():
    """A policy gradient needs every candidate and its log-probability at the draw."""

    def keep(candidates, reward):
        return (candidates, reward.total), {"mine": 1.0}

    with ScoringPool(vowels) as pool:
        batches = rounds(pool.submit, False, n=4, finish=keep)
        drawn, total = batches.next(STATES[0])
        report = batches.report()
    pairs, logps = drawn.pairs, drawn.logps
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
    with pytest.raises(ValueError, match="candidates=1 per source: a preference needs"):
        finish.prefer(candidates(4, 1), scored([0.1] * 4))


# Advantages


def test_advantages_are_differences_to_the_sources_other_candidates():
    """By hand: two sources of three candidates, one of them not scored."""
    total = [0.9, 0.3, 0.6, 0.2, 9.0, 0.8]
    reward = scored(total, [True, True, True, True, False, True])
    drawn = candidates(6, 3)
    batch, report = finish.advantages(drawn, reward, kind="rloo")
    expected = [0.45, -0.45, 0.0, -0.6, 0.0, 0.6]
    np.testing.assert_allclose(batch.advantages, expected, atol=1e-6)
    assert batch.advantages.dtype == np.float32
    assert batch.pairs is drawn.pairs
    assert report == pytest.approx(
        {"advantage_std": np.std(expected), "tied": 0.0}
        | {"chosen_score": (0.9 + 0.8) / 2, "rejected_score": (0.3 + 0.2) / 2}
    )
    batch, _ = finish.advantages(drawn, reward)  # GRPO's: over the deviation
    deviation = np.sqrt(0.18 / 3)
    expected = [0.3 / deviation, -0.3 / deviation, 0.0, -1.0, 0.0, 1.0]
    np.testing.assert_allclose(batch.advantages, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["grpo", "rloo", "self_critical", "none"])
def test_advantages_are_those_of_the_losses(kind):
    rng = np.random.default_rng(0)
    total = rng.random(12).astype(np.float32)
    valid = np.array(4 * [True, True, False], bool)
    valid[9:] = False  # a source of which nothing is known
    reward = scored(np.where(valid, total, np.nan), valid)
    batch, _ = finish.advantages(candidates(12, 3), reward, kind=kind)
    expected = losses.group_advantages(
        jnp.asarray(np.where(valid, total, 0).reshape(4, 3)),
        kind=kind,
        valid=jnp.asarray(valid.reshape(4, 3)),
    )
    np.testing.assert_array_equal(batch.advantages, np.ravel(expected))
    assert (batch.advantages[~valid] == 0).all()
    assert batch.advantages[:9].any()


# What a policy with a value head draws


def test_values_and_reference_log_probabilities_survive_a_checkpoint(tmp_path):
    """A draw may fill them in; a queued round has them after the checkpoint."""

    class Valued(Samples):
        def __call__(self, state):
            drawn = super().__call__(state)
            return drawn._replace(values=drawn.logps / 3, ref_logps=drawn.logps - 1)

    def make(pool):
        queries = Batches(QUERIES, list, batch_size=8, seed=0)
        draw = Valued(tiny.lm(), queries, SAMPLING, n=2)

        def everything(candidates, reward):
            return (candidates, reward.total), {}

        return online.OnlineRollouts(draw, pool.submit, everything)

    checkpoints = Checkpoints(tmp_path)
    with ScoringPool(vowels) as pool:
        batches = make(pool)
        batches.next(STATES[0])
        state = tiny.state_of(0, {"w": np.zeros(2, np.float32)})
        checkpoints.save(1, state, {"batches": batches.save()})
        _, host = checkpoints.restore(state)
        fresh = make(pool)
        fresh.load(host["batches"])
        (drawn, total), (expected, expected_total) = (
            x.next(STATES[1]) for x in (fresh, batches)
        )
    checkpoints.close()
    assert isinstance(drawn, Candidates)
    assert (drawn.sources, drawn.texts) == (expected.sources, expected.texts)
    tiny.assert_same_bits(drawn[2:], expected[2:])
    tiny.assert_same_bits(total, expected_total)
    np.testing.assert_array_equal(drawn.values, drawn.logps / np.float32(3))
