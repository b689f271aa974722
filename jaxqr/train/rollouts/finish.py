"""What is learned from scored candidates: preferences, or advantages."""

import jax.numpy as jnp
import numpy as np

from jaxqr import losses
from jaxqr.records import Reward
from jaxqr.train.rollouts.draw import Candidates
from jaxqr.train.rollouts.online import mean_where
from jaxqr.train.steps import PolicyBatch
from jaxqr.types import Preferences


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
    total = np.where(reward.valid, reward.total, np.nan).reshape(sources, -1)
    valid = reward.valid.reshape(sources, -1)
    count = valid.shape[1]
    if count < 2:
        raise ValueError(f"candidates={count} per source: a preference needs two")
    best = np.argmax(np.where(valid, total, -np.inf), axis=1)
    worst = np.argmin(np.where(valid, total, np.inf), axis=1)
    rows = np.arange(sources)
    scored = valid.sum(axis=1) >= 2
    counted = scored & (total[rows, best] > total[rows, worst])
    chosen, rejected = rows * count + best, rows * count + worst
    batch = Preferences(
        pairs.source,
        pairs.source_mask,
        pairs.target[chosen],
        pairs.target_mask[chosen],
        pairs.target[rejected],
        pairs.target_mask[rejected],
        counted.astype(np.float32),
    )
    return batch, {
        "chosen_score": mean_where(total[rows, best], counted),
        "rejected_score": mean_where(total[rows, worst], counted),
        "tied": float(np.mean(scored & ~counted)),
    }


def advantages(
    candidates: Candidates, reward: Reward, *, kind: str = "grpo"
) -> tuple[PolicyBatch, dict[str, float]]:
    """How much better each candidate is than its source's others, for REINFORCE.

    Args:
        candidates: N per source.
        reward: theirs; rows that are not valid get advantage 0.
        kind: see `losses.group_advantages`.

    Returns:
        The batch, and `advantage_std`, the deviation over rows.
    """
    by_source = (len(candidates.pairs.source), -1)
    values = losses.group_advantages(
        jnp.asarray(np.where(reward.valid, reward.total, 0).reshape(by_source)),
        kind=kind,
        valid=jnp.asarray(reward.valid.reshape(by_source)),
    )
    flat = np.asarray(values, np.float32).reshape(-1)
    return PolicyBatch(candidates.pairs, flat), {"advantage_std": float(flat.std())}
