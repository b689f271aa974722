"""Scoring in threads, while the device draws the next batch; failures are masked.

    with ScoringPool(reward, timeout=60) as pool:
        pending = pool.submit(queries, rewrites)
        ...                       # the device generates the next batch
        scores = pending.result()

A search engine or a judge that is down for a moment must cost a batch, not the run;
one that stays down must stop the run rather than let it train on nothing.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxqr.records import Reward

_log = logging.getLogger(__name__)

Score = Callable[[list[Any], list[str]], Reward]
"""Scores texts as answers to their sources, such as rewrites of queries."""


class Pending:
    """A batch that is being scored."""

    def __init__(
        self, pool: "ScoringPool", sources: Sequence[Any], texts: Sequence[str]
    ):
        self.sources = list(sources)
        self.texts = list(texts)
        self._pool = pool
        self._done = threading.Event()
        self._outcome: Reward | BaseException | None = None
        self._taken: Reward | RuntimeError | None = None

    def result(self) -> Reward:
        """Waits for the scores; asking again gives the same.

        If scoring raised or took too long, no row is valid, and there are no parts.

        Raises:
            RuntimeError: If `max_consecutive_failures` batches in a row have failed:
                scoring raised, took too long, or has no valid row.
            KeyboardInterrupt, SystemExit: If scoring raised one of these.
        """
        self._done.wait()
        if self._taken is None:
            try:
                self._taken = self._pool._take(self)
            except RuntimeError as error:
                self._taken = error
        if isinstance(self._taken, RuntimeError):
            raise self._taken
        return self._taken

    def _settle(self, outcome: Reward | BaseException) -> None:
        self._outcome = outcome
        self._done.set()


class ScoringPool:
    """Scores batches in threads of its own.

    Attributes:
        failures: How many batches failed, among those whose result was asked for.
    """

    def __init__(
        self,
        score: Score,
        *,
        workers: int = 1,
        timeout: float | None = None,
        retries: int = 0,
        backoff: float = 1.0,
        max_consecutive_failures: int = 3,
    ):
        """Starts the workers. They are daemons: a hung one does not keep Python alive.

        Args:
            score: Scores `(sources, texts)`; `rewrite_reward` with its keyword
                arguments filled in. With several workers it runs in several threads.
            workers: How many batches are scored at a time, in the order they came.
            timeout: Seconds that one batch may take from the start of its scoring,
                its retries included; None waits for ever. What runs over is abandoned:
                the call under way is not stopped, and no retry follows it.
            retries: How often a batch whose scoring raised is scored again.
            backoff: Seconds before the first retry; each further one waits twice as
                long.
            max_consecutive_failures: The run stops at this many, counted in the order
                in which results are asked for.

        Raises:
            ValueError: If `workers` or `max_consecutive_failures` is below 1, `retries`
                or `backoff` below 0, or `timeout` is not above 0.
        """
        if workers < 1 or max_consecutive_failures < 1:
            raise ValueError(
                f"workers={workers}, max_consecutive_failures="
                f"{max_consecutive_failures}, expected at least 1 of each"
            )
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout is {timeout}, expected seconds above 0, or None")
        if retries < 0 or backoff < 0:
            raise ValueError(f"{retries=}, {backoff=}, expected 0 or more of each")
        self.failures = 0
        self._score, self._timeout = score, timeout
        self._retries, self._backoff = retries, backoff
        self._limit = max_consecutive_failures
        self._streak: list[str] = []  # what went wrong since the last success
        self._closed = False
        self._waiting: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._workers = workers
        for _ in range(workers):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, sources: Sequence[Any], texts: Sequence[str]) -> Pending:
        """Hands a batch over and returns at once.

        Raises:
            RuntimeError: If the pool is closed.
        """
        if self._closed:
            raise RuntimeError("the pool is closed; submit inside its `with` block")
        pending = Pending(self, sources, texts)
        self._waiting.put(pending)
        return pending

    def score(
        self, sources: Sequence[Any], texts: Sequence[str], *, batch_size: int = 64
    ) -> Reward:
        """Scores any number of texts and waits for them.

        They are batches of `batch_size` to timeouts, retries and failures.

        Raises:
            RuntimeError: As `Pending.result`.
        """
        starts = range(0, max(1, len(texts)), batch_size)
        parts = [slice(start, start + batch_size) for start in starts]
        pending = [self.submit(sources[part], texts[part]) for part in parts]
        return Reward.concatenate([batch.result() for batch in pending])

    def close(self) -> None:
        """Takes no more batches. Those handed over are still scored."""
        if not self._closed:
            self._closed = True
            for _ in range(self._workers):
                self._waiting.put(None)

    def __enter__(self) -> "ScoringPool":
        """Returns the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def _work(self) -> None:
        # Each batch gets a thread, so that one that hangs can be abandoned.
        while (pending := self._waiting.get()) is not None:
            scored: queue.SimpleQueue[Reward | BaseException] = queue.SimpleQueue()
            threading.Thread(
                target=self._attempt, args=(pending, scored), daemon=True
            ).start()
            try:
                pending._settle(scored.get(timeout=self._timeout))
            except queue.Empty:
                pending._settle(TimeoutError(f"no scores after {self._timeout} s"))

    def _attempt(
        self, pending: Pending, scored: queue.SimpleQueue[Reward | BaseException]
    ) -> None:
        for attempt in range(1 + self._retries):
            if attempt and pending._done.wait(self._backoff * 2 ** (attempt - 1)):
                return None  # too late: nobody waits for it any more
            try:
                reward = self._score(pending.sources, pending.texts)
                _check(reward, len(pending.texts))
            except Exception as error:
                if attempt == self._retries:
                    return scored.put(error)
            except BaseException as error:  # raised again by who asks for the result
                return scored.put(error)
            else:
                return scored.put(reward)

    def _take(self, pending: Pending) -> Reward:
        outcome, rows = pending._outcome, len(pending.texts)
        assert outcome is not None
        if isinstance(outcome, Reward):
            if outcome.valid.any() or not rows:
                self._streak.clear()
                return outcome
            message, reward = _nothing_valid(outcome), outcome
        elif isinstance(outcome, Exception):
            message = f"{type(outcome).__name__}: {outcome}"
            reward = Reward.unknown(rows)
        else:
            raise outcome
        self.failures += 1
        self._streak.append(message)
        _log.warning("batch of %d not scored: %s", rows, message)
        if len(self._streak) >= self._limit:
            reasons = dict.fromkeys(self._streak)
            count, self._streak = len(self._streak), []
            raise RuntimeError(
                f"scoring failed {count} times in a row ({'; '.join(reasons)}). Check "
                "that the search engine and the judge answer, or raise "
                "max_consecutive_failures or timeout."
            ) from (outcome if isinstance(outcome, Exception) else None)
        return reward


def _nothing_valid(reward: Reward) -> str:
    failed = {
        name.replace("_failed", ""): int(flag.sum())
        for name, flag in reward.flags.items()
        if name.endswith("_failed") and flag.any()
    }
    counts = ", ".join(f"{what} failed for {n}" for what, n in failed.items())
    return f"none of {len(reward.valid)} rows is valid" + (counts and f": {counts}")


def _check(reward: Reward, rows: int) -> None:
    if reward.total.shape != (rows,) or reward.valid.shape != (rows,):
        raise ValueError(
            f"the reward has {reward.total.shape} totals and {reward.valid.shape} "
            f"valid flags, expected one of each for {rows} texts"
        )
    if not np.isfinite(reward.total[reward.valid]).all():
        raise ValueError("the reward has totals that are valid but not finite")
