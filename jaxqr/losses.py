"""Objectives on per-token and per-sequence numbers.

What is averaged, and over what, is decided here and nowhere else. The inputs are
log-probabilities that `jaxqr.vocab` took from a model; no function here knows the
vocabulary, a model or text.

Per-token arrays are [B T], and index `t` describes `tokens[:, t]`. A mask is True
where a token counts. Entries outside it may hold anything, NaN included: neither
values nor gradients see them. Where nothing counts, a loss and its gradient are 0.

An objective returns `(loss, metrics)`. `metrics["tokens"]`, or `metrics["pairs"]`
for `dpo`, is the loss's denominator: micro-batches add up to the batch once each
loss is multiplied by it. Whatever was measured before the update (old
log-probabilities and values, advantages, returns, importance weights) is a constant
to the gradient.

Log-probabilities of two models may be far apart, and that of a token of probability 0
is -inf. Where a difference of them is exponentiated it is bounded above by
`MAX_LOG_RATIO` first; every difference is bounded by `MAX_NATS` either way, and is 0
where both are -inf. Below these bounds nothing changes; beyond them a value is that
at the bound and its gradient is 0. So one odd token leaves losses and gradients
finite. Only the likelihood of a token of probability 0 itself (`nll`, and
`policy_gradient` where its advantage is not 0) is infinite, with a finite gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Number = float | int  # the runtime checks of the tests refuse an int for a float
Metrics = dict[str, Array]

MAX_LOG_RATIO = 20.0
"""Nats. exp(20) is 4.9e8: products of two such ratios with rewards and advantages, and
the squares that a gradient's norm and Adam take of them, are finite in float32. verl
bounds its ratios and its k3 estimate there, too."""

MAX_NATS = 1e6
"""Stands in for an infinite difference: more than whole sequences differ by, and small
enough to be squared twice in float32."""


# Means over what counts


def masked_mean(x: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    """Mean of the counted entries: `sum(x * mask) / max(sum(mask), 1)`.

    >>> x, mask = jnp.array([[1.0, 2.0, jnp.nan]]), jnp.array([[True, True, False]])
    >>> print(masked_mean(x, mask))
    1.5
    """
    return jnp.where(mask, x, 0).sum() / jnp.maximum(_count(mask), 1)


def masked_whiten(
    x: Float[Array, "B T"], mask: Bool[Array, "B T"], *, shift_mean: bool = True
) -> Float[Array, "B T"]:
    """Scale the counted entries to variance 1, and shift them to mean 0.

    `(x - mean) / sqrt(var + 1e-8)`, with mean and (population) variance over the
    counted entries of the whole batch; 0 outside the mask. `shift_mean=False` adds
    the mean back, for rewards whose sign means something.

    >>> x, mask = jnp.array([[1.0, 3.0, 99.0]]), jnp.array([[True, True, False]])
    >>> print(masked_whiten(x, mask))
    [[-1.  1.  0.]]
    >>> print(masked_whiten(x, mask, shift_mean=False))
    [[1. 3. 0.]]
    """
    mean = masked_mean(x, mask)
    centered = jnp.where(mask, x - mean, 0)
    whitened = centered * jax.lax.rsqrt(masked_mean(centered**2, mask) + 1e-8)
    return whitened if shift_mean else jnp.where(mask, whitened + mean, 0)


def _count(mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    return mask.sum(dtype=jnp.float32)


def _discounted_sums(
    x: Float[Array, "B T"], mask: Bool[Array, "B T"], discount: Number
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Discounted sums over the counted tokens: from each token on, and after it.

    `from_t = x_t + discount * from_u` and `after_t = from_u`, where `u` is the next
    counted token after `t`; 0 where there is none, and outside the mask.
    """

    def step(after, inputs):
        x_t, counts = inputs
        total = jnp.where(counts, x_t + discount * after, after)
        return total, (jnp.where(counts, total, 0), jnp.where(counts, after, 0))

    start = jnp.zeros(len(x), x.dtype)
    _, (current, after) = jax.lax.scan(step, start, (x.T, mask.T), reverse=True)
    return current.T, after.T


def _log_ratio(
    logps: Float[Array, "*shape"],
    other: Float[Array, "*shape"],
    most: Number = MAX_NATS,
) -> Float[Array, "*shape"]:
    """`logps - other` in [-MAX_NATS, most]; 0 where both are -inf."""
    neither = jnp.isneginf(logps) & jnp.isneginf(other)
    return jnp.clip(jnp.where(neither, 0, logps - other), -MAX_NATS, most)


# Likelihood and preferences


