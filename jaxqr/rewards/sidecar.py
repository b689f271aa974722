"""Where arrays meet the network: scoring beside the device, failures masked.

    with Sidecar(reward, timeout=60) as sidecar:
        pending = sidecar.submit(queries, rewrites)
        ...                       # the device generates the next batch
        scores = pending.result()

A search engine or a judge that is down for a moment must cost a batch, not the run;
one that stays down must stop the run rather than let it train on nothing.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np

from jaxqr.rewards.reward import Reward

_log = logging.getLogger(__name__)


class Pending:
    """A batch that is being scored."""

    def __init__(
        self, sidecar: "Sidecar", queries: Sequence[str], rewrites: Sequence[str]
    ):
        self.queries = list(queries)
        self.rewrites = list(rewrites)
        self._sidecar = sidecar
        self._done = threading.Event()
        self._outcome: Reward | BaseException | None = None
        self._taken: Reward | None = None

    def result(self) -> Reward:
        """Waits for the scores; asking again gives the same.

        If scoring raised or took too long, no row is valid, and there are no parts.

        Raises:
            RuntimeError: If `max_consecutive_failures` batches in a row have failed.
            KeyboardInterrupt, SystemExit: If scoring raised one of these.
        """
        self._done.wait()
        if self._taken is None:
            self._taken = self._sidecar._take(self)
        return self._taken

    def _settle(self, outcome: Reward | BaseException) -> None:
        self._outcome = outcome
        self._done.set()


class Sidecar:
    """Scores batches in threads of its own.

    Attributes:
        failures: How many batches failed, among those whose result was asked for.
        first_failure: What went wrong with the first of them, None if nothing did.
    """

    def __init__(
        self,
        reward: Callable[[list[str], list[str]], Reward],
        *,
        workers: int = 1,
        timeout: float | None = None,
        max_consecutive_failures: int = 3,
    ):
        """Starts the workers. They are daemons: a hung one does not keep Python alive.

        Args:
            reward: Scores `(queries, rewrites)`; `rewrite_reward` with its keyword
                arguments filled in. With several workers it runs in several threads.
            workers: How many batches are scored at a time, in the order they came.
            timeout: Seconds that one batch may take from the start of its scoring;
                None waits for ever. What runs over is left behind, not stopped.
            max_consecutive_failures: The run stops at this many, counted in the order
                in which results are asked for.

        Raises:
            ValueError: If `workers` or `max_consecutive_failures` is below 1, or
                `timeout` is not above 0.
        """
        if workers < 1 or max_consecutive_failures < 1:
            raise ValueError(
                f"workers={workers}, max_consecutive_failures="
                f"{max_consecutive_failures}, expected at least 1 of each"
            )
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout is {timeout}, expected seconds above 0, or None")
        self.failures = 0
        self.first_failure: str | None = None
        self._reward = reward
        self._timeout = timeout
        self._limit = max_consecutive_failures
        self._consecutive = 0
        self._closed = False
        self._waiting: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._workers = workers
        for _ in range(workers):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, queries: Sequence[str], rewrites: Sequence[str]) -> Pending:
        """Hands a batch over and returns at once.

        Raises:
            RuntimeError: If the sidecar is closed.
        """
        if self._closed:
            raise RuntimeError("the sidecar is closed; submit inside its `with` block")
        pending = Pending(self, queries, rewrites)
        self._waiting.put(pending)
        return pending

    def close(self) -> None:
        """Takes no more batches. Those handed over are still scored."""
        if not self._closed:
            self._closed = True
            for _ in range(self._workers):
                self._waiting.put(None)

    def __enter__(self) -> "Sidecar":
        """Returns the sidecar."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def _work(self) -> None:
        # Each batch gets a thread, so that one that hangs can be left behind.
        while (pending := self._waiting.get()) is not None:
            scored: queue.SimpleQueue[Reward | BaseException] = queue.SimpleQueue()
            threading.Thread(
                target=_score, args=(self._reward, pending, scored), daemon=True
            ).start()
            try:
                pending._settle(scored.get(timeout=self._timeout))
            except queue.Empty:
                pending._settle(TimeoutError(f"no scores after {self._timeout} s"))

    def _take(self, pending: Pending) -> Reward:
        outcome = pending._outcome
        if isinstance(outcome, Reward):
            self._consecutive = 0
            return outcome
        assert outcome is not None
        if not isinstance(outcome, Exception):
            raise outcome
        self.failures += 1
        self._consecutive += 1
        message = f"{type(outcome).__name__}: {outcome}"
        _log.warning("batch of %d not scored: %s", len(pending.queries), message)
        if self.first_failure is None:
            self.first_failure = message
        if self._consecutive >= self._limit:
            raise RuntimeError(
                f"scoring failed {self._consecutive} times in a row, first of all with "
                f"{self.first_failure}. Check that the search engine and the judge "
                "answer, or raise max_consecutive_failures or timeout."
            ) from outcome
        rows = len(pending.queries)
        return Reward(np.zeros(rows, np.float32), {}, np.zeros(rows, np.bool_))


def _score(
    reward: Callable[[list[str], list[str]], Reward],
    pending: Pending,
    scored: queue.SimpleQueue[Reward | BaseException],
) -> None:
    try:
        result = reward(pending.queries, pending.rewrites)
        _check(result, len(pending.queries))
    except BaseException as error:  # raised again by whoever asks for the result
        scored.put(error)
    else:
        scored.put(result)


def _check(reward: Reward, rows: int) -> None:
    if reward.total.shape != (rows,) or reward.valid.shape != (rows,):
        raise ValueError(
            f"the reward has {reward.total.shape} totals and {reward.valid.shape} "
            f"valid flags, expected one of each for {rows} rewrites"
        )
    if not np.isfinite(reward.total[reward.valid]).all():
        raise ValueError("the reward has totals that are valid but not finite")
