"""Every step against its definition in numpy, from whole tables of logits."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.special import log_softmax, logsumexp
from tiny import EOS, SGD, compiled, copy_of, pairs, rows, start

from jaxqr.train import state as train_state
from jaxqr.train import steps
from jaxqr.types import LabeledBatch, Preferences

ROWS, OTHER_ROWS = rows(4), rows(4, seed=1)
CORPUS = rows(4, source=1, target=5, seed=2)
STUDENT, TEACHER, OLD = tiny.params(0), tiny.params(1), tiny.params(2)
TEACHER_STATIC = {"teacher": tiny.GPT2}
WEIGHT = np.array([1, 0, 1, 1], np.float32)


def take(step, batch, *frozen, params=STUDENT):
    """One step of gradient descent at rate 1: gradient and metrics."""
    state = start()._replace(params=copy_of(params))
    new, metrics = step(state, batch, *frozen)
    gradient = jax.tree.map(lambda a, b: np.asarray(a - b), params, new.params)
    return gradient, jax.device_get(metrics)


def assert_close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def assert_trees_close(actual, expected, tolerance=2e-5):
    jax.tree.map(lambda a, b: assert_close(a, b, tolerance), actual, expected)


def preferences(one, other, weight=WEIGHT, **padding):
    """`one` preferred to `other`, whose sources are taken from `one`."""
    batch, rejected = pairs(one, **padding), pairs(other, **padding)
    return Preferences(*batch, rejected.target, rejected.target_mask, weight)


def losers(one, other):
    """The rows of `other`, continuing the sources of `one`."""
    return [a._replace(target=b.target) for a, b in zip(one, other, strict=True)]


def on_tokens(values, width=8):
    """Lists of one number per target token -> `[B, T]`, 0 in the padding."""
    padded = np.zeros((len(values), width), np.float32)
    for line, numbers in zip(padded, values, strict=True):
        line[: len(numbers)] = numbers
    return padded


def minillm_batch(old=OLD, **padding):
    return steps.MiniLLMBatch(
        pairs(ROWS, **padding),
        on_tokens(tiny.token_logps(old, ROWS)),
        on_tokens(tiny.token_logps(TEACHER, ROWS)),
        pairs(CORPUS, **padding),
    )


SFT = compiled(steps.sft_step, SGD)
DPO = compiled(steps.dpo_step, SGD, beta=0.3)
DISTILL = {
    kind: compiled(
        steps.distill_step, SGD, **TEACHER_STATIC,
        kind=kind, beta=0.3, temperature=2.0, nll_weight=0.5,
    )
    for kind in ("forward_kl", "reverse_kl", "jsd")
}  # fmt: skip
MODES = {
    mode: compiled(
        steps.minillm_step, SGD, **TEACHER_STATIC, settings=steps.MiniLLM.mode(mode)
    )
    for mode in ("paper", "lmops")
}

# What each step is given, by the padding of its batch.
CASES = {
    "sft": (SFT, lambda **p: (pairs(ROWS, **p),)),
    "distill": (DISTILL["jsd"], lambda **p: (pairs(ROWS, **p), TEACHER)),
    "dpo": (DPO, lambda **p: (preferences(ROWS, OTHER_ROWS, **p),)),
    "dpo-frozen": (DPO, lambda **p: (preferences(ROWS, OTHER_ROWS, **p), TEACHER)),
    "minillm": (MODES["lmops"], lambda **p: (minillm_batch(**p), TEACHER)),
}


# What holds for all


@pytest.mark.parametrize("name", CASES)
def test_padding_changes_nothing(name):
    step, batch = CASES[name]
    gradient, metrics = take(step, *batch())
    # Wider batches have a shape of their own: one step's compilation stands for all.
    wider = [{"source": 9, "target": 11}] if name == "sft" else []
    for padding in ({}, *wider):
        other_gradient, other_metrics = take(step, *batch(garbage=9, **padding))
        assert_close(other_metrics["loss"], metrics["loss"])
        assert_trees_close(other_gradient, gradient)


@pytest.mark.parametrize("name", CASES)
def test_a_step_compiles_once_and_moves_the_state(name):
    step, batch = CASES[name]
    take(step, *batch())
    programs = step._cache_size()
    state = start(seed=3)
    for count in range(1, 4):
        given, before = batch(garbage=count), state
        keys = jax.random.key_data(jax.random.split(state.key))
        state, metrics = step(state, *given)
        assert int(state.step) == count
        # It goes on with one half of its key; sampling has the other.
        assert (jax.random.key_data(state.key) == keys[0]).all()
        # The state was given away, the frozen parameters were not.
        assert all(x.is_deleted() for x in jax.tree.leaves(before.params))
        assert not any(
            isinstance(x, jax.Array) and x.is_deleted() for x in jax.tree.leaves(given)
        )
        assert all(np.ndim(x) == 0 for x in metrics.values())
        assert np.isfinite(list(jax.device_get(metrics).values())).all()
    assert step._cache_size() == programs


def test_the_gradient_norm_is_that_of_the_gradient():
    gradient, metrics = take(SFT, pairs(ROWS))
    squares = [np.square(np.float64(x)).sum() for x in jax.tree.leaves(gradient)]
    assert_close(metrics["grad_norm"], np.sqrt(sum(squares)))


# Supervised


def test_sft_is_the_mean_over_target_tokens():
    _, metrics = take(SFT, pairs(ROWS))
    logps = np.concatenate(tiny.token_logps(STUDENT, ROWS))
    assert metrics["tokens"] == len(logps)
    assert_close(metrics["loss"], -logps.mean())


def test_micro_batches_add_up_to_the_batch():
    batch = pairs(ROWS)
    first_two = np.arange(4)[:, None] < 2
    (whole, metrics), (one, first), (two, second) = (
        take(SFT, batch._replace(target_mask=batch.target_mask & rows))
        for rows in (True, first_two, ~first_two)
    )
    assert first["tokens"] != second["tokens"]
    shares = [part["tokens"] / metrics["tokens"] for part in (first, second)]
    mixed = jax.tree.map(lambda a, b: shares[0] * a + shares[1] * b, one, two)
    assert_trees_close(mixed, whole)
    assert_close(
        shares[0] * first["loss"] + shares[1] * second["loss"], metrics["loss"]
    )


def test_a_batch_without_targets_moves_nothing():
    batch = pairs(ROWS)
    gradient, metrics = take(SFT, batch._replace(target_mask=batch.target_mask & False))
    assert metrics["loss"] == metrics["tokens"] == 0
    assert all((x == 0).all() for x in jax.tree.leaves(gradient))


# Distillation


def kl(p, q):
    return np.sum(np.exp(p) * (p - q), axis=-1)


def defined_divergence(kind, q, p, beta=0.3):
    if kind == "forward_kl":
        return kl(p, q)
    if kind == "reverse_kl":
        return kl(q, p)
    mixture = np.log(beta * np.exp(p) + (1 - beta) * np.exp(q))
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


@pytest.mark.parametrize("kind", DISTILL)
def test_distillation_is_its_divergence_and_nll(kind):
    _, metrics = take(DISTILL[kind], pairs(ROWS), TEACHER)
    q, p = (np.concatenate(tiny.next_logps(x, ROWS)) for x in (STUDENT, TEACHER))
    q, p = (log_softmax(logps / 2.0, axis=-1) for logps in (q, p))
    divergence = defined_divergence(kind, q, p).mean()
    nll = -np.concatenate(tiny.token_logps(STUDENT, ROWS)).mean()
    assert divergence > 0.01
    assert_close(metrics["divergence"], divergence)
    assert_close(metrics["nll"], nll)
    assert_close(metrics["loss"], divergence + 0.5 * nll)


# MiniLLM


def defined_minillm(mode, student, old):
    """algorithms.md's section on MiniLLM, token by token."""
    q_old, p = tiny.token_logps(old, ROWS), tiny.token_logps(TEACHER, ROWS)
    returns = []
    for qs, ps in zip(q_old, p, strict=True):
        r = ps - qs
        if mode == "paper":
            after = [r[t + 1 :] for t in range(len(r))]
            returns.append([x.sum() / max(len(x), 1) for x in after])
        else:
            r = np.clip(r / 0.5, -100, 100)
            here = [r[t:] @ 0.95 ** np.arange(len(r) - t) for t in range(len(r))]
            returns.append([x / (len(r) - t) for t, x in enumerate(here)])
    advantages = np.concatenate(returns)
    mean_return = advantages.mean()
    if mode == "lmops":
        advantages = (advantages - mean_return) / np.sqrt(advantages.var() + 1e-8)
    q_old, p = np.concatenate(q_old), np.concatenate(p)
    w = np.exp(q_old) / (0.8 * np.exp(q_old) + 0.2 * np.exp(p))
    rho = np.exp(np.concatenate(tiny.token_logps(student, ROWS)) - q_old) * w
    clipped = np.clip(rho, 0.8, 1.2)
    policy = np.maximum(-advantages * rho, -advantages * clipped).mean()
    tables = (np.concatenate(tiny.next_logps(x, ROWS)) for x in (student, TEACHER))
    reverse_kl = kl(*tables).mean()
    corpus_nll = -np.concatenate(tiny.token_logps(student, CORPUS)).mean()
    return {
        "policy": policy,
        "reverse_kl": reverse_kl,
        "corpus_nll": corpus_nll,
        "return": mean_return,
        "ratio": rho.mean(),
        "clip_fraction": (-advantages * clipped > -advantages * rho).mean(),
        "loss": policy + reverse_kl + corpus_nll,
        "tokens": len(p),
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("old", [STUDENT, OLD], ids=["same", "moved"])
def test_minillm_is_its_definition(mode, old):
    _, metrics = take(MODES[mode], minillm_batch(old), TEACHER)
    expected = defined_minillm(mode, STUDENT, old)
    assert old is STUDENT or expected["clip_fraction"] > 0
    for name, value in expected.items():
        assert_close(metrics[name], value, 1e-4)


def test_minillms_gradient_is_the_slope_of_its_loss():
    """What was sampled is a constant; the student's move is not."""
    gradient, _ = take(MODES["paper"], minillm_batch(), TEACHER)
    norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(gradient)))
    direction = jax.tree.map(lambda x: x / norm, gradient)

    def loss(size):
        moved = jax.tree.map(lambda x, d: x + size * d, STUDENT, direction)
        return defined_minillm("paper", moved, OLD)["loss"]

    slope = (loss(1e-3) - loss(-1e-3)) / 2e-3
    assert_close(slope, norm, 1e-2)