def nll(
    logps: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> tuple[Float[Array, ""], Metrics]:
    """Negative log-likelihood in nats, averaged over counted tokens.

    >>> logps = jnp.log(jnp.array([[1.0, 0.5], [1.0, 0.25]]))
    >>> loss, metrics = nll(logps, jnp.array([[False, True], [False, True]]))
    >>> print(f"{loss:.4f} {metrics['tokens']}")  # 1.5 bits
    1.0397 2.0
    """
    return -masked_mean(logps, mask), {"tokens": _count(mask)}


def dpo(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    *,
    beta: Number = 0.1,
    kind: str = "sigmoid",
    margin: Number = 0.0,
    label_smoothing: Number = 0.0,
    weight: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Direct preference optimization on sequence log-probabilities.

    With the implicit reward `r(y) = beta (log pi(y) - log ref(y))` and the logit
    `x = r(chosen) - r(rejected) - margin`, a pair costs

    - `sigmoid`: `-log sigmoid(x)` (Rafailov et al. 2023, eq. 7);
    - `hinge`: `max(0, 1 - x)` (Zhao et al. 2023, SLiC);
    - `ipo`: `((x - 1/2) / beta)^2` (Azar et al. 2023, eq. 17).

    `label_smoothing` is the probability that a pair's label is wrong; it mixes in
    the cost of `-x` (Mitchell 2023, conservative DPO). Zeros for both `ref_*` make
    the loss reference-free; with length-averaged log-probabilities and a `margin`
    that is SimPO (Meng et al. 2024, eq. 6).

    Args:
        chosen: log pi of the preferred sequence, summed over its tokens.
        rejected: the same of the other sequence.
        ref_chosen: log ref of the preferred sequence.
        ref_rejected: log ref of the other sequence.
        beta: strength of the pull towards the reference.
        kind: `sigmoid`, `hinge` or `ipo`.
        margin: how far apart the rewards should be, in units of reward.
        label_smoothing: in [0, 0.5).
        weight: of each pair in the mean, None for ones. 0 drops the pair.

    Returns:
        The weighted mean over pairs, and the metrics: `losses` [B] (0 where dropped);
        the weighted means `chosen_reward`, `rejected_reward`, `margin` (their
        difference) and `accuracy` (share with the chosen reward strictly higher);
        `pairs`, the sum of the weights, by which these means divide.

    Raises:
        ValueError: `kind` is none of the three.

    >>> zero, one = jnp.zeros(2), jnp.ones(2)
    >>> loss, metrics = dpo(one, zero, zero, zero, beta=1.0)
    >>> print(f"{loss:.4f} {metrics['margin']}")  # log(1 + 1/e)
    0.3133 1.0
    """

    def cost(x):
        match kind:
            case "sigmoid":
                return jax.nn.softplus(-x)
            case "hinge":
                return jax.nn.relu(1 - x)
            case "ipo":
                return ((x - 0.5) / beta) ** 2
        raise ValueError(f"kind is {kind!r}; choose sigmoid, hinge or ipo.")

    weight = jnp.ones_like(chosen) if weight is None else weight
    kept, pairs = weight > 0, weight.sum()

    def mean(x):
        return (weight * x).sum() / jnp.where(pairs > 0, pairs, 1)

    chosen_reward = beta * jnp.where(kept, _log_ratio(chosen, ref_chosen), 0)
    rejected_reward = beta * jnp.where(kept, _log_ratio(rejected, ref_rejected), 0)
    x = chosen_reward - rejected_reward - margin
    losses = (1 - label_smoothing) * cost(x) + label_smoothing * cost(-x)
    return mean(losses), {
        "losses": jnp.where(kept, losses, 0),
        "chosen_reward": mean(chosen_reward),
        "rejected_reward": mean(rejected_reward),
        "margin": mean(chosen_reward - rejected_reward),
        "accuracy": mean(chosen_reward > rejected_reward),
        "pairs": pairs,
    }


# Rewards, returns and advantages


def kl_estimate(
    logps: Float[Array, "B T"], ref_logps: Float[Array, "B T"], *, kind: str = "k3"
) -> Float[Array, "B T"]:
    """Estimate KL(pi || ref) at tokens sampled from pi.

    With `d = logps - ref_logps`: `k1 = d` (unbiased, signed), `k2 = d^2 / 2` (biased,
    never negative), `k3 = exp(-d) - 1 + d` (unbiased, never negative).
    Schulman 2020, "Approximating KL divergence". Estimates are finite: `d` is bounded
    by `MAX_NATS` either way, and k3 is that of `d = -MAX_LOG_RATIO` where `d` is less.

    Raises:
        ValueError: `kind` is none of the three.

    >>> pi, ref = jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[0.25]]))
    >>> [round(kl_estimate(pi, ref, kind=k).item(), 4) for k in ("k1", "k2", "k3")]
    [0.6931, 0.2402, 0.1931]
    """
    d = _log_ratio(logps, ref_logps)
    match kind:
        case "k1":
            return d
        case "k2":
            return d**2 / 2
        case "k3":
            d = jnp.maximum(d, -MAX_LOG_RATIO)
            return jnp.expm1(-d) + d
    raise ValueError(f"kind is {kind!r}; choose k1, k2 or k3.")


def token_rewards(
    score: Float[Array, " B"],
    kl: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    kl_coef: Number | Float[Array, ""],
) -> Float[Array, "B T"]:
    """Spread a sequence's score and its KL penalty over its tokens, in float32.

    `-kl_coef * kl_t` at every counted token, plus `score` at the last one, which is
    the end-of-text token of a complete sequence. A row without tokens gets zeros.
    Ziegler et al. 2019, section 2.

    >>> mask = jnp.array([[False, True, True, False]])
    >>> print(token_rewards(jnp.array([0.75]), jnp.ones((1, 4)), mask, kl_coef=0.5))
    [[ 0.   -0.5   0.25  0.  ]]
    """
    counted_from_here = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    last = mask & (counted_from_here == 1)
    score_at_last = jnp.where(last, score[:, None], 0).astype(jnp.float32)
    return score_at_last - jnp.where(mask, kl_coef * kl, 0)


def gae(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    gamma: Number = 1.0,
    lam: Number = 0.95,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalized advantage estimation, and the returns for the value loss.

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t = delta_t + gamma lam A_{t+1}        return_t = A_t + V_t

    `V_t` is the value of the state in which token `t` is chosen. The episode ends at
    the row's last counted token, after which V and A are 0; `t + 1` is the next
    counted token. Both results are 0 outside the mask. Schulman et al. 2016, eq. 16.

    >>> rewards, values = jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.5]])
    >>> advantages, returns = gae(rewards, values, jnp.ones((1, 2), bool), lam=0.5)
    >>> print(advantages, returns)
    [[0.25 0.5 ]] [[0.75 1.  ]]
    """
    _, next_values = _discounted_sums(values, mask, 0.0)
    deltas = rewards + gamma * next_values - values
    advantages, _ = _discounted_sums(deltas, mask, gamma * lam)
    return advantages, jnp.where(mask, advantages + values, 0)


