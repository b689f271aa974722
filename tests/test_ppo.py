"""PPO: its batches and its step by their definitions, and a task of known optimum.

In the task every text, and what it is worth, is listed: the policy writes one or two of
six tokens. With a penalty for the KL to its start the best policy is
pi(y) = ref(y) exp(r(y) / beta) / Z (Rafailov et al. 2023, eq. 4), and its objective is
beta log Z.
"""

import dataclasses
from functools import cache

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.special import logsumexp
from step_cases import ROWS, target_logps

from jaxqr import models, vocab
from jaxqr.data.pipeline import Batches
from jaxqr.decode import Sampling
from jaxqr.lm import LM
from jaxqr.models.value import ValueModel, init_value
from jaxqr.records import Reward
from jaxqr.train import state, steps
from jaxqr.train.checkpoint import Checkpoints
from jaxqr.train.rollouts.draw import (
    Candidates,
    ReferencedSamples,
    prompt_batch,
    read,
)
from jaxqr.train.rollouts.finish import PPO, advantages
from jaxqr.train.rollouts.minibatches import Minibatches
from jaxqr.train.rollouts.online import OnlineRollouts
from jaxqr.types import Pairs, TrainState

RNG = np.random.default_rng(0)


def valued(params, model=tiny.GPT2, seed=0):
    """The parameters with a value head of random numbers."""
    params = init_value(model, params)
    head = tiny.scrambled(params["value"], 0.3, seed)
    return {**params, "value": head}


def values_by_hand(model, params, batch):
    """The head's linear function of the states that predict the targets, [B T]."""
    features, _, _ = golden.apply(model, params, batch, method="completion")
    head = jax.tree.map(np.float64, params["value"])
    return np.float64(features.hidden[:, :-1]) @ head["kernel"] + head["bias"]


def test_no_array_of_all_logits():
    """The passes of a round and its step stay far below one [B, T, V] array."""
    rows, tokens, size = 512, 32, 16_384
    model = models.build(
        dataclasses.replace(tiny.GPT2.config, vocab_size=size, n_positions=64)
    )
    optimizer = state.adamw(1e-3, 10)

    def start(key):
        params = init_value(model, models.init(model, key))
        return TrainState(params, optimizer.init(params), key, jnp.int32(0))

    def some(dtype, width=tokens):
        return jax.ShapeDtypeStruct((rows, width), dtype)

    pairs = Pairs(*(some(kind, 16) for kind in (int, bool)), some(int), some(bool))
    shapes = jax.eval_shape(start, jax.random.key(0))
    numbers = (some(jnp.float32),) * 4
    step = steps.compile_step(steps.ppo_step, model=model, optimizer=optimizer)
    for compiled in (
        step.lower(shapes, steps.PPOBatch(pairs, *numbers), {}).compile(),
        read.lower(model, shapes.params, pairs).compile(),
    ):
        temporaries = compiled.memory_analysis().temp_size_in_bytes
        assert temporaries < rows * tokens * size * 4 / 2


# The value head


@pytest.mark.parametrize("model", [tiny.GPT2, tiny.T5], ids=["gpt2", "t5"])
def test_a_value_is_of_the_state_in_which_the_token_is_chosen(model):
    params, batch = valued(tiny.params(0, model=model), model), tiny.pairs(ROWS)
    complete = jax.jit(
        lambda params, batch: ValueModel(model).completion(params, batch)
    )
    _, values, tokens, mask = complete(params, batch)
    assert values.shape == tokens.shape == mask.shape
    assert (values[:, 0] == 0).all()
    by_hand = values_by_hand(model, params, batch)
    np.testing.assert_allclose(values[:, 1:], by_hand, rtol=1e-4, atol=1e-4)
    # The value of a token depends on what is before it, and on nothing after.
    last = batch._replace(target=np.array(batch.target))
    last.target[:, 1:] = 7
    changed = complete(params, last)[1]
    np.testing.assert_array_equal(values[:, :3], changed[:, :3])
    assert (values[:, 3:] != changed[:, 3:]).any()