def test_minillms_modes():
    assert steps.MiniLLM.mode("paper", clip=0.1).clip == 0.1
    with pytest.raises(ValueError, match="mode='author' is not one of"):
        steps.MiniLLM.mode("author")


# Preferences


def sequence_logps(params, rows):
    return np.array([logps.sum() for logps in tiny.token_logps(params, rows)])


@pytest.mark.parametrize("reference", [None, TEACHER], ids=["none", "frozen"])
def test_dpo_is_its_equation(reference):
    rejected = losers(ROWS, OTHER_ROWS)
    frozen = () if reference is None else (reference,)
    _, metrics = take(DPO, preferences(ROWS, OTHER_ROWS), *frozen)
    chosen, lost = (sequence_logps(STUDENT, x) for x in (ROWS, rejected))
    reward = 0.3 * (chosen - lost)
    if reference is not None:
        above = [sequence_logps(reference, x) for x in (ROWS, rejected)]
        reward -= 0.3 * (above[0] - above[1])
    kept = WEIGHT > 0
    loss = np.log1p(np.exp(-reward[kept])).mean()
    assert_close(metrics["loss"], loss, 1e-4)
    assert_close(metrics["margin"], reward[kept].mean(), 1e-4)
    assert_close(metrics["accuracy"], (reward[kept] > 0).mean())
    assert_close(metrics["chosen_logp"], chosen.mean(), 1e-4)
    assert_close(metrics["rejected_logp"], lost.mean(), 1e-4)
    assert metrics["pairs"] == 3
    assert metrics["tokens"] == sum(len(r.target) for r in ROWS + rejected)