def group_advantages(
    rewards: Float[Array, "Q N"],
    *,
    kind: str,
    valid: Bool[Array, "Q N"] | None = None,
) -> Float[Array, "Q N"]:
    """Compare each candidate's reward with those of its query's other candidates.

    - `grpo`: `(r - mean) / (std + 1e-6)` with the population's deviation
      (Shao et al. 2024, section 4.1);
    - `rloo`: `r` minus the mean of the others (Ahmadian et al. 2024);
    - `self_critical`: `r` minus the reward of column 0, which holds the greedy
      rewrite and so gets advantage 0 itself (Rennie et al. 2017);
    - `none`: `r`.

    Candidates of equal reward get exactly 0 from the first three. Where `valid` is
    False the reward is unknown: the advantage is 0, and means and deviations are
    those of the query's other candidates. A candidate left without another one to
    compare itself with gets 0 too.

    Raises:
        ValueError: `kind` is none of the four, or `rloo` has nothing to leave out.

    >>> print(group_advantages(jnp.array([[1.0, 0.0, 0.5]]), kind="rloo"))
    [[ 0.75 -0.75  0.  ]]
    """
    if valid is None:
        valid = jnp.ones(rewards.shape, bool)
    counted = jnp.where(valid, rewards, 0.0)
    # Differences to one of them are exactly 0 for equal rewards, whatever their mean.
    anchor = jnp.take_along_axis(counted, jnp.argmax(valid, axis=1)[:, None], axis=1)
    above = jnp.where(valid, counted - anchor, 0.0)
    candidates = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
    mean = jnp.sum(above, axis=1, keepdims=True) / candidates
    centered = jnp.where(valid, above - mean, 0.0)
    match kind:
        case "grpo":
            variance = jnp.sum(jnp.square(centered), axis=1, keepdims=True) / candidates
            return centered / (jnp.sqrt(variance) + 1e-6)
        case "rloo" if rewards.shape[1] > 1:
            return centered * (candidates / jnp.maximum(candidates - 1, 1))
        case "rloo":
            raise ValueError("rloo got 1 candidate per query; sample 2 or more.")
        case "self_critical":
            return jnp.where(valid & valid[:, :1], counted - counted[:, :1], 0.0)
        case "none":
            return counted
    raise ValueError(f"kind is {kind!r}; choose grpo, rloo, self_critical or none.")