def test_a_fresh_head_says_nothing_and_is_kept_with_the_model(tmp_path):
    lm = tiny.lm()
    fresh = init_value(lm.model, lm.params)
    assert set(fresh) == {"params", "value"}
    assert not any(jnp.any(x) for x in jax.tree.leaves(fresh["value"]))
    with_head = lm._replace(params=valued(lm.params))
    with_head.save(tmp_path)
    again = LM.load(tmp_path, value_head=True)
    tiny.assert_same_bits(again.params["value"], with_head.params["value"])
    # What reads the model alone finds what was there without a head.
    assert set(LM.load(tmp_path).params) == {"params"}
    bare = tmp_path / "bare"
    lm.save(bare)
    weights = "model.safetensors"
    assert (bare / weights).read_bytes() == (tmp_path / weights).read_bytes()
    assert not (bare / "value.safetensors").exists()
    # A head of another width is no head of this model.
    (tmp_path / "value.safetensors").replace(bare / "value.safetensors")
    other = dataclasses.replace(tiny.GPT2.config, n_embd=16)
    params = models.init(models.build(other), jax.random.key(0))
    LM(models.build(other), params, lm.tokenizer).save(bare)
    with pytest.raises(ValueError, match=r"value head of shapes .*32.*delete the file"):
        LM.load(bare, value_head=True)


def test_adapters_are_trained_with_the_head():
    params = {"params": 1, "lora": 2, "value": 3}
    trained, base = models.partition(params)
    assert (trained, base) == ({"lora": 2, "value": 3}, {"params": 1})
    assert models.combine(trained, base) == params
    assert models.partition({"params": 1, "value": 3}) == (
        {"params": 1, "value": 3},
        {},
    )


# Batches


def candidates(lengths=(3, 1, 2), **fields):
    """Rows of these many target tokens, with garbage where nothing counts."""
    rows, width = len(lengths), 4
    mask = np.arange(width) < np.array(lengths)[:, None]
    rng = np.random.default_rng(1)
    columns = {
        name: np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
        for name in ("logps", "values", "ref_logps")
    }
    source = np.ones((rows, 2), np.int32)
    target = rng.integers(0, 9, mask.shape).astype(np.int32)
    pairs = Pairs(source, source > 0, target, mask)
    names = [f"query {i}" for i in range(rows)]
    return Candidates(names, names, pairs, **(columns | fields))


def reward(totals, valid=None):
    valid = np.ones(len(totals), bool) if valid is None else np.array(valid)
    return Reward(np.float32(totals), {}, valid)


def by_hand(drawn, totals, kl_coef, gamma, lam):
    """Advantages and returns of each row, token by token, in float64."""
    found = []
    for i, mask in enumerate(drawn.pairs.target_mask):
        logps, ref, values = (
            np.float64(x[i][mask]) for x in (drawn.logps, drawn.ref_logps, drawn.values)
        )
        rewards = -kl_coef * (logps - ref)
        rewards[-1] += totals[i]
        after = np.append(values[1:], 0)
        deltas = rewards + gamma * after - values
        estimates = [
            sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:]))
            for t in range(len(deltas))
        ]
        found.append((np.array(estimates), np.array(estimates) + values, rewards))
    return found


def test_the_batch_by_hand():
    drawn, totals = candidates(), [0.5, -1.0, 2.0]
    finish = PPO(kl_coef=0.3, gamma=0.9, lam=0.8, whiten_advantages=False)
    batch, report = finish(drawn, reward(totals))
    expected = by_hand(drawn, totals, 0.3, 0.9, 0.8)
    for i, mask in enumerate(drawn.pairs.target_mask):
        for found, values in zip(
            (batch.advantages[i], batch.returns[i]), expected[i], strict=False
        ):
            np.testing.assert_allclose(found[mask], values, rtol=1e-5, atol=1e-6)
            assert (found[~mask] == 0).all()
    np.testing.assert_array_equal(batch.logps, drawn.logps)
    np.testing.assert_array_equal(batch.values, drawn.values)
    mask = drawn.pairs.target_mask
    d = np.float64(drawn.logps - drawn.ref_logps)[mask]
    returns = np.concatenate([r for _, r, _ in expected])
    rest = returns - drawn.values[mask]
    by_name = {
        "score": 0.5,
        "kl": d.sum() / 3,
        "kl_k3": (np.exp(-d) - 1 + d).sum() / 3,
        "return": sum(r.sum() for _, _, r in expected) / 3,
        "entropy": -drawn.logps[mask].mean(),
        "value": drawn.values[mask].mean(),
        "explained_variance": 1 - rest.var() / returns.var(),
        "kl_coef": 0.3,
    }
    assert report == pytest.approx(by_name, rel=1e-5)


