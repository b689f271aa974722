"""Batches that the policy draws: distillation's rollouts, and inner epochs."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
import tiny

from jaxqr import models
from jaxqr.data.pipeline import Batches, pair_batches
from jaxqr.decode import Sampling
from jaxqr.lm import LM
from jaxqr.train.checkpoint import Checkpoints
from jaxqr.train.rollouts.draw import OnPolicyPairs, Samples
from jaxqr.train.rollouts.minibatches import Minibatches
from jaxqr.train.rollouts.mixture import MixtureRollouts, WithCorpus

SAMPLING = Sampling(16, 8)
QUERIES = [query for query, _ in tiny.TRAIN]
STATES = [tiny.state_of(seed) for seed in range(3)]


def sources(batch_size=8):
    return Batches(QUERIES, list, batch_size=batch_size, seed=0)


def rows_of(pairs):
    """Unpadded, each target with its own source."""
    count = len(pairs.target) // len(pairs.source)
    given, targets = (
        [row[mask].tolist() for row, mask in zip(*columns, strict=True)]
        for columns in (pairs[:2], pairs[2:])
    )
    return [tiny.Row(given[i // count], target) for i, target in enumerate(targets)]


# The policy's own samples


def test_candidates_are_the_policys_own():
    draw = Samples(
        tiny.lm(7), sources(), SAMPLING, n=2
    )  # what it began as is no matter
    place = draw.save()
    drawn = draw(STATES[0])
    assert drawn.sources[::2] == drawn.sources[1::2] == sources().next(None)
    assert drawn.texts == tiny.tokenizer().decode(*drawn.pairs[2:])
    assert (drawn.values, drawn.ref_logps) == (None, None)
    expected = tiny.token_logps(STATES[0].params, rows_of(drawn.pairs), width=24)
    mask = drawn.pairs.target_mask
    np.testing.assert_allclose(drawn.logps[mask], np.concatenate(expected), atol=1e-4)
    assert (drawn.logps[~mask] == 0).all()

    draw.load(place)
    again = draw(STATES[0])
    tiny.assert_same_bits(again.pairs, drawn.pairs)
    draw.load(place)
    assert (draw(STATES[1]).pairs.target != drawn.pairs.target).any()


def test_a_policy_with_adapters_draws_with_its_base():
    """The state has the adapters alone; zero ones change nothing, others do."""
    plain = tiny.lm(0)
    adapted = models.build(plain.model.config.__class__(
        **vars(plain.model.config) | {"lora_rank": 2}
    ))  # fmt: skip
    lora = models.init(adapted, jax.random.key(0))["lora"]
    policy = LM(adapted, {**plain.params, "lora": lora}, plain.tokenizer)
    trained, _ = policy.partition()

    def drawn(lm, params):
        return Samples(lm, sources(), SAMPLING)(tiny.state_of(0, params)).pairs

    expected = drawn(plain, plain.params)
    tiny.assert_same_bits(drawn(policy, trained).target, expected.target)
    moved = jax.tree.map(lambda x: x + 1.0, trained)
    assert (drawn(policy, moved).target != expected.target).any()


def test_on_policy_pairs_continue_the_prompts():
    batches = OnPolicyPairs(Samples(tiny.lm(7), sources(), SAMPLING))
    place = batches.save()
    one = batches.next(STATES[0])
    prompts = tiny.tokenizer().source(sources().next(None), 16)
    assert [row.source for row in rows_of(one)] == prompts
    assert one.target.shape == one.target_mask.shape == (8, 8)
    following = batches.next(STATES[0])
    assert (following.source != one.source).any()
    batches.load(place)
    tiny.assert_same_bits(batches.next(STATES[0]), one)
    tiny.assert_same_bits(batches.next(STATES[0]), following)
    batches.load(place)
    assert (batches.next(STATES[1]).target != one.target).any()


# MiniLLM's mixture


def mixture(rollouts=16):
    return MixtureRollouts(
        tiny.lm(7), tiny.lm(5), sources(), SAMPLING, alpha=0.2, rollouts=rollouts
    )


def test_rollouts_are_of_the_mixture_and_have_both_log_probabilities():
    batches = mixture()
    place = batches.save()
    batch = batches.next(STATES[0])
    assert batch.pairs.source.shape == (16, 16)
    rows = rows_of(batch.pairs)
    order = sources()
    queries = order.next(None) + order.next(None)
    assert [row.source for row in rows] == tiny.tokenizer().source(queries, 16)
    mask = batch.pairs.target_mask
    for params, logps in (
        (STATES[0].params, batch.student_logps),
        (tiny.params(5), batch.teacher_logps),
    ):
        expected = np.concatenate(tiny.token_logps(params, rows, width=24))
        np.testing.assert_allclose(logps[mask], expected, atol=1e-4)
        assert (logps[~mask] == 0).all()
    # The parts of a batch are drawn with keys of their own.
    assert (batch.pairs.target[:8] != batch.pairs.target[8:]).any()
    batches.load(place)
    tiny.assert_same_bits(batches.next(STATES[0]), batch)


def test_rollouts_must_be_a_multiple_of_their_sources():
    with pytest.raises(
        ValueError, match="rollouts=12 is not a multiple of the 8 sources"
    ):
        mixture(rollouts=12).next(STATES[0])


@pytest.mark.parametrize(
    "change", [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.9}], ids=str
)
def test_a_mixture_is_drawn_as_its_weights_assume(change):
    with pytest.raises(ValueError, match="hold for samples at temperature 1"):
        MixtureRollouts(
            tiny.lm(), tiny.lm(), sources(), SAMPLING._replace(**change),
            alpha=0.2, rollouts=8,
        )  # fmt: skip


def with_corpus(epochs=3):
    corpus = tiny.tokenizer().plain([b for _, b in tiny.TRAIN], max_target=16)
    rollouts = Minibatches(mixture(), epochs=epochs, batch_size=8, seed=0)
    return WithCorpus(
        rollouts, pair_batches(corpus, batch_size=8, seed=1, fill=tiny.EOS)
    )


def content(batch):
    """Each rollout as bytes."""
    columns = (*batch.rollout, batch.student_logps, batch.teacher_logps)
    return [b"".join(x.tobytes() for x in row) for row in zip(*columns, strict=True)]


def test_every_rollout_is_used_once_per_inner_epoch():
    batches = with_corpus()
    first = [batches.next(STATES[0])]
    # Later parameters play no part until the rollouts are used up.
    first += [batches.next(STATES[1]) for _ in range(2)]
    saved = batches.save()
    first += [batches.next(STATES[1]) for _ in range(3)]
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
    # In the middle of an inner epoch, another process goes on with the same bits.
    fresh = with_corpus()
    fresh.load(saved)
    for expected in first[3:]:
        tiny.assert_same_bits(fresh.next(STATES[1]), expected)


# Inner epochs of anything


class Odd(NamedTuple):
    """A batch as nobody has it yet, with an axis of rows in every array."""

    numbers: np.ndarray
    deep: dict
    nothing: None = None


class Rounds:
    """Batches of 12 rows; row r of round k has the number 100 k + r."""

    def __init__(self, rows=12):
        self.taken, self.rows, self.states = 0, rows, []

    def next(self, state):
        self.states.append(state)
        numbers = 100 * self.taken + np.arange(self.rows)
        self.taken += 1
        deep = {"table": numbers[:, None] * np.ones(3), "more": [numbers % 2 == 0]}
        return Odd(numbers, deep)

    def report(self):
        return {"round": float(self.taken)}

    def save(self):
        return {"taken": self.taken}

    def load(self, saved):
        self.taken = saved["taken"]


def minibatches(rounds, epochs=2, batch_size=4, seed=0):
    return Minibatches(rounds, epochs=epochs, batch_size=batch_size, seed=seed)


def numbers(batches, count):
    """Of so many minibatches, in one list."""
    taken = [batches.next(STATES[0]).numbers for _ in range(count)]
    return np.concatenate(taken).tolist() if taken else []


def test_every_row_comes_once_per_epoch_in_an_order_of_its_own():
    rounds = Rounds()
    batches = minibatches(rounds)
    epochs = [numbers(batches, 3) for _ in range(6)]  # two of each round
    for i, epoch in enumerate(epochs):
        assert sorted(epoch) == [100 * (i // 2) + r for r in range(12)]
    assert rounds.taken == 3
    assert len({tuple(r % 100 for r in epoch) for epoch in epochs}) == 6
    assert numbers(minibatches(Rounds()), 3) == epochs[0]
    assert numbers(minibatches(Rounds(), seed=1), 3) != epochs[0]


def test_a_new_batch_is_of_the_state_that_asks_when_the_last_is_used_up():
    rounds = Rounds()
    batches = minibatches(rounds, epochs=1)
    for step in range(7):
        batches.next(STATES[0]._replace(step=np.int32(step)))
    assert [int(state.step) for state in rounds.states] == [0, 3, 6]


def test_rows_of_all_arrays_stay_together():
    batches = minibatches(Rounds())
    for _ in range(7):
        batch = batches.next(STATES[0])
        assert isinstance(batch, Odd)
        assert batch.nothing is None
        assert batch.numbers.shape == (4,)
        np.testing.assert_array_equal(
            batch.deep["table"], batch.numbers[:, None] * np.ones(3)
        )
        np.testing.assert_array_equal(batch.deep["more"][0], batch.numbers % 2 == 0)


def test_the_report_is_that_of_the_batch_in_use():
    batches = minibatches(Rounds(), epochs=1)
    reported = [numbers(batches, 1) and batches.report()["round"] for _ in range(4)]
    assert reported == [1, 1, 1, 2]
    silent = minibatches(Batches([1, 2], np.array, batch_size=2, seed=0), batch_size=2)
    assert silent.report() == {}


@pytest.mark.parametrize("used", [0, 1, 5, 6, 8])
def test_inner_epochs_go_on_where_they_were_saved(used, tmp_path):
    """Through a checkpoint, at the beginning, within and at the end of a batch."""
    batches = minibatches(Rounds())
    numbers(batches, used)
    checkpoints = Checkpoints(tmp_path)
    state = tiny.state_of(0, {"w": np.zeros(2, np.float32)})
    checkpoints.save(used, state, {"batches": batches.save()})
    _, host = checkpoints.restore(state)
    checkpoints.close()
    fresh = minibatches(Rounds())
    fresh.load(host["batches"])
    for _ in range(8):
        tiny.assert_same_bits(fresh.next(STATES[0]), batches.next(STATES[0]))


@pytest.mark.parametrize("batch_size", [5, 8, 24])
def test_minibatches_must_divide_their_batch(batch_size):
    with pytest.raises(
        ValueError, match=rf"12 rows.*batch_size={batch_size}: choose a divisor"
    ):
        minibatches(Rounds(), batch_size=batch_size).next(STATES[0])


def test_rows_that_cannot_be_split():
    class Uneven(Rounds):
        def next(self, state):
            return Odd(np.zeros(4), {"table": np.zeros((8, 2))})

    with pytest.raises(ValueError, match=r"arrays of 4 and 8 rows.*expected one"):
        minibatches(Uneven()).next(STATES[0])
    with pytest.raises(ValueError, match="a batch of 0 rows"):
        minibatches(Rounds(0)).next(STATES[0])
    for options in ({"epochs": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="expected 1 or more"):
            minibatches(Rounds(), **options)
