"""Losses against float64 loops, finite differences, enumeration and closed forms."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqr import losses

# Rows: leading and trailing masked columns; nearly full; one token; a hole; nothing.
MASK = np.array(
    [
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ],
    bool,
)
B, T = MASK.shape
GARBAGE = np.resize(np.float32([np.nan, np.inf, -np.inf, 1e30]), (B, T))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def draw(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def spoil(x):
    """Put garbage outside the mask, and two more columns of it at the end."""
    x = np.where(MASK, np.asarray(x), GARBAGE)
    return jnp.asarray(np.concatenate([x, GARBAGE[:, :2]], axis=1))


SPOILT_MASK = jnp.asarray(np.concatenate([MASK, np.zeros((B, 2), bool)], axis=1))
CLEAN_MASK = jnp.asarray(MASK)


def counted(b):
    return np.flatnonzero(MASK[b])


def close(actual, expected, tolerance=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# Means


def test_masked_mean_divides_by_the_counted_tokens(rng):
    x = draw(rng, B, T)
    expected = math.fsum(np.asarray(x)[MASK].tolist()) / MASK.sum()
    close(losses.masked_mean(x, CLEAN_MASK), expected)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_masked_whiten_gives_unit_variance_over_the_counted(rng, shift_mean):
    x = 3 * draw(rng, B, T) + 5
    y = np.asarray(losses.masked_whiten(spoil(x), SPOILT_MASK, shift_mean=shift_mean))
    inside = y[np.asarray(SPOILT_MASK)]
    close(inside.mean(), np.asarray(x)[MASK].mean() if not shift_mean else 0, 1e-5)
    close(inside.std(), 1, 1e-5)
    assert np.all(y[~np.asarray(SPOILT_MASK)] == 0)
    order = np.argsort(np.asarray(x)[MASK])
    assert np.all(np.diff(inside[order]) > 0)


def test_masked_whiten_of_equal_values_is_zero():
    x = jnp.full((B, T), 0.5)
    assert np.all(np.asarray(losses.masked_whiten(x, CLEAN_MASK)) == 0)


# Every masked objective, once, for the properties that all share


def per_token(names, objective):
    def call(arrays, mask):
        return objective(*(arrays[name] for name in names), mask)

    return call


OBJECTIVES = {
    "masked_mean": per_token(["x"], lambda x, m: (losses.masked_mean(x, m), {})),
    "whitened": per_token(
        ["x", "y"],
        lambda x, y, m: (
            losses.masked_mean(losses.masked_whiten(x, m) * jnp.where(m, y, 0), m),
            {},
        ),
    ),
    "nll": per_token(["x"], losses.nll),
    "policy_gradient": per_token(
        ["x", "y"], lambda x, y, m: losses.policy_gradient(x, y[:, 1], m)
    ),
    "clipped_policy": per_token(["x", "y", "z"], losses.clipped_policy),
    "minillm_policy": per_token(["x", "y", "z", "w"], losses.minillm_policy),
    "clipped_value": per_token(["x", "y", "z"], losses.clipped_value),
}


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]


@pytest.fixture
def arrays(rng):
    arrays = {name: draw(rng, B, T) for name in "xyz"}
    return arrays | {"w": jnp.asarray(rng.uniform(0.5, 1.2, (B, T)), jnp.float32)}


def value_and_gradient(objective, arrays, mask):
    def loss_of(x):
        return objective(arrays | {"x": x}, mask)

    return jax.value_and_grad(loss_of, has_aux=True)(arrays["x"])


def test_what_is_outside_the_mask_changes_nothing(objective, arrays):
    clean = value_and_gradient(objective, arrays, CLEAN_MASK)
    spoilt = {name: spoil(x) for name, x in arrays.items()}
    if objective is OBJECTIVES["policy_gradient"]:  # one advantage per row
        rows = MASK.any(axis=1)
        advantages = np.where(rows, np.asarray(arrays["y"][:, 1]), np.nan)
        spoilt["y"] = jnp.tile(advantages[:, None], (1, T + 2))
    (loss, metrics), gradient = value_and_gradient(objective, spoilt, SPOILT_MASK)
    close(loss, clean[0][0])
    for name, value in metrics.items():
        close(value, clean[0][1][name])
    close(gradient[:, :T], clean[1])
    assert np.all(np.asarray(gradient)[~np.asarray(SPOILT_MASK)] == 0)
    assert np.any(np.asarray(gradient) != 0)


def test_an_empty_mask_costs_nothing(objective, arrays):
    spoilt = {name: spoil(jnp.full((B, T), jnp.nan)) for name in arrays}
    nothing = jnp.zeros((B, T + 2), bool)
    (loss, metrics), gradient = value_and_gradient(objective, spoilt, nothing)
    assert loss == 0
    assert all(value == 0 for value in metrics.values())
    assert np.all(np.asarray(gradient) == 0)


WITH_TOKENS = [*OBJECTIVES][2:]  # the first two are blocks, without metrics


@pytest.mark.parametrize("name", WITH_TOKENS)
def test_micro_batches_add_up_to_the_batch(name, arrays):
    objective = OBJECTIVES[name]
    (loss, metrics), gradient = value_and_gradient(objective, arrays, CLEAN_MASK)
    total, tokens, total_gradient = 0.0, 0.0, []
    for rows in (slice(0, 2), slice(2, 3), slice(3, None)):
        part = {name: x[rows] for name, x in arrays.items()}
        (part_loss, part_metrics), part_gradient = value_and_gradient(
            objective, part, CLEAN_MASK[rows]
        )
        total += part_loss * part_metrics["tokens"]
        tokens += part_metrics["tokens"]
        total_gradient.append(part_gradient * part_metrics["tokens"])
    assert metrics["tokens"] == tokens == MASK.sum()
    close(loss, total / tokens)
    close(gradient, np.concatenate(total_gradient) / tokens)


def test_the_gradient_is_the_finite_difference(objective, arrays):
    _, gradient = value_and_gradient(objective, arrays, CLEAN_MASK)
    direction = draw(np.random.default_rng(1), B, T)
    step = 2e-3

    def loss_at(scale):
        return objective(arrays | {"x": arrays["x"] + scale * direction}, CLEAN_MASK)[0]

    slope = (loss_at(step) - loss_at(-step)) / (2 * step)
    close(jnp.vdot(gradient, direction), slope, 2e-3)


@pytest.mark.parametrize("name", ["clipped_policy", "minillm_policy", "clipped_value"])
def test_only_the_current_policy_and_values_are_differentiated(name, arrays):
    for other in "yzw":
        gradient = jax.grad(
            lambda x, other=other: OBJECTIVES[name](arrays | {other: x}, CLEAN_MASK)[0]
        )(arrays[other])
        assert np.all(np.asarray(gradient) == 0)


# Preferences

PAIRS = {
    "chosen": [-1.0, -6.0, -2.5],
    "rejected": [-3.0, -2.0, -3.5],
    "ref_chosen": [-2.0, -5.0, -2.0],
    "ref_rejected": [-2.5, -2.5, -2.5],
}
PAIR_COSTS = {
    "sigmoid": lambda x, beta: math.log1p(math.exp(-x)),
    "hinge": lambda x, beta: max(0.0, 1 - x),
    "ipo": lambda x, beta: (x / beta - 1 / (2 * beta)) ** 2,
}


def pairs():
    return {name: jnp.array(values) for name, values in PAIRS.items()}


@pytest.mark.parametrize("kind", PAIR_COSTS)
@pytest.mark.parametrize(("margin", "smoothing"), [(0.0, 0.0), (0.25, 0.1)])
def test_dpo_is_the_weighted_mean_of_the_pairs(kind, margin, smoothing):
    beta, weight = 0.5, [1.0, 0.5, 2.0]
    costs = []
    rewards = []
    for c, r, ref_c, ref_r in zip(*PAIRS.values(), strict=True):
        rewards.append((beta * (c - ref_c), beta * (r - ref_r)))
        x = rewards[-1][0] - rewards[-1][1] - margin
        cost = PAIR_COSTS[kind]
        costs.append((1 - smoothing) * cost(x, beta) + smoothing * cost(-x, beta))
    loss, metrics = losses.dpo(
        **pairs(),
        beta=beta,
        kind=kind,
        margin=margin,
        label_smoothing=smoothing,
        weight=jnp.array(weight),
    )
    close(loss, np.average(costs, weights=weight))
    close(metrics["losses"], costs)
    chosen, rejected = np.average(rewards, axis=0, weights=weight)
    close(metrics["chosen_reward"], chosen)
    close(metrics["rejected_reward"], rejected)
    close(metrics["margin"], chosen - rejected)
    # Chosen and rejected rewards: 0.5 > -0.25, -0.5 < 0.25, -0.25 > -0.5.
    close(metrics["accuracy"], (1.0 + 2.0) / 3.5)
    assert metrics["pairs"] == 3.5


@pytest.mark.parametrize("kind", PAIR_COSTS)
def test_dpo_prefers_the_chosen(kind):
    gradient = jax.grad(lambda p: losses.dpo(**p, beta=0.25, kind=kind)[0])(pairs())
    assert np.all(np.asarray(gradient["chosen"]) < 0)
    assert np.all(np.asarray(gradient["rejected"]) > 0)
    close(gradient["ref_chosen"], -gradient["chosen"])
    close(gradient["ref_rejected"], -gradient["rejected"])


def test_dpo_gradient_is_beta_times_the_probability_of_being_wrong():
    # Rafailov et al. 2023, section 4: beta * sigmoid(r(rejected) - r(chosen)).
    gradient = jax.grad(lambda p: losses.dpo(**p, beta=0.5)[0])(pairs())
    differences = np.array([0.75, -0.75, 0.25])
    close(gradient["chosen"], -0.5 / (1 + np.exp(differences)) / 3)


@pytest.mark.parametrize("kind", PAIR_COSTS)
@pytest.mark.parametrize("junk", [np.nan, -np.inf, 1e38])
def test_dropped_pairs_leave_no_trace(kind, junk):
    kept = losses.dpo(**pairs(), kind=kind)

    def loss_of(p, weight):
        return losses.dpo(**p, kind=kind, weight=weight)

    with_junk = {
        name: jnp.concatenate([x, jnp.array([junk])]) for name, x in pairs().items()
    }
    weight = jnp.array([1.0, 1.0, 1.0, 0.0])
    (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(
        with_junk, weight
    )
    close(loss, kept[0])
    assert metrics["losses"][3] == 0
    for name in set(metrics) - {"losses"}:
        close(metrics[name], kept[1][name])
    for leaf in gradient.values():
        assert np.all(np.isfinite(leaf))
        assert leaf[3] == 0

    (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(
        with_junk, jnp.zeros(4)
    )
    assert loss == 0
    assert metrics["pairs"] == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in gradient.values())


def test_dpo_rejects_an_unknown_kind():
    with pytest.raises(ValueError, match="sigmoid, hinge or ipo"):
        losses.dpo(**pairs(), kind="sigmod")


# Rewards, returns and advantages


def test_kl_estimates_have_the_divergence_as_expectation():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    logs = jnp.log(jnp.array([p, q]))
    divergence = np.sum(p * np.log(p / q))
    expectation = {
        kind: np.sum(p * losses.kl_estimate(logs[:1], logs[1:], kind=kind)[0])
        for kind in ("k1", "k2", "k3")
    }
    close(expectation["k1"], divergence)
    close(expectation["k3"], divergence)
    close(expectation["k2"], np.sum(p * np.log(p / q) ** 2) / 2)
    assert np.all(np.asarray(losses.kl_estimate(logs[:1], logs[1:])) >= 0)
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        losses.kl_estimate(logs, logs, kind="k4")


def test_token_rewards_put_the_score_on_the_last_token(rng):
    score, kl = draw(rng, B), draw(rng, B, T)
    expected = np.zeros((B, T))
    for b in range(B):
        expected[b, counted(b)] = -0.85 * np.asarray(kl)[b, counted(b)]
        if len(counted(b)):
            expected[b, counted(b)[-1]] += score[b]
    bad_score = jnp.where(MASK.any(axis=1), score, jnp.nan)
    actual = losses.token_rewards(bad_score, spoil(kl), SPOILT_MASK, kl_coef=0.85)
    close(actual[:, :T], expected)
    assert np.all(np.asarray(actual[:, T:]) == 0)
    assert actual.dtype == jnp.float32


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0)])
def test_gae_is_the_sum_of_discounted_td_errors(rng, gamma, lam):
    rewards, values = draw(rng, B, T), draw(rng, B, T)
    advantages, returns = losses.gae(
        spoil(rewards), spoil(values), SPOILT_MASK, gamma=gamma, lam=lam
    )
    r, v = np.asarray(rewards, np.float64), np.asarray(values, np.float64)
    expected = np.zeros((B, T + 2))
    for b in range(B):
        at = counted(b)
        state_values = [*v[b, at], 0.0]
        deltas = [
            r[b, t] + gamma * state_values[i + 1] - state_values[i]
            for i, t in enumerate(at)
        ]
        for i, t in enumerate(at):
            expected[b, t] = sum(
                (gamma * lam) ** k * delta for k, delta in enumerate(deltas[i:])
            )
    close(advantages, expected)
    close(returns[:, :T], np.where(MASK, expected[:, :T] + v, 0))
    assert np.all(np.asarray(returns[:, T:]) == 0)


def test_gae_with_lam_one_returns_the_discounted_rewards():
    rewards, mask = jnp.array([[1.0, 2.0, 4.0]]), jnp.ones((1, 3), bool)
    values = jnp.array([[7.0, -5.0, 3.0]])
    _, returns = losses.gae(rewards, values, mask, gamma=0.5, lam=1.0)
    close(returns, [[1 + 1 + 1, 2 + 2, 4]])


REWARDS = np.array([[0.1, 0.9, 0.5, 0.2], [0.3, 0.3, 0.3, 0.3]])


def test_group_advantages_by_their_definitions():
    rewards = jnp.asarray(REWARDS, jnp.float32)
    expected = {kind: np.zeros_like(REWARDS) for kind in ("grpo", "rloo")}
    for q, n in itertools.product(range(2), range(4)):
        others = np.delete(REWARDS[q], n)
        expected["rloo"][q, n] = REWARDS[q, n] - others.mean()
        deviation = REWARDS[q].std()
        if deviation > 1e-9:
            expected["grpo"][q, n] = (REWARDS[q, n] - REWARDS[q].mean()) / deviation
    expected["self_critical"] = REWARDS - REWARDS[:, :1]
    expected["none"] = REWARDS
    for kind, values in expected.items():
        actual = losses.group_advantages(rewards, kind=kind)
        close(actual, values, 5e-6)
        if kind != "none":
            assert np.all(np.asarray(actual[1]) == 0)


@pytest.mark.parametrize("kind", ["grpo", "rloo", "self_critical", "none"])
def test_group_advantages_without_what_is_not_valid(kind):
    """As if the candidate had never been drawn, whatever number stands there."""
    rewards = jnp.asarray(REWARDS, jnp.float32)
    valid = jnp.array([[True, True, False, True], [True, False, False, False]])
    expected = losses.group_advantages(rewards[:1, jnp.array([0, 1, 3])], kind=kind)
    for unknown in (0.0, 9.0, jnp.nan):
        given = jnp.where(valid, rewards, unknown)
        actual = np.asarray(losses.group_advantages(given, kind=kind, valid=valid))
        close(actual[0], [*expected[0, :2], 0, expected[0, 2]], 1e-6)
        close(actual[1], [0.3 if kind == "none" else 0, 0, 0, 0])
    without_first = jnp.array([[False, True, True, True]] * 2)
    actual = losses.group_advantages(rewards, kind=kind, valid=without_first)
    if kind == "self_critical":  # nothing to compare with
        close(actual, np.zeros((2, 4)))


def test_group_advantages_refuse_what_has_no_meaning():
    alone = jnp.ones((2, 1))
    with pytest.raises(ValueError, match="grpo, rloo, self_critical or none"):
        losses.group_advantages(alone, kind="ppo")
    with pytest.raises(ValueError, match="sample 2 or more"):
        losses.group_advantages(alone, kind="rloo")
    assert np.all(np.asarray(losses.group_advantages(alone, kind="grpo")) == 0)


@pytest.mark.parametrize("alpha", [0, 0.2, 1.0])
def test_importance_weights_are_student_over_mixture(alpha):
    q, p = np.array([[0.9, 0.25, 1e-4]]), np.array([[0.1, 0.25, 0.5]])
    logs = [jnp.asarray(np.log(x), jnp.float32) for x in (q, p)]
    expected = q / ((1 - alpha) * q + alpha * p)
    close(losses.importance_weights(*logs, alpha=alpha), expected, 5e-6)


def test_importance_weights_survive_underflow():
    # exp(-500) is 0 in float32; one side or the other rules.
    q, p = jnp.array([[-500.0, -800.0, -jnp.inf]]), jnp.array([[-800.0, -500.0, -1.0]])
    close(losses.importance_weights(q, p, alpha=0.2), [[1.25, 0, 0]])


def test_importance_weights_make_the_mixture_unbiased():
    rng = np.random.default_rng(0)
    q, p, f = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6)), rng.normal(size=6)
    logs = [jnp.asarray(np.log(x)[None], jnp.float32) for x in (q, p)]
    weights = np.asarray(losses.importance_weights(*logs, alpha=0.3))[0]
    close(np.sum((0.7 * q + 0.3 * p) * weights * f), np.sum(q * f))


SETTINGS = {
    "paper": {"gamma": 1, "length_norm": True, "include_current": False},
    "code": {
        "gamma": 0.95,
        "length_norm": True,
        "include_current": True,
        "reward_scale": 2.0,
        "reward_clip": 1.5,
    },
    "discounted": {"gamma": 0.5, "length_norm": False, "include_current": False},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_minillm_returns_by_a_double_loop(rng, settings):
    student, teacher = draw(rng, B, T), draw(rng, B, T)
    r = np.asarray(teacher, np.float64) - np.asarray(student, np.float64)
    r = r * settings.get("reward_scale", 1)
    if "reward_clip" in settings:
        assert np.any(np.abs(r[MASK]) > settings["reward_clip"])
        r = np.clip(r, -settings["reward_clip"], settings["reward_clip"])
    expected = np.zeros((B, T + 2))
    for b in range(B):
        for t in counted(b):
            later = [
                u
                for u in counted(b)
                if u > t or (u == t and settings["include_current"])
            ]
            total = sum(settings["gamma"] ** k * r[b, u] for k, u in enumerate(later))
            divisor = max(len(later), 1) if settings["length_norm"] else 1
            expected[b, t] = total / divisor
    actual = losses.minillm_returns(
        spoil(student), spoil(teacher), SPOILT_MASK, **settings
    )
    close(actual, expected)


def test_a_token_the_teacher_excludes_costs_the_clip():
    teacher, mask = jnp.array([[-jnp.inf, 0.0]]), jnp.ones((1, 2), bool)
    returns = losses.minillm_returns(
        jnp.zeros((1, 2)), teacher, mask,
        gamma=1.0, length_norm=False, include_current=True, reward_clip=100.0,
    )  # fmt: skip
    close(returns, [[-100, 0]])


# Policy and value

# Every side of the clip, for both signs: (A, rho) -> (loss, gradient w.r.t. log rho).
CLIP_CASES = {
    (1.0, 1.5): (-1.2, 0.0),  # good, already pushed up enough
    (2.0, 1.3): (-2.4, 0.0),
    (1.0, 0.5): (-0.5, -0.5),  # good, pushed down by mistake: keep correcting
    (1.0, 1.1): (-1.1, -1.1),
    (-1.0, 1.5): (1.5, 1.5),  # bad, pushed up by mistake: keep correcting
    (-1.0, 0.5): (0.8, 0.0),  # bad, already pushed down enough
    (-1.0, 0.9): (0.9, 0.9),
}


@pytest.mark.parametrize("importance", [1.0, 0.5])
def test_the_policy_is_clipped_on_the_profitable_side_only(importance):
    advantages, ratios = jnp.array(list(CLIP_CASES)).T[:, None]
    expected, slopes = np.array(list(CLIP_CASES.values())).T
    mask = jnp.ones((1, len(CLIP_CASES)), bool)
    old = jnp.full_like(ratios, -2.0)
    logps = old + jnp.log(ratios / importance)

    def loss_of(logps):
        if importance == 1:
            return losses.clipped_policy(logps, old, advantages, mask)
        weights = jnp.full_like(ratios, importance)
        return losses.minillm_policy(logps, old, advantages, weights, mask)

    (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(logps)
    close(loss, expected.mean())
    close(gradient[0] * len(CLIP_CASES), slopes)
    close(metrics["clip_fraction"], 3 / 7)
    close(metrics["ratio"], np.mean([rho for _, rho in CLIP_CASES]))
    before_weights = np.array([rho for _, rho in CLIP_CASES]) / importance
    close(metrics["approx_kl"], np.mean(before_weights - 1 - np.log(before_weights)))


def test_approx_kl_has_the_divergence_from_old_to_new_as_expectation():
    old, new = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    logs = jnp.log(jnp.array([new, old]))
    zeros = jnp.zeros((1, 1))
    estimates = [
        losses.clipped_policy(
            logs[:1, i : i + 1], logs[1:, i : i + 1], zeros, jnp.ones((1, 1), bool)
        )[1]["approx_kl"]
        for i in range(3)
    ]
    close(np.dot(old, estimates), np.sum(old * np.log(old / new)))


def test_at_the_old_policy_ppo_is_the_policy_gradient(rng):
    logps, advantages = draw(rng, B, T), draw(rng, B)
    tiled = jnp.tile(advantages[:, None], (1, T))
    ppo = jax.grad(lambda x: losses.clipped_policy(x, logps, tiled, CLEAN_MASK)[0])
    plain = jax.grad(lambda x: losses.policy_gradient(x, advantages, CLEAN_MASK)[0])
    close(ppo(logps), plain(logps))
    close(plain(logps), -np.asarray(tiled) * MASK / MASK.sum())


def test_the_value_loss_takes_the_worse_of_two_errors():
    old = [3.0, 3.0, 3.0, 3.0]
    values = [3.1, 4.0, 4.0, 2.0]
    returns = [4.0, 5.0, 3.1, 4.0]
    # Within the clip; beyond it towards the return (3.2 counts, and the gradient is
    # 0); past the return, where 4.0 is the worse; away from the return, likewise.
    costs = [0.9**2 / 2, 1.8**2 / 2, 0.9**2 / 2, 2.0**2 / 2]
    slopes = [-0.9, 0.0, 0.9, -2.0]
    old, values, returns = (jnp.array([x]) for x in (old, values, returns))
    mask = jnp.ones((1, 4), bool)
    (loss, metrics), gradient = jax.value_and_grad(losses.clipped_value, has_aux=True)(
        values, old, returns, mask
    )
    close(loss, np.mean(costs))
    close(gradient[0] * 4, slopes)
    assert metrics["clip_fraction"] == 0.25


def test_nll_by_hand():
    logps = jnp.log(jnp.array([[1.0, 0.5, 0.1], [1.0, 0.125, 0.5]]))
    mask = jnp.array([[False, True, False], [False, True, True]])
    loss, metrics = losses.nll(logps, mask)
    close(loss, (1 + 3 + 1) * math.log(2) / 3)
    assert metrics["tokens"] == 3