def importance_weights(
    student_logps: Float[Array, "B T"],
    teacher_logps: Float[Array, "B T"],
    *,
    alpha: Number,
) -> Float[Array, "B T"]:
    """Weights that undo sampling from a mix of student and teacher.

    `w_t = q / ((1 - alpha) q + alpha p)` for student `q` and teacher `p` at the
    sampled token; at most `1 / (1 - alpha)`, and at most `exp(MAX_LOG_RATIO)`, which
    matters for `alpha=1` alone. Computed from `log p - log q`, so no probability
    underflows. Gu et al. 2024 (MiniLLM), section 2.2.

    >>> q, p = jnp.log(jnp.array([[0.2, 0.5]])), jnp.log(jnp.array([[0.6, 0.5]]))
    >>> print(importance_weights(q, p, alpha=0.5))
    [[0.5 1. ]]
    """
    log_ratio = _log_ratio(teacher_logps, student_logps)
    log_weight = -jnp.logaddexp(jnp.log1p(-alpha), jnp.log(alpha) + log_ratio)
    return jnp.exp(jnp.minimum(log_weight, MAX_LOG_RATIO))


def minillm_returns(
    student_logps: Float[Array, "B T"],
    teacher_logps: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    gamma: Number,
    length_norm: bool,
    include_current: bool,
    reward_scale: Number = 1.0,
    reward_clip: Number | None = None,
) -> Float[Array, "B T"]:
    """Returns of reverse-KL distillation.

    With `r_t = clip(reward_scale (log p_t - log q_t), -reward_clip, reward_clip)` for
    teacher `p` and student `q`, token `t` gets `sum_k gamma^k r_{u_k}`. Here `u_0`,
    `u_1`, ... are the counted tokens after `t`, or with `include_current` from `t` on.
    `length_norm` divides by how many they are. The return is 0 where there are none,
    and outside the mask. Gu et al. 2024 (MiniLLM), section 2.2. Two settings are in
    use:

    - the paper's: gamma 1, length_norm, current token excluded;
    - its code's: gamma 0.95, length_norm, current token included, reward_scale 2 (the
      code divides by 0.5), reward_clip 100; the caller then whitens.

    >>> teacher, mask = jnp.array([[1.0, 2.0, 4.0]]), jnp.ones((1, 3), bool)
    >>> settings = dict(gamma=1.0, length_norm=True, include_current=False)
    >>> print(minillm_returns(jnp.zeros((1, 3)), teacher, mask, **settings))
    [[3. 4. 0.]]
    """
    rewards = reward_scale * _log_ratio(teacher_logps, student_logps)
    if reward_clip is not None:
        rewards = jnp.clip(rewards, -reward_clip, reward_clip)
    which = 0 if include_current else 1
    returns = _discounted_sums(rewards, mask, gamma)[which]
    if length_norm:
        lengths = _discounted_sums(jnp.ones_like(rewards), mask, 1.0)[which]
        returns = returns / jnp.maximum(lengths, 1)
    return returns


# Policy and value


def policy_gradient(
    logps: Float[Array, "B T"], advantages: Float[Array, " B"], mask: Bool[Array, "B T"]
) -> tuple[Float[Array, ""], Metrics]:
    """REINFORCE with one advantage per sequence.

    `-sum_b A_b sum_t log pi_bt / (number of counted tokens)`: the gradient of
    Williams 1992 up to that one factor, so that long and short sequences keep their
    relative weight. A sequence of advantage 0 adds exactly 0.

    >>> logps, mask = jnp.array([[-1.0, -2.0]]), jnp.ones((1, 2), bool)
    >>> print(policy_gradient(logps, jnp.array([0.5]), mask)[0])
    0.75
    """
    advantage = jax.lax.stop_gradient(jnp.where(mask, advantages[:, None], 0))
    logps = jnp.where(advantage == 0, 0, logps)  # 0 times -inf is no number
    return -masked_mean(advantage * logps, mask), {"tokens": _count(mask)}


