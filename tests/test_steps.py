"""Every step against its definition in numpy, from whole tables of logits."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.special import log_softmax, logsumexp
from step_cases import (
    ADVANTAGES,
    CORPUS,
    OTHER_ROWS,
    ROWS,
    WEIGHT,
    cases,
    labeled,
    minillm_batch,
    preferences,
)
from tiny import EOS, SGD, compiled, copy_of, pairs, start

from jaxqr.train import state as train_state
from jaxqr.train import steps

STUDENT, TEACHER = tiny.params(0), tiny.params(1)
CASES = cases()
SFT, DPO = CASES["sft"].step, CASES["dpo"].step
KINDS, MODES = ("forward_kl", "reverse_kl", "jsd"), ("paper", "lmops")


def take(step, batch, *frozen, params=STUDENT):
    """One step of gradient descent at rate 1: gradient and metrics."""
    state = start()._replace(params=copy_of(params))
    new, metrics = step(state, batch, {}, *frozen)
    gradient = jax.tree.map(lambda a, b: np.asarray(a - b), params, new.params)
    return gradient, jax.device_get(metrics)


def take_case(name, **padding):
    step, batch, frozen = CASES[name]
    return take(step, batch(**padding), *([TEACHER] if frozen else []))


def assert_close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def assert_trees_close(actual, expected, tolerance=2e-5):
    jax.tree.map(lambda a, b: assert_close(a, b, tolerance), actual, expected)


def losers(one, other):
    """The rows of `other`, continuing the sources of `one`."""
    return [a._replace(target=b.target) for a, b in zip(one, other, strict=True)]


# What holds for all


@pytest.mark.parametrize("name", CASES)
def test_padding_changes_nothing(name):
    gradient, metrics = take_case(name)
    # Wider batches have a shape of their own: one step's compilation stands for all.
    wider = [{"source": 9, "target": 11}] if name == "sft" else []
    for padding in ({}, *wider):
        other_gradient, other_metrics = take_case(name, garbage=9, **padding)
        assert_close(other_metrics["loss"], metrics["loss"])
        assert_trees_close(other_gradient, gradient)


@pytest.mark.parametrize("name", CASES)
def test_a_step_compiles_once_and_moves_the_state(name):
    step, batch, frozen = CASES[name]
    teacher = [TEACHER] if frozen else []
    take(step, batch(), *teacher)
    programs = step._cache_size()
    state = start(seed=3)
    for count in range(1, 4):
        given, before = batch(garbage=count), state
        keys = jax.random.key_data(jax.random.split(state.key))
        state, metrics = step(state, given, {}, *teacher)
        assert int(state.step) == count
        # It goes on with one half of its key; sampling has the other.
        assert (jax.random.key_data(state.key) == keys[0]).all()
        # The state was given away, the frozen parameters were not.
        assert all(x.is_deleted() for x in jax.tree.leaves(before.params))
        assert not any(
            isinstance(x, jax.Array) and x.is_deleted()
            for x in jax.tree.leaves((given, teacher))
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


@pytest.mark.parametrize("kind", KINDS)
def test_distillation_is_its_divergence_and_nll(kind):
    _, metrics = take_case(f"distill-{kind}")
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
@pytest.mark.parametrize("old", [0, 2], ids=["same", "moved"])
def test_minillm_is_its_definition(mode, old):
    step = CASES[f"minillm-{mode}"].step
    _, metrics = take(step, minillm_batch(old=old), TEACHER)
    expected = defined_minillm(mode, STUDENT, tiny.params(old))
    assert old == 0 or expected["clip_fraction"] > 0
    for name, value in expected.items():
        assert_close(metrics[name], value, 1e-4)


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


# Policy gradients


def test_a_policy_gradient_is_its_equation():
    gradient, metrics = take_case("policy_gradient")
    logps = [x.sum() for x in tiny.token_logps(STUDENT, ROWS)]
    tokens = sum(len(row.target) for row in ROWS)
    assert metrics["tokens"] == tokens
    assert_close(metrics["loss"], -(ADVANTAGES * logps).sum() / tokens)
    assert_close(metrics["advantage"], ADVANTAGES.mean())
    # A row of advantage 0 has no gradient.
    step, batch = CASES["policy_gradient"].step, CASES["policy_gradient"].batch()
    target = batch.pairs.target.copy()
    target[2] = OTHER_ROWS[0].target[0]
    changed = batch._replace(pairs=batch.pairs._replace(target=target))
    assert_trees_close(take(step, changed)[0], gradient, 1e-6)


# Classes


def test_classification_is_cross_entropy():
    params = jax.tree.map(
        lambda x: 8 * x, tiny.models.init(tiny.BERT, jax.random.key(0))
    )
    step = compiled(steps.classify_step, SGD, tiny.BERT)
    batch = labeled()
    state = train_state.create(params, SGD, jax.random.key(0))
    losses = []
    for count in range(3):
        logits = golden.apply(tiny.BERT, state.params, *batch[:3], method="classify")
        logps = log_softmax(np.float64(logits), axis=-1)
        before = state
        state, metrics = step(state, batch, {})
        losses.append(float(metrics["loss"]))
        share = np.float64(batch.weight) / batch.weight.sum()
        assert_close(metrics["loss"], -logps[np.arange(4), batch.label] @ share)
        correct = logps.argmax(axis=-1) == batch.label
        assert_close(metrics["accuracy"], correct @ share)
        assert int(state.step) == count + 1
        assert all(x.is_deleted() for x in jax.tree.leaves(before.params))
    assert step._cache_size() == 1
    assert losses[2] != losses[0]


# The reference


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


# The optimizer


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