def test_a_reference_is_a_constant():
    """At the reference itself the loss is log 2, and its gradient is not 0."""
    gradient, metrics = take(DPO, preferences(ROWS, OTHER_ROWS), STUDENT)
    assert_close(metrics["loss"], np.log(2))
    # d/dx -log sigmoid(x) = -1/2 at 0: the slope of the chosen minus the rejected.
    free, at = take(DPO, preferences(ROWS, OTHER_ROWS))
    assert metrics["grad_norm"] > 0.1
    assert at["loss"] != metrics["loss"]
    assert jax.tree.structure(free) == jax.tree.structure(gradient)


def test_dropped_pairs_have_no_effect():
    gradient, metrics = take(DPO, preferences(ROWS, OTHER_ROWS))
    swapped = [ROWS[0], OTHER_ROWS[2], *ROWS[2:]]  # another pair where the weight is 0
    other_gradient, other = take(DPO, preferences(swapped, OTHER_ROWS))
    assert_trees_close(other_gradient, gradient, 1e-6)
    assert_close(other["loss"], metrics["loss"], 1e-6)
    heavy, _ = take(DPO, preferences(swapped, OTHER_ROWS, np.ones(4, np.float32)))
    leaves = zip(*map(jax.tree.leaves, (heavy, gradient)), strict=True)
    assert max(np.abs(a - b).max() for a, b in leaves) > 1e-3


