"""Models that are far apart: tokens whose log-probabilities differ without bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqr import losses, vocab
from jaxqr.types import Features

INF = float("inf")
NEAR = np.float32([[-1.0, -2.0, -1.5, -0.5]])
# One odd token each: (log-probability of the policy, of the other model).
ODD = {
    "forgotten": (-110.0, -2.0),
    "learned": (-2.0, -110.0),
    "worlds apart": (-3e4, -1e-3),
    "of probability 0": (-INF, -2.0),
    "that the other excludes": (-2.0, -INF),
    "that both exclude": (-INF, -INF),
}
MASK = jnp.ones(NEAR.shape, bool)


@pytest.fixture(params=ODD)
def odd(request):
    """Log-probabilities of the policy and of the other model, odd at token 1."""
    policy, other = NEAR.copy(), NEAR - np.float32(0.1)
    policy[0, 1], other[0, 1] = ODD[request.param]
    return jnp.asarray(policy), jnp.asarray(other)


def finite(*values):
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(values)), values


def without(x):
    """All but the odd token."""
    return np.delete(np.asarray(x), 1, axis=1)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimates_and_what_ppo_makes_of_them(odd, kind):
    def mean(logps, other):
        estimate = losses.kl_estimate(logps, other, kind=kind)
        return losses.masked_mean(estimate, MASK), estimate

    (value, estimate), gradient = jax.value_and_grad(mean, (0, 1), has_aux=True)(*odd)
    finite(value, gradient, jnp.square(gradient[0]))
    rewards = losses.token_rewards(jnp.ones(1), estimate, MASK, kl_coef=0.1)
    advantages, returns = losses.gae(rewards, jnp.zeros((1, 4)), MASK)
    finite(rewards, advantages, returns, losses.masked_whiten(advantages, MASK))
    # The other tokens' estimates are those of the formula.
    d = without(odd[0]) - without(odd[1])
    formula = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[kind]
    np.testing.assert_allclose(without(estimate), formula, atol=1e-6)


@pytest.mark.parametrize("advantage", [2.0, 0.0, -2.0])
@pytest.mark.parametrize("importance", [1.0, 0.25])
def test_the_clipped_surrogate(odd, advantage, importance):
    def loss(logps):
        return losses.minillm_policy(
            logps, odd[1], jnp.full((1, 4), advantage), jnp.full((1, 4), importance),
            MASK,
        )  # fmt: skip

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(odd[0])
    finite(value, metrics, gradient, jnp.square(gradient))
    if advantage == 0:
        assert value == 0
        assert (gradient == 0).all()
    # The others' ratio is exp(0.1) * importance; below 0.8 a loss is clipped.
    ratio = np.exp(0.1) * importance
    clipped = ratio < 0.8 and advantage < 0
    expected = 0.0 if clipped else -advantage * ratio / 4
    np.testing.assert_allclose(without(gradient), expected, rtol=1e-5, atol=1e-7)


def test_ppo_where_the_clip_protects():
    """A ratio beyond all bounds with a positive advantage costs what 1.2 does."""
    old = NEAR.copy()
    old[0, 1] = -500
    loss, metrics = losses.clipped_policy(
        jnp.asarray(NEAR), jnp.asarray(old), jnp.ones((1, 4)), MASK
    )
    assert loss == pytest.approx(-(3 * 1.0 + 1.2) / 4)
    assert metrics["clip_fraction"] == 0.25


@pytest.mark.parametrize("difference", [-15.0, -3.0, 0.0, 3.0, 15.0, 19.5])
def test_nothing_changes_below_the_bound(difference):
    """Values and gradients of the definitions, in float64."""
    policy, old = jnp.full((1, 1), -30 + difference), jnp.full((1, 1), -30.0)
    one, mask = jnp.ones((1, 1)), jnp.ones((1, 1), bool)

    def loss(logps):
        return losses.clipped_policy(logps, old, -one, mask)[0]  # never clipped above

    ratio = np.exp(np.float64(difference))
    value, gradient = jax.value_and_grad(loss)(policy)
    inside = ratio > 0.8
    np.testing.assert_allclose(value, max(ratio, 0.8), rtol=2e-5)
    np.testing.assert_allclose(gradient, [[ratio if inside else 0.0]], rtol=2e-5)

    def k3(logps):
        return losses.kl_estimate(logps, old, kind="k3").sum()

    value, gradient = jax.value_and_grad(k3)(policy)
    np.testing.assert_allclose(value, 1 / ratio - 1 + difference, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, [[1 - 1 / ratio]], rtol=2e-5, atol=1e-6)


def test_k3_grows_with_the_distance():
    """It is never less than at a smaller distance, and linear where it should be."""
    d = jnp.linspace(-150.0, 150.0, 301)[None]
    estimate = np.asarray(losses.kl_estimate(d - 200.0, jnp.full_like(d, -200.0)))[0]
    assert (np.diff(estimate[150:]) > 0).all()
    assert (np.diff(estimate[:151]) <= 0).all()
    assert estimate[-1] == pytest.approx(149.0, rel=1e-6)
    assert estimate[0] == pytest.approx(np.exp(20.0) - 21.0, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_importance_weights(odd, alpha):
    weights = losses.importance_weights(*odd, alpha=alpha)
    finite(weights, jnp.square(weights))
    assert (weights >= 0).all()
    if alpha < 1:
        assert (weights <= 1 / (1 - alpha) + 1e-6).all()
    expected = 1 / ((1 - alpha) + alpha * np.exp(-0.1))
    np.testing.assert_allclose(without(weights), expected, rtol=1e-6)


@pytest.mark.parametrize("length_norm", [True, False])
def test_minillm_returns(odd, length_norm):
    returns = losses.minillm_returns(
        *odd, MASK, gamma=0.95, length_norm=length_norm, include_current=True
    )
    finite(returns, losses.masked_whiten(returns, MASK))
    np.testing.assert_allclose(returns[0, 3], -0.1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_on_sequences(odd, kind, smoothing):
    def loss(chosen, rejected):
        return losses.dpo(
            chosen, rejected, odd[1][:, 1], jnp.array([-3.0]),
            kind=kind, label_smoothing=smoothing,
        )  # fmt: skip

    for pair in ((odd[0][:, 1], jnp.array([-4.0])), (jnp.array([-4.0]), odd[0][:, 1])):
        (value, metrics), gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            *pair
        )
        finite(value, metrics, gradient)


def test_a_sequence_of_advantage_0_adds_nothing(odd):
    def loss(logps, advantage):
        return losses.policy_gradient(logps, advantage, MASK)[0]

    value, gradient = jax.value_and_grad(loss)(odd[0], jnp.zeros(1))
    assert value == 0
    assert (gradient == 0).all()
    finite(jax.grad(loss)(odd[0], jnp.ones(1)))
    finite(jax.grad(lambda x: losses.nll(x, MASK)[0])(odd[0]))


# Rows without anything


def objectives(logps, other, mask):
    """The value of every objective, and of what precedes it."""
    kl = losses.kl_estimate(logps, other)
    rewards = losses.token_rewards(jnp.ones(len(logps)), kl, mask, kl_coef=0.1)
    advantages, returns = losses.gae(rewards, 0 * logps, mask)
    weights = losses.importance_weights(logps, other, alpha=0.2)
    settings = {"gamma": 0.9, "length_norm": True, "include_current": False}
    return [
        losses.nll(logps, mask)[0],
        losses.policy_gradient(logps, jnp.ones(len(logps)), mask)[0],
        losses.minillm_policy(logps, other, advantages, weights, mask)[0],
        losses.clipped_value(logps, other, returns, mask)[0],
        losses.masked_whiten(advantages, mask).sum(),
        losses.minillm_returns(logps, other, mask, **settings).sum(),
    ]


def test_rows_of_which_nothing_counts(odd):
    values = objectives(odd[0], odd[1], jnp.zeros((1, 4), bool))
    assert [float(x) for x in values] == [0.0] * 6


@pytest.mark.parametrize("shape", [(2, 0), (0, 3)])
def test_batches_of_nothing(shape):
    values = objectives(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(shape, bool))
    assert [float(x) for x in values] == [0.0] * 6
    features = Features(jnp.zeros((*shape, 4)), jnp.ones((5, 4)), None)
    tokens = jnp.zeros(shape, jnp.int32)
    assert vocab.token_logps(features, tokens).shape == shape
    assert vocab.entropy(features).shape == shape
    assert vocab.divergence(features, features).shape == shape
    gradient = jax.grad(lambda f: vocab.token_logps(f, tokens).sum())(features)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, features)


# Over the vocabulary


def excluding(seed, *excluded):
    """Features of six tokens of which some have probability 0."""
    rng = np.random.default_rng(seed)
    bias = rng.normal(size=6)
    bias[list(excluded)] = -np.inf
    return Features(
        jnp.asarray(rng.normal(size=(1, 3, 4)), jnp.float32),
        jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
        jnp.asarray(bias, jnp.float32),
    )


def reduced(features, count=4):
    return features._replace(unembed=features.unembed[:count], bias=features.bias[:4])


def gradient_of(measure, features):
    return jax.grad(lambda f: measure(f).sum())(features)


@pytest.mark.parametrize("kind", ["entropy", *vocab.DIVERGENCES])
def test_tokens_that_no_model_draws_play_no_part(kind):
    student, teacher = excluding(0, 4, 5), excluding(1, 4, 5)

    def measure(student, teacher=teacher):
        if kind == "entropy":
            return vocab.entropy(student)
        return vocab.divergence(student, teacher, kind=kind)

    expected = measure(reduced(student), reduced(teacher))
    np.testing.assert_allclose(measure(student), expected, atol=1e-6)
    gradient = gradient_of(measure, student)
    finite(gradient)
    expected = gradient_of(lambda f: measure(f, reduced(teacher)), reduced(student))
    np.testing.assert_allclose(gradient.hidden, expected.hidden, atol=1e-5)


@pytest.mark.parametrize("kind", vocab.DIVERGENCES)
def test_tokens_that_one_model_excludes(kind):
    for student, teacher in (
        (excluding(0, 2), excluding(1)),
        (excluding(0), excluding(1, 2)),
    ):
        value = vocab.divergence(student, teacher, kind=kind)
        assert (value >= 0).all()
        finite(value)
        finite(
            gradient_of(
                lambda f, teacher=teacher: vocab.divergence(f, teacher, kind=kind),
                student,
            )
        )