def test_a_reward_reaches_the_last_token_to_the_last_bit():
    drawn = candidates(values=np.zeros((3, 4), np.float32))
    totals = np.float32([0.73, 1 / 3, -1e-7])
    finish = PPO(kl_coef=0.0, lam=1.0, whiten_advantages=False)
    batch, _ = finish(drawn, reward(totals))
    np.testing.assert_array_equal(batch.returns[:, 0], totals)


def test_a_row_that_failed_has_no_tokens():
    drawn = candidates()
    finish = PPO(kl_coef=0.3)
    batch, report = finish(drawn, reward([0.5, 99.0, 2.0], [True, False, True]))
    assert not batch.pairs.target_mask[1].any()
    rows = np.array([0, 2])
    kept = jax.tree.map(lambda x: x[rows], drawn.pairs)
    fields = {n: getattr(drawn, n)[rows] for n in ("logps", "values", "ref_logps")}
    alone = Candidates(["a", "b"], ["a", "b"], kept, **fields)
    expected, report_alone = finish(alone, reward([0.5, 2.0]))
    for found, wanted in zip(batch[1:], expected[1:], strict=True):
        np.testing.assert_allclose(found[rows], wanted, rtol=1e-5, atol=1e-6)
        assert (found[1] == 0).all()
    assert report == pytest.approx(report_alone, rel=1e-5)
    # Nothing at all is known: nothing is learned, and nothing is no number.
    batch, report = finish(drawn, reward([1.0, 2.0, 3.0], [False] * 3))
    assert not batch.pairs.target_mask.any()
    assert all((x == 0).all() for x in batch[1:])
    assert np.isfinite(list(report.values())).all()


def test_whitening():
    drawn, totals = candidates(), reward([5.0, -10.0, 20.0])
    mask = drawn.pairs.target_mask
    batch, _ = PPO(kl_coef=0.3)(drawn, totals)
    found = np.float64(batch.advantages[mask])
    assert (found.mean(), found.std()) == pytest.approx((0, 1), abs=1e-5)
    # Rewards keep their mean; so their signs go on meaning something.
    plain = by_hand(drawn, totals.total, 0.3, 1.0, 1.0)
    rewards = np.concatenate([r for _, _, r in plain])
    scaled = (rewards - rewards.mean()) / rewards.std() + rewards.mean()
    batch, _ = PPO(kl_coef=0.3, lam=1.0, whiten_rewards=True, whiten_advantages=False)(
        drawn, totals
    )
    starts = np.cumsum([0, 3, 1])
    sums = [scaled[s : s + n].sum() for s, n in zip(starts, (3, 1, 2), strict=True)]
    np.testing.assert_allclose(batch.returns[:, 0], sums, rtol=1e-4)


def test_the_coefficient_follows_its_target_and_is_saved():
    mask = candidates().pairs.target_mask
    far = np.where(mask, 1.0, 0).astype(np.float32)  # 6 tokens, so 2 nats per text
    drawn = candidates(logps=far, ref_logps=np.zeros_like(far))
    finish, totals = PPO(kl_coef=0.5, kl_target=1.0), reward([0.0, 0.0, 0.0])
    assert finish(drawn, totals)[1]["kl_coef"] == 0.5
    once = finish(drawn, totals)[1]["kl_coef"]
    assert once == pytest.approx(0.5 * 1.02)  # an error of 1 counts as 0.2
    saved = finish.save()
    twice = finish(drawn, totals)[1]["kl_coef"]
    finish.load(saved)
    assert finish(drawn, totals)[1]["kl_coef"] == twice == pytest.approx(once * 1.02)
    near = PPO(kl_coef=0.5, kl_target=2.0 / 0.9)
    near(drawn, totals)
    assert near.save()["kl_coef"] == pytest.approx(0.5 * 0.99)  # 10 % below it
    failed = PPO(kl_coef=0.5, kl_target=1.0)
    failed(drawn, reward([0.0] * 3, [False] * 3))
    assert failed.save()["kl_coef"] == 0.5  # nothing is known
    with pytest.raises(ValueError, match="kl_target=0"):
        PPO(kl_coef=0.5, kl_target=0.0)


