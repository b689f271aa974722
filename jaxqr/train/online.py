"""Rollouts that a reward waits for: draw, score beside the device, make a batch.

    queries -> N samples each -> texts -> score (search, M1, shoppers) -> finish

`finish` decides what is learnt from scored candidates: `prefer` makes the pairs of
online DPO; a policy-gradient stage makes advantages of the same candidates.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float

from jaxqr import decode
from jaxqr.data.pipeline import Batches, bucket
from jaxqr.data.tokenize import Tokenizer, pad_prompts
from jaxqr.train.rollout import Sampling, sampling_key
from jaxqr.train.sharding import shard_batch
from jaxqr.types import AnyArray, Pairs, Preferences, TrainState


@runtime_checkable
class Reward(Protocol):
    """What this module reads of `jaxqr.rewards.Reward`."""

    @property
    def total(self) -> np.ndarray: ...  # noqa: D102
    @property
    def parts(self) -> Mapping[str, np.ndarray]: ...  # noqa: D102
    @property
    def valid(self) -> np.ndarray: ...  # noqa: D102
    @property
    def flags(self) -> Mapping[str, np.ndarray]: ...  # noqa: D102


@runtime_checkable
class Pending(Protocol):
    """A reward on its way."""

    def result(self) -> Reward:
        """Waits for it."""
        ...


class _Scored(NamedTuple):
    """A reward that came with a checkpoint."""

    reward: Reward

    def result(self) -> Reward:
        return self.reward


class Candidates(NamedTuple):
    """N sampled targets of each source, row `b * N + n` being source b's n-th."""

    pairs: Pairs
    logps: Float[AnyArray, "BN T"]
    """Of the policy that drew them, at temperature 1; 0 outside the mask."""


class _Round(NamedTuple):
    """Candidates and their texts, which are being scored."""

    candidates: Candidates
    queries: list[str]
    rewrites: list[str]
    pending: Pending


Finish = Callable[[Candidates, Reward], tuple[Any, dict[str, float]]]
"""Makes a batch of scored candidates, and numbers to log beside the reward's."""


class OnlineRollouts:
    """Batches made of the current policy's own, scored candidates.

    With `overlap`, the candidates of step k + 1 are generated while those of step k
    are scored, so a batch is one step off the policy that it trains; without it,
    exactly on-policy and strictly in turn.

    Args:
        model: the policy's model.
        tokenizer: its tokenizer.
        queries: batches of query texts.
        score: starts scoring (queries, rewrites) and returns at once.
        make_reward: builds a reward from the saved fields total, parts, valid, flags.
        finish: makes the batch, such as `prefer`.
        sampling: how candidates are drawn.
        candidates: N per query.
        overlap: score and generate at the same time.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        queries: Batches[list[str]],
        score: Callable[[list[str], list[str]], Pending],
        make_reward: Callable[..., Reward],
        finish: Finish,
        sampling: Sampling,
        *,
        candidates: int = 2,
        overlap: bool = True,
    ):
        self._model, self._tokenizer = model, tokenizer
        self._queries, self._score, self._make_reward = queries, score, make_reward
        self._finish, self._sampling = finish, sampling
        self._count, self._overlap = candidates, overlap
        self._rounds = 0
        self._queue: list[_Round] = []
        self._report: dict[str, float] = {}

    def next(self, state: TrainState) -> Any:
        """The next batch."""
        while len(self._queue) < 1 + self._overlap:
            self._queue.append(self._draw(state))
        waiting = self._queue[0]  # and stays, if scoring fails for good
        reward = waiting.pending.result()
        batch, report = self._finish(waiting.candidates, reward)
        self._report = _summary(waiting.candidates, reward) | report
        del self._queue[0]
        return batch

    def report(self) -> dict[str, float]:
        """Reward, its parts, and what went wrong, of the latest batch."""
        return self._report

    def _draw(self, state: TrainState) -> _Round:
        queries = self._queries.next(state)
        prompts = pad_prompts(
            self._tokenizer.source(queries, self._sampling.max_source),
            bucket(self._sampling.max_source),
            self._tokenizer.eos,
        )
        generated = decode.generate(
            self._model,
            state.params,
            shard_batch(prompts, state.params),
            jax.random.fold_in(sampling_key(state), self._rounds),
            n=self._count,
            **self._sampling.arguments(),
        )
        self._rounds += 1
        tokens, mask, logps = jax.device_get(generated)
        repeated = [query for query in queries for _ in range(self._count)]
        rewrites = self._tokenizer.decode(tokens, mask)
        return _Round(
            Candidates(Pairs(*prompts, tokens, mask), logps),
            repeated,
            rewrites,
            self._score(repeated, rewrites),
        )

    def save(self) -> dict[str, Any]:
        """The place in the queries, and the queued candidates with their rewards.

        Candidates that cannot be scored now are scored anew after `load`.
        """
        return {
            "queries": self._queries.save(),
            "rounds": self._rounds,
            "queue": [
                {
                    "candidates": [*waiting.candidates.pairs, waiting.candidates.logps],
                    "queries": waiting.queries,
                    "rewrites": waiting.rewrites,
                    "reward": _saved(waiting.pending),
                }
                for waiting in self._queue
            ],
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Goes to a saved place."""
        self._queries.load(saved["queries"])
        self._rounds = saved["rounds"]
        self._queue = []
        for waiting in saved["queue"]:
            *pairs, logps = waiting["candidates"]
            texts, reward = (waiting["queries"], waiting["rewrites"]), waiting["reward"]
            pending = (
                self._score(*texts)
                if reward is None
                else _Scored(self._make_reward(**reward))
            )
            self._queue.append(
                _Round(Candidates(Pairs(*pairs), logps), *texts, pending)
            )


