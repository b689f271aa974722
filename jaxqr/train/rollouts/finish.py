"""What is learned from scored candidates: preferences, advantages, or PPO's batches."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxqr import losses
from jaxqr.records import Reward
from jaxqr.train.rollouts.draw import Candidates
from jaxqr.train.rollouts.online import mean_where
from jaxqr.train.steps import PolicyBatch, PPOBatch
from jaxqr.types import Preferences

TerminalScore = Callable[[Candidates, Reward], Float[np.ndarray, " BN"]]
"""What a finished text is worth; rows that are not valid may have any number."""


def total(candidates: Candidates, reward: Reward) -> Float[np.ndarray, " BN"]:
    """The reward's total: the usual terminal score."""
    del candidates
    return reward.total


def prefer(
    candidates: Candidates, reward: Reward
) -> tuple[Preferences, dict[str, float]]:
    """Best against worst of each source's candidates: the pairs of online DPO.

    Rows without two validly scored candidates, and ties, get weight 0.

    Returns:
        The preferences, and their mean `chosen_score` and `rejected_score` over the
        pairs that count, and the share of rows that are `tied`.

    Raises:
        ValueError: fewer than two candidates per source.
    """
    pairs, sources = candidates.pairs, len(candidates.pairs.source)
    if (count := len(pairs.target) // sources) < 2:
        raise ValueError(f"candidates={count} per source: a preference needs two")
    best, worst, counted, report = _extremes(reward, sources)
    rows = count * np.arange(sources)
    chosen, rejected = rows + best, rows + worst
    batch = Preferences(
        pairs.source,
        pairs.source_mask,
        pairs.target[chosen],
        pairs.target_mask[chosen],
        pairs.target[rejected],
        pairs.target_mask[rejected],
        counted.astype(np.float32),
    )
    return batch, report


def _extremes(
    reward: Reward, sources: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
    """The best and the worst candidate of each source, and whether they differ [B].

    With the mean scores of both where they differ, and the share of sources that are
    `tied`; a source with fewer than two valid candidates is neither.
    """
    total = np.where(reward.valid, reward.total, np.nan).reshape(sources, -1)
    valid = reward.valid.reshape(sources, -1)
    best = np.argmax(np.where(valid, total, -np.inf), axis=1)
    worst = np.argmin(np.where(valid, total, np.inf), axis=1)
    rows = np.arange(sources)
    scored = valid.sum(axis=1) >= 2
    differ = scored & (total[rows, best] > total[rows, worst])
    report = {
        "chosen_score": mean_where(total[rows, best], differ),
        "rejected_score": mean_where(total[rows, worst], differ),
        "tied": float(np.mean(scored & ~differ)),
    }
    return best, worst, differ, report


def advantages(
    candidates: Candidates,
    reward: Reward,
    *,
    kind: str = "grpo",
    score: TerminalScore = total,
    kl_coef: float = 0.0,
) -> tuple[PolicyBatch, dict[str, float]]:
    """How much better each candidate is than its source's others, for REINFORCE.

    What is compared is `score - kl_coef * sum_t (log pi_t - log ref_t)`.

    Args:
        candidates: N per source; with `ref_logps` where there is a KL penalty.
        reward: theirs; rows that are not valid get advantage 0.
        kind: see `losses.group_advantages`.
        score: what each text is worth.
        kl_coef: weight of the KL to the reference.

    Returns:
        The batch, and `advantage_std`, the deviation over rows; `chosen_score`,
        `rejected_score` and `tied` as in `prefer`, of each source's best and worst.

    Raises:
        ValueError: a KL penalty, and no log-probabilities of a reference.
    """
    worth = score(candidates, reward)
    if kl_coef:
        worth = worth - kl_coef * _sequence_kl(candidates)
    by_source = (len(candidates.pairs.source), -1)
    worth = np.where(reward.valid, worth, 0).astype(np.float32)
    values = losses.group_advantages(
        jnp.asarray(worth.reshape(by_source)),
        kind=kind,
        valid=jnp.asarray(reward.valid.reshape(by_source)),
    )
    flat = np.asarray(values, np.float32).reshape(-1)
    *_, report = _extremes(reward, len(candidates.pairs.source))
    report["advantage_std"] = float(flat.std())
    return PolicyBatch(candidates.pairs, flat), report


class PPO:
    """PPO's batches: token rewards, advantages and returns of scored candidates.

        r_t = -kl_coef (log pi_t - log ref_t), and the score at the last token
        A_t, R_t = generalized advantage estimation of r with the policy's own values

    Log-probabilities and values are those of the parameters that drew. A row that is
    not valid has no tokens in the batch. Ziegler et al. 2019, section 2; the
    adaptive coefficient is theirs, too: after every batch

        kl_coef *= 1 + rate * clip(KL / kl_target - 1, -0.2, 0.2)

    with KL the mean over rows of the sum over tokens.

    Args:
        score: what each text is worth.
        kl_coef: weight of the KL to the reference, per nat.
        kl_target: nats per text that an adaptive coefficient aims at; None: it stays.
        kl_rate: how much the coefficient adapts per batch (Ziegler et al.: 0.1).
        gamma: discount per token.
        lam: of generalized advantage estimation.
        whiten_rewards: scales the token rewards of a batch to variance 1.
        whiten_advantages: shifts and scales the advantages of a batch to mean 0 and
            variance 1.

    Raises:
        ValueError: a target that is not above 0.
    """

    def __init__(
        self,
        *,
        score: TerminalScore = total,
        kl_coef: float,
        kl_target: float | None = None,
        kl_rate: float = 0.1,
        gamma: float = 1.0,
        lam: float = 0.95,
        whiten_rewards: bool = False,
        whiten_advantages: bool = True,
    ):
        if kl_target is not None and not kl_target > 0:
            raise ValueError(f"{kl_target=}: expected nats per text above 0, or None")
        self._score, self._kl_coef = score, kl_coef
        self._kl_target, self._kl_rate = kl_target, kl_rate
        self._numbers = partial(
            _ppo_numbers,
            gamma=gamma,
            lam=lam,
            whiten_rewards=whiten_rewards,
            whiten_advantages=whiten_advantages,
        )

    def __call__(
        self, candidates: Candidates, reward: Reward
    ) -> tuple[PPOBatch, dict[str, float]]:
        """The batch, and its numbers before the update.

        These are means over valid rows of `score`, `kl` and `kl_k3` (two estimates of
        the KL to the reference, nats per text) and `return` (of a text, penalty
        included); means over their tokens of `entropy` (nats, estimated by -log pi) and
        `value`; `explained_variance` of the returns; and `kl_coef`.

        Raises:
            ValueError: candidates without values or reference log-probabilities, or
                several per source.
        """
        pairs = candidates.pairs
        if candidates.values is None or candidates.ref_logps is None:
            raise ValueError(
                "candidates without values or reference log-probabilities: draw them "
                "with ReferencedSamples from a policy with a value head"
            )
        if len(pairs.source) != len(pairs.target):
            raise ValueError(
                f"{len(pairs.target)} candidates of {len(pairs.source)} sources: PPO "
                "takes one of each (n=1)"
            )
        pairs = pairs._replace(target_mask=pairs.target_mask & reward.valid[:, None])
        scores = np.asarray(self._score(candidates, reward), np.float32)
        numbers, report = jax.device_get(
            self._numbers(
                np.where(reward.valid, scores, np.float32(0)),
                candidates.logps,
                candidates.ref_logps,
                candidates.values,
                pairs.target_mask,
                kl_coef=self._kl_coef,
            )
        )
        report = {name: float(value) for name, value in report.items()}
        report["kl_coef"] = self._kl_coef
        if self._kl_target is not None and reward.valid.any():
            error = np.clip(report["kl"] / self._kl_target - 1, -0.2, 0.2)
            self._kl_coef *= 1 + self._kl_rate * float(error)
        return PPOBatch(pairs, *numbers), report

    def save(self) -> dict[str, Any]:
        """The coefficient."""
        return {"kl_coef": self._kl_coef}

    def load(self, saved: dict[str, Any]) -> None:
        """Goes on with a saved coefficient."""
        self._kl_coef = saved["kl_coef"]


class _Numbers(NamedTuple):
    """The fields of `PPOBatch` after its pairs."""

    logps: Float[Array, "B T"]
    values: Float[Array, "B T"]
    advantages: Float[Array, "B T"]
    returns: Float[Array, "B T"]


@partial(
    jax.jit,
    static_argnames=("gamma", "lam", "whiten_rewards", "whiten_advantages"),
)
def _ppo_numbers(
    score,
    logps,
    ref_logps,
    values,
    mask,
    *,
    kl_coef,
    gamma,
    lam,
    whiten_rewards,
    whiten_advantages,
) -> tuple[_Numbers, dict[str, Array]]:
    rows = jnp.maximum(jnp.sum(jnp.any(mask, axis=1)), 1)

    def per_text(x):
        return jnp.sum(x, where=mask) / rows

    kl = losses.kl_estimate(logps, ref_logps, kind="k1")
    rewards = losses.token_rewards(score, kl, mask, kl_coef=kl_coef)
    report = {
        "score": jnp.sum(score) / rows,
        "kl": per_text(kl),
        "kl_k3": per_text(losses.kl_estimate(logps, ref_logps, kind="k3")),
        "return": per_text(rewards),
        "entropy": -losses.masked_mean(logps, mask),
        "value": losses.masked_mean(values, mask),
    }
    if whiten_rewards:
        rewards = losses.masked_whiten(rewards, mask, shift_mean=False)
    advantages, returns = losses.gae(rewards, values, mask, gamma=gamma, lam=lam)
    report["explained_variance"] = losses.explained_variance(values, returns, mask)
    if whiten_advantages:
        advantages = losses.masked_whiten(advantages, mask)
    logps, values = (jnp.where(mask, x, 0) for x in (logps, values))
    return _Numbers(logps, values, advantages, returns), report


def _sequence_kl(candidates: Candidates) -> Float[np.ndarray, " BN"]:
    """The k1 estimate of each text's KL to the reference, in nats."""
    if candidates.ref_logps is None:
        raise ValueError(
            "a KL penalty needs a reference's log-probabilities: draw the candidates "
            "with ReferencedSamples"
        )
    mask = np.asarray(candidates.pairs.target_mask)
    kl = losses.kl_estimate(
        jnp.asarray(candidates.logps), jnp.asarray(candidates.ref_logps), kind="k1"
    )
    return np.sum(np.asarray(kl), axis=1, where=mask)