def test_what_ppo_cannot_use_is_refused():
    finish, totals = PPO(kl_coef=0.1), reward([0.0, 0.0, 0.0])
    for name in ("values", "ref_logps"):
        with pytest.raises(ValueError, match="ReferencedSamples"):
            finish(candidates(**{name: None}), totals)
    drawn = candidates()
    pairs = drawn.pairs._replace(source=drawn.pairs.source[:1])
    with pytest.raises(ValueError, match=r"3 candidates of 1 sources.*n=1"):
        finish(drawn._replace(pairs=pairs), totals)
    with pytest.raises(ValueError, match="KL penalty needs a reference"):
        advantages(candidates(ref_logps=None), totals, kl_coef=0.1)
    with pytest.raises(ValueError, match="temperature 1 without truncation"):
        ReferencedSamples(
            tiny.lm(),
            tiny.lm(),
            Batches(SOURCES, list, batch_size=2, seed=0),
            Sampling(16, 2, top_k=5),
        )


def test_reinforce_compares_rewards_after_their_penalty():
    drawn = candidates((3, 1))
    pairs = drawn.pairs._replace(
        source=drawn.pairs.source[:1], source_mask=drawn.pairs.source_mask[:1]
    )
    totals = np.array([0.5, 0.2])
    batch, _ = advantages(
        drawn._replace(pairs=pairs), reward(totals), kind="rloo", kl_coef=0.3
    )
    d = np.float64(drawn.logps - drawn.ref_logps)
    worth = totals - 0.3 * np.sum(d, axis=1, where=pairs.target_mask)
    gap = worth[0] - worth[1]
    np.testing.assert_allclose(batch.advantages, [gap, -gap], rtol=1e-5)


# The step


def ppo_batch(model=tiny.GPT2, params=None):
    """Rollouts of other parameters than those that are trained, some of them far."""
    rng = np.random.default_rng(2)
    mask = tiny.pairs(ROWS).target_mask
    logps = target_logps(model, 0, lambda: tiny.pairs(ROWS))
    logps = logps + rng.choice([-0.5, -0.05, 0.05, 0.5], mask.shape) * mask
    columns = [np.where(mask, rng.normal(size=mask.shape), 0) for _ in range(3)]
    return steps.PPOBatch(tiny.pairs(ROWS), *map(np.float32, (logps, *columns)))


STEP = {"clip": 0.2, "value_clip": 0.3, "value_coef": 0.7, "entropy_coef": 0.05}


def take(batch, params, model=tiny.GPT2, **static):
    step = tiny.compiled(steps.ppo_step, tiny.SGD, model, **(STEP | static))
    before = state.create(params, tiny.SGD, jax.random.key(0))
    after, metrics = step(before, batch, {})
    return after, jax.device_get(metrics)


def test_the_step_by_its_definition():
    params, batch = valued(tiny.params(0)), ppo_batch()
    _, metrics = take(batch, params)
    mask = batch.pairs.target_mask
    tables = tiny.next_logps(params, ROWS)
    new = np.concatenate(
        [
            t[np.arange(len(r.target)), r.target]
            for t, r in zip(tables, ROWS, strict=True)
        ]
    )
    old, advantage, returns, before = (
        np.float64(x[mask])
        for x in (batch.logps, batch.advantages, batch.returns, batch.values)
    )
    value = values_by_hand(tiny.GPT2, params, batch.pairs)[mask]
    ratio = np.exp(new - old)
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    moved = before + np.clip(value - before, -0.3, 0.3)
    error = np.maximum((value - returns) ** 2, (moved - returns) ** 2) / 2
    entropy = np.concatenate([-(np.exp(t) * t).sum(axis=1) for t in tables])
    expected = {
        "policy_loss": -surrogate.mean(),
        "value_loss": error.mean(),
        "entropy": entropy.mean(),
        "ratio": ratio.mean(),
        "approx_kl": (ratio - 1 - (new - old)).mean(),
        "explained_variance": 1 - (returns - value).var() / returns.var(),
        "tokens": mask.sum(),
        "skipped": 0,
    }
    expected["loss"] = (
        expected["policy_loss"] + 0.7 * error.mean() - 0.05 * entropy.mean()
    )
    found = {name: float(metrics[name]) for name in expected}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert 0 < metrics["clip_fraction"] < 1
    assert 0 < metrics["value_clip_fraction"] < 1


def test_an_update_that_is_too_far_is_passed_over():
    params, batch = valued(tiny.params(0)), ppo_batch()
    _, metrics = take(batch, params)
    over, under = (float(metrics["approx_kl"]) * x for x in (0.9, 1.1))
    same, skipped = take(batch, params, max_kl=over)
    assert skipped["skipped"] == 1
    tiny.assert_same_bits(same.params, params)
    assert int(same.step) == 1
    moved, kept = take(batch, params, max_kl=under)
    assert kept["skipped"] == 0
    assert any(
        (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (moved.params, params)), strict=True)
    )