def test_a_batch_of_ties_moves_nothing():
    batch = preferences(ROWS, OTHER_ROWS, np.zeros(4, np.float32))
    gradient, metrics = take(DPO, batch)
    assert metrics["loss"] == metrics["pairs"] == 0
    assert np.isfinite(list(metrics.values())).all()
    assert all((x == 0).all() for x in jax.tree.leaves(gradient))


# Classes


def labelled(seed=0, padding=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(8 + padding)[None] < np.array([8, 3, 1, 6])[:, None]
    tokens = rng.integers(0, tiny.VOCAB, mask.shape).astype(np.int32)
    segments = rng.integers(0, 2, mask.shape).astype(np.int32)
    label = np.array([0, 1, 2, 3], np.int32)
    return LabeledBatch(tokens, mask, segments, label)


def test_classification_is_cross_entropy():
    params = jax.tree.map(
        lambda x: 8 * x, tiny.models.init(tiny.BERT, jax.random.key(0))
    )
    step = steps.compile_step(steps.classify_step, model=tiny.BERT, optimizer=SGD)
    batch = labelled()
    state = train_state.create(params, SGD, jax.random.key(0))
    losses = []
    for count in range(3):
        logits = golden.apply(tiny.BERT, state.params, *batch[:3], method="classify")
        logps = log_softmax(np.float64(logits), axis=-1)
        before = state
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        assert_close(metrics["loss"], -logps[np.arange(4), batch.label].mean())
        correct = logps.argmax(axis=-1) == batch.label
        assert_close(metrics["accuracy"], correct.mean())
        assert int(state.step) == count + 1
        assert all(x.is_deleted() for x in jax.tree.leaves(before.params))
    assert step._cache_size() == 1
    assert losses[2] != losses[0]


# Measurement


def test_measured_sums_are_those_of_the_tables():
    measure = steps.compile_step(
        steps.measure, donate=False, model=tiny.GPT2, other=tiny.GPT2
    )
    tables, others = (tiny.next_logps(x, ROWS) for x in (STUDENT, TEACHER))
    measured = measure(STUDENT, pairs(ROWS), TEACHER)
    for _ in range(2):  # nothing was donated
        measured = measure(STUDENT, pairs(ROWS, garbage=4), TEACHER)
    assert measure._cache_size() == 1
    assert measured.tokens.tolist() == [len(r.target) for r in ROWS]
    assert_close(measured.nll, -sequence_logps(STUDENT, ROWS), 1e-4)
    assert_close(measured.entropy, [-(np.exp(q) * q).sum() for q in tables], 1e-4)
    divergence = [kl(q, p).sum() for q, p in zip(tables, others, strict=True)]
    assert_close(measured.reverse_kl, divergence, 1e-4)
    alone = measure(STUDENT, pairs(ROWS))
    assert (alone.reverse_kl == 0).all()
    assert_close(alone.nll, measured.nll, 1e-6)


def test_the_tables_are_distributions():
    """The reference is itself in order, and knows no padding."""
    tables = tiny.next_logps(STUDENT, ROWS)
    for table, row in zip(tables, ROWS, strict=True):
        assert table.shape == (len(row.target), tiny.VOCAB)
        assert_close(logsumexp(table, axis=-1), 0)
        assert table.max() > np.log(3 / tiny.VOCAB)
    (alone,) = tiny.next_logps(STUDENT, ROWS[2:3], width=13)
    assert_close(alone, tables[2])
    assert EOS == 0


# The optimiser


def test_schedules():
    for schedule, last in (("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)):
        optimizer = train_state.adamw(
            0.5, 20, warmup=0.2, schedule=schedule, weight_decay=0.0, clip=1e9
        )
        params = {"w": jnp.ones((2, 2))}
        state = optimizer.init(params)
        sizes = []
        for _ in range(21):
            updates, state = optimizer.update(params, state, params)
            sizes.append(-float(updates["w"][0, 0]))  # Adam's direction is 1
        assert_close(sizes[:5], [0, 0.125, 0.25, 0.375, 0.5], 1e-5)
        assert_close(sizes[20], 0.5 * last, 1e-5)
        assert (np.diff(sizes[4:]) <= 1e-6).all()
    with pytest.raises(ValueError, match="schedule='warm' is not one of"):
        train_state.adamw(1.0, 10, schedule="warm")


def test_weight_decay_is_for_matrices_and_the_clip_for_the_whole():
    optimizer = train_state.adamw(1.0, 10, warmup=0.1, schedule="constant", clip=1e-3)
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    state = optimizer.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):  # the first is at rate 0
        updates, state = optimizer.update(zeros, state, params)
    assert_close(updates["w"], np.full((2, 2), -0.01), 1e-6)
    assert_close(updates["b"], np.zeros(2), 1e-6)
