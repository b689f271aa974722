"""Rounds that a reward waits for: draw, score on the host, make a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxqr.data.prompts import Source
from jaxqr.records import Reward
from jaxqr.train.rollouts.draw import Candidates, Draw
from jaxqr.types import TrainState

Score = Callable[[list[Source], list[str]], "Pending"]
"""Starts scoring texts as answers to their sources, and returns at once."""

Finish = Callable[[Candidates, Reward], tuple[Any, dict[str, float]]]
"""Makes a batch of scored candidates, and numbers to log next to the reward's. What
changes with what it has seen is `Adaptive`."""


@runtime_checkable
class Adaptive(Protocol):
    """A `Finish` with a state, such as an adaptive coefficient."""

    def save(self) -> dict[str, Any]:
        """The state."""
        ...

    def load(self, saved: dict[str, Any]) -> None:
        """Goes to a saved state."""
        ...


@runtime_checkable
class Pending(Protocol):
    """A reward on its way."""

    def result(self) -> Reward:
        """Waits for it."""
        ...


class _Known(NamedTuple):
    """A reward that came with a checkpoint."""

    reward: Reward

    def result(self) -> Reward:
        return self.reward


class _Round(NamedTuple):
    """Candidates that are being scored."""

    candidates: Candidates
    pending: Pending


class OnlineRollouts:
    """Batches made of the current policy's own, scored candidates.

    With a `lag` of L, the candidates of steps k + 1 to k + L are drawn while those of
    step k are scored, so that up to L batches are on their way and each is L steps off
    the policy that it trains (fewer at the very beginning); with 0, exactly on-policy
    and strictly in turn.

    Args:
        draw: the candidates of a state, such as `Samples`.
        score: such as `rewards.ScoringPool.submit`.
        finish: such as `finish.prefer`.
        lag: how many steps a batch may be off the policy. A reward that takes as long
            as L steps needs a lag of L, and `score` to score L batches at a time.

    Raises:
        ValueError: `lag` is below 0.
    """

    def __init__(self, draw: Draw, score: Score, finish: Finish, *, lag: int = 1):
        if lag < 0:
            raise ValueError(f"{lag=}: expected a number of steps, 0 or more")
        self._draw, self._score, self._finish = draw, score, finish
        self._lag = lag
        self._queue: list[_Round] = []
        self._report: dict[str, float] = {}

    def next(self, state: TrainState) -> Any:
        """The next batch."""
        while len(self._queue) < 1 + self._lag:
            candidates = self._draw(state)
            pending = self._score(candidates.sources, candidates.texts)
            self._queue.append(_Round(candidates, pending))
        candidates, pending = self._queue[0]  # and stays, if scoring fails for good
        reward = pending.result()
        batch, report = self._finish(candidates, reward)
        self._report = _summary(candidates, reward) | report
        del self._queue[0]
        return batch

    def report(self) -> dict[str, float]:
        """Reward, its parts, and what went wrong, of the latest batch."""
        return self._report

    def save(self) -> dict[str, Any]:
        """The place in the sources, and the queued candidates with their rewards.

        Candidates that cannot be scored now are scored again after `load`.
        """
        return {
            "report": self._report,  # a batch may be in use for several steps
            "draw": self._draw.save(),
            "finish": self._finish.save() if isinstance(self._finish, Adaptive) else {},
            "queue": [
                {"candidates": waiting.candidates, "reward": _saved(waiting.pending)}
                for waiting in self._queue
            ],
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Goes to a saved place."""
        self._report = saved.get("report", {})
        self._draw.load(saved["draw"])
        if isinstance(self._finish, Adaptive):
            self._finish.load(saved["finish"])
        self._queue = []
        for waiting in saved["queue"]:
            candidates, reward = waiting["candidates"], waiting["reward"]
            if reward is None:
                pending = self._score(candidates.sources, candidates.texts)
            else:
                pending = _Known(Reward.from_json(reward))
            self._queue.append(_Round(candidates, pending))


def _saved(pending: Pending) -> dict[str, Any] | None:
    try:
        return pending.result().to_json()
    except RuntimeError:  # too many failures in a row
        return None


def _summary(candidates: Candidates, reward: Reward) -> dict[str, float]:
    """Means over candidates: of valid ones the reward and its parts, of all the rest.

    `failed` is the share that was not scored, `length` is in tokens.
    """
    names = ("reward", *reward.parts)
    columns = (reward.total, *reward.parts.values())
    report = {
        name: mean_where(column, reward.valid)
        for name, column in zip(names, columns, strict=True)
    }
    report |= {name: float(np.mean(flag)) for name, flag in reward.flags.items()}
    return report | {
        "failed": float(np.mean(~reward.valid)),
        "length": float(np.mean(candidates.pairs.target_mask.sum(axis=1))),
    }


def mean_where(values: np.ndarray, where: np.ndarray) -> float:
    """The mean of the marked values; NaN if none is."""
    return float(np.mean(values, where=where)) if np.any(where) else float("nan")