# The known optimum

TOKENS, BETA = 6, 0.5
SOURCES = ["red shoe", "blue sofa"]
SAMPLING = Sampling(16, 2)
TEXTS = [(tiny.EOS,)] + [(a, b) for a in range(1, TOKENS) for b in range(TOKENS)]
NUMBER = {text: i for i, text in enumerate(TEXTS)}
WORTH = np.float32(RNG.normal(size=(2, len(TEXTS))) + np.array([[0], [2]]))
"""Of each text to each source; all texts are worth more to the second."""


@cache
def start(model=tiny.GPT2):
    """A policy that knows six tokens, and a value head of zeros."""
    fields = vars(model.config) | {"num_tokens": TOKENS}
    made = models.build(type(model.config)(**fields))
    params = init_value(made, tiny.params(0, scale=2.0, model=model))
    return LM(made, params, tiny.tokenizer())


def listed(lm):
    """All texts as targets of both sources: every row is a source of its own."""
    target = np.full((len(TEXTS), 2), tiny.EOS, np.int32)
    mask = np.zeros((len(TEXTS), 2), bool)
    for i, text in enumerate(TEXTS):
        target[i, : len(text)], mask[i, : len(text)] = text, True
    sources = [source for source in SOURCES for _ in TEXTS]
    prompts = prompt_batch(lm, sources, SAMPLING)
    return Pairs(*prompts, np.tile(target, (2, 1)), np.tile(mask, (2, 1)))


def text_logps(lm):
    """Log-probability of every text [2, texts]; the probabilities add up to 1."""
    batch = listed(lm)
    features, tokens, _ = golden.apply(lm.model, lm.params, batch, method="completion")
    hidden, unembed = np.float64(features.hidden[:, :-1]), np.float64(features.unembed)
    logits = hidden @ unembed.T
    if features.bias is not None:
        logits += np.float64(features.bias)
    logps = logits - logsumexp(logits, axis=-1, keepdims=True)
    chosen = np.take_along_axis(logps, np.array(tokens)[:, 1:, None], axis=-1)[..., 0]
    found = np.sum(chosen, axis=1, where=batch.target_mask).reshape(2, -1)
    np.testing.assert_allclose(logsumexp(found, axis=1), 0, atol=1e-5)
    return found


def objective(found, ref):
    return np.sum(np.exp(found) * (WORTH - BETA * (found - ref)), axis=1)


def worth(drawn, reward):
    """The terminal score: what the text is worth to its source."""
    del reward
    target, mask = drawn.pairs[2:]
    texts = [NUMBER[tuple(t[m].tolist())] for t, m in zip(target, mask, strict=True)]
    return WORTH[[SOURCES.index(source) for source in drawn.sources], texts]


class Known:
    """A score that is there at once; what texts are worth, `worth` says."""

    def __init__(self, sources, texts):
        self.texts = texts

    def result(self):
        return reward(np.zeros(len(self.texts)))