def clipped_policy(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    clip: Number = 0.2,
) -> tuple[Float[Array, ""], Metrics]:
    """PPO's clipped surrogate: `minillm_policy` with importance weights of 1.

    Schulman et al. 2017, eq. 7, negated.

    >>> zeros, mask = jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
    >>> logps = jnp.log(jnp.array([[1.5, 1.5]]))  # ratios, since the old are log 1
    >>> loss, metrics = clipped_policy(logps, zeros, jnp.array([[1.0, -1.0]]), mask)
    >>> print(f"{loss:.4f} {metrics['clip_fraction']}")  # (-1.2 + 1.5) / 2
    0.1500 0.5
    """
    ones = jnp.ones_like(logps)
    return minillm_policy(logps, old_logps, advantages, ones, mask, clip=clip)


def minillm_policy(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    importance: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    clip: Number = 0.2,
) -> tuple[Float[Array, ""], Metrics]:
    """Clipped surrogate for tokens that another distribution sampled.

    The mean over counted tokens of `max(-A rho, -A clip(rho, 1 - clip, 1 + clip))`
    with `rho = exp(min(logps - old_logps, MAX_LOG_RATIO)) * importance`. Gu et al. 2024
    (MiniLLM), section 2.3, but for the bound; `importance` is what
    `importance_weights` returns.

    Returns:
        The loss and the metrics, means over counted tokens but for the last:
        `clip_fraction`, the share whose gradient the clip removes; `ratio`, of rho;
        `approx_kl`, the k3 estimate of KL(old || new), without `importance`; `tokens`.

    >>> zeros, ones, mask = jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1), bool)
    >>> print(minillm_policy(zeros, zeros, 2 * ones, 0.9 * ones, mask)[0])
    -1.8
    """
    log_ratio = _log_ratio(logps, jax.lax.stop_gradient(old_logps), MAX_LOG_RATIO)
    log_ratio = jnp.where(mask, log_ratio, 0)
    advantages = jax.lax.stop_gradient(jnp.where(mask, advantages, 0))
    importance = jax.lax.stop_gradient(jnp.where(mask, importance, 0))
    ratio = jnp.exp(log_ratio) * importance
    unclipped = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1 - clip, 1 + clip)
    return masked_mean(jnp.maximum(unclipped, clipped), mask), {
        "clip_fraction": masked_mean(jnp.float32(clipped > unclipped), mask),
        "ratio": masked_mean(ratio, mask),
        "approx_kl": masked_mean(jnp.expm1(log_ratio) - log_ratio, mask),
        "tokens": _count(mask),
    }


def clipped_value(
    values: Float[Array, "B T"],
    old_values: Float[Array, "B T"],
    returns: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    clip: Number = 0.2,
) -> tuple[Float[Array, ""], Metrics]:
    """Squared error of the value head, pessimistic about moves beyond `clip`.

    `0.5 max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2)`, averaged over
    counted tokens. Not in the PPO paper but in its authors' code; Huang et al. 2022,
    "The 37 implementation details of PPO", detail 9.

    Returns:
        The loss and the metrics `clip_fraction`, the share of counted tokens whose
        gradient the clip removes, and `tokens`.

    >>> values, mask = jnp.array([[1.0]]), jnp.array([[True]])
    >>> zeros = jnp.zeros((1, 1))
    >>> loss, _ = clipped_value(values, zeros, 2 * values, mask)
    >>> print(f"{loss:.4f}")  # (0.2 - 2)^2 / 2, not (1 - 2)^2 / 2
    1.6200
    """
    values = jnp.where(mask, values, 0)
    old_values = jax.lax.stop_gradient(jnp.where(mask, old_values, 0))
    returns = jax.lax.stop_gradient(jnp.where(mask, returns, 0))
    held_back = jnp.clip(values, old_values - clip, old_values + clip)
    unclipped, clipped = (values - returns) ** 2, (held_back - returns) ** 2
    return 0.5 * masked_mean(jnp.maximum(unclipped, clipped), mask), {
        "clip_fraction": masked_mean(jnp.float32(clipped > unclipped), mask),
        "tokens": _count(mask),
    }


def explained_variance(
    values: Float[Array, "B T"], returns: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, ""]:
    """How much of the returns' variance the values explain: 1 - var(R - V) / var(R).

    Population variances over counted tokens. 1 is perfect, 0 no better than a
    constant, and less than 0 is worse; 0 where the returns do not vary.

    >>> returns, mask = jnp.array([[1.0, 3.0]]), jnp.ones((1, 2), bool)
    >>> print(explained_variance(jnp.array([[0.5, 1.5]]), returns, mask))
    0.75
    """

    def variance(x):
        centered = jnp.where(mask, x - masked_mean(x, mask), 0)
        return masked_mean(centered**2, mask)

    total = variance(returns)
    rest = variance(jnp.where(mask, returns - values, 0))
    return jnp.where(total > 0, 1 - rest / jnp.where(total > 0, total, 1), 0.0)