def _saved(pending: Pending) -> dict[str, Any] | None:
    try:
        reward = pending.result()
    except RuntimeError:  # too many failures in a row
        return None
    return {
        "total": reward.total,
        "parts": dict(reward.parts),
        "valid": reward.valid,
        "flags": dict(reward.flags),
    }


def prefer(
    candidates: Candidates, reward: Reward
) -> tuple[Preferences, dict[str, float]]:
    """Best against worst of each query's candidates: the pairs of online DPO.

    Rows without two validly scored candidates, and ties, get weight 0.

    Returns:
        The preferences, and their mean `chosen_score` and `rejected_score` over the
        pairs that count, and the share of rows that are `tied`.

    Raises:
        ValueError: fewer than two candidates per query.
    """
    pairs, queries = candidates.pairs, len(candidates.pairs.source)
    total = np.where(reward.valid, reward.total, np.nan).reshape(queries, -1)
    valid = reward.valid.reshape(queries, -1)
    count = valid.shape[1]
    if count < 2:
        raise ValueError(f"candidates={count} per query: a preference needs two")
    best = np.argmax(np.where(valid, total, -np.inf), axis=1)
    worst = np.argmin(np.where(valid, total, np.inf), axis=1)
    rows = np.arange(queries)
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
        "chosen_score": _mean(total[rows, best], counted),
        "rejected_score": _mean(total[rows, worst], counted),
        "tied": float(np.mean(scored & ~counted)),
    }


def _summary(candidates: Candidates, reward: Reward) -> dict[str, float]:
    """Means over candidates: of valid ones the reward and its parts, of all the rest.

    `failed` is the share that was not scored, `length` is in tokens.
    """
    report = {"reward": _mean(reward.total, reward.valid)}
    report |= {k: _mean(v, reward.valid) for k, v in reward.parts.items()}
    report |= {k: float(np.mean(v)) for k, v in reward.flags.items()}
    return report | {
        "failed": float(np.mean(~reward.valid)),
        "length": float(np.mean(candidates.pairs.target_mask.sum(axis=1))),
    }


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    return float(np.mean(values, where=where)) if np.any(where) else float("nan")