def rollouts(lm, rows=256, finish=None):
    sources = Batches(SOURCES * (rows // 2), list, batch_size=rows, seed=0)
    finish = finish or PPO(score=worth, kl_coef=BETA)
    draw = ReferencedSamples(lm, lm, sources, SAMPLING)
    return OnlineRollouts(draw, Known, finish, lag=0)


@cache
def trained(model, rounds):
    """The policy after PPO, and the metrics of each round's last minibatch."""
    lm, minibatches = start(model), 2 * 2
    optimizer = state.adamw(
        1e-2, rounds * minibatches, weight_decay=0.0, schedule="linear"
    )
    # The step gives its state away, and the reference stays.
    now = state.create(lm.params, optimizer, jax.random.key(0))
    batches = Minibatches(rollouts(lm), epochs=2, batch_size=128, seed=0)
    step = steps.compile_step(
        steps.ppo_step, model=lm.model, optimizer=optimizer, value_coef=0.5
    )
    first = None
    for _ in range(rounds * minibatches):
        now, metrics = step(now, batches.next(now), {})
        first = metrics if first is None else first
    return lm.with_params(now.params), jax.device_get(first), batches.report()


@pytest.mark.parametrize(
    ("model", "rounds", "share"),
    [(tiny.GPT2, 40, 0.95), (tiny.T5, 30, 0.9)],
    ids=["gpt2", "t5"],
)
def test_the_policy_reaches_the_optimum(model, rounds, share):
    ref = text_logps(start(model))
    tilted = ref + WORTH / BETA
    log_z = logsumexp(tilted, axis=1, keepdims=True)
    before, most = objective(ref, ref), BETA * log_z[:, 0]
    np.testing.assert_allclose(objective(tilted - log_z, ref), most, rtol=1e-6)
    after, first, report = trained(model, rounds)
    found = text_logps(after)
    closed = (objective(found, ref) - before).sum() / (most - before).sum()
    print(f"{closed:.4f} of the way from the start to the optimum")
    assert closed > share
    kl = np.sum(np.exp(found) * (found - (tilted - log_z)), axis=1)
    assert (kl < 0.2).all()
    assert (np.sum(np.exp(ref) * (ref - (tilted - log_z)), axis=1) > 0.5).all()
    # It began as its reference, with the parameters that drew.
    assert first["ratio"] == pytest.approx(1, abs=1e-5)
    assert first["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert report["explained_variance"] > 0.8
    assert report["kl"] == pytest.approx(
        np.sum(np.exp(found) * (found - ref), axis=1).mean(), abs=0.15
    )


def test_values_lower_the_variance_of_the_gradient():
    """Exactly, over all texts: the mean is the same and the spread is not."""
    lm, _, _ = trained(tiny.GPT2, 40)
    params = jax.tree.map(jnp.asarray, lm.params)
    batch = listed(lm)
    found = text_logps(lm)
    _, values, _, _ = ValueModel(lm.model).completion(params, batch)
    probability = np.exp(found).reshape(-1) / 2  # both sources are as frequent
    ref = text_logps(start())

    def spread(values):
        columns = []
        for i, (counted, value) in enumerate(
            zip(batch.target_mask, np.float64(values)[:, 1:], strict=True)
        ):
            rows = divmod(i, len(TEXTS))
            total = WORTH[rows] - BETA * (found - ref)[rows]
            columns.append(np.where(counted, total - value, 0))
        advantage = np.float32(columns)  # of the whole text, whatever the token

        def score(params, source, source_mask, target, target_mask, advantage):
            one = Pairs(*(x[None] for x in (source, source_mask, target, target_mask)))
            features, tokens, mask = lm.model.apply(params, one, method="completion")
            logps = vocab.token_logps(features, tokens)[:, 1:]
            return jnp.sum(jnp.where(mask[:, 1:], logps, 0)[0] * advantage)

        gradients = jax.jit(jax.vmap(jax.grad(score), (None, 0, 0, 0, 0, 0)))(
            lm.params, *batch, advantage
        )
        flat = np.concatenate(
            [np.float64(x).reshape(len(x), -1) for x in jax.tree.leaves(gradients)], 1
        )
        mean = probability @ flat
        return mean, probability @ np.square(flat - mean).sum(axis=1)

    mean, with_values = spread(values)
    mean_without, without = spread(np.zeros_like(values))
    np.testing.assert_allclose(
        mean, mean_without, atol=2e-3 * np.abs(mean_without).max() + 1e-4
    )
    print(f"variance with values over that without: {with_values / without:.3f}")
    assert with_values < 0.5 * without


# Places


def test_rollouts_go_on_where_they_were(tmp_path):
    """With a coefficient that has adapted, in the middle of the inner epochs."""
    lm = start()
    optimizer = state.adamw(1e-2, 40)

    def batches():
        finish = PPO(score=worth, kl_coef=BETA, kl_target=0.01)
        return Minibatches(
            rollouts(lm, finish=finish), epochs=2, batch_size=128, seed=0
        )

    now = state.create(lm.params, optimizer, jax.random.key(0))
    first = batches()
    for _ in range(6):
        first.next(now)
    checkpoints = Checkpoints(tmp_path, frozen=())
    checkpoints.save(1, now, {"batches": first.save()})
    checkpoints.close()
    again = batches()
    restored = Checkpoints(tmp_path, frozen=()).restore(now)
    assert restored is not None
    again.load(restored[1]["batches"])
    for _ in range(4):
        tiny.assert_same_bits(again.next(now), first.next(now))
    assert again.report() == first.report()
    assert first.report()["kl_coef"] != BETA
