"""Inner epochs: a large batch is used several times, in shuffled minibatches."""

from typing import Any

import jax
import numpy as np

from jaxqr.train.loop import Batches
from jaxqr.types import TrainState


class Minibatches:
    """Uses every batch of `batches` for several epochs of shuffled minibatches.

    A batch is any pytree whose arrays have one leading axis of rows. A new one is taken
    when the last is used up: after `epochs * rows / batch_size` minibatches.

    Args:
        batches: the large batches, such as rollouts.
        epochs: how often each row is used.
        batch_size: rows of a minibatch; divides the rows of a batch.
        seed: decides the orders, a new one every epoch.
    """

    def __init__(self, batches: Batches, *, epochs: int, batch_size: int, seed: int):
        if epochs < 1 or batch_size < 1:
            raise ValueError(f"{epochs=} and {batch_size=}: expected 1 or more of each")
        self._batches, self._seed = batches, seed
        self._epochs, self._batch_size = epochs, batch_size
        self._taken = 0
        self._batch: Any = None
        self._order = np.zeros((0, batch_size), np.int64)  # minibatches to come

    def next(self, state: TrainState) -> Any:
        """The next minibatch, with the batch's structure."""
        if not len(self._order):
            self._batch = jax.device_get(self._batches.next(state))
            self._order = self._orders(self._batch)
            self._taken += 1
        index, self._order = self._order[0], self._order[1:]
        return jax.tree.map(lambda x: x[index], self._batch)

    def report(self) -> dict[str, float]:
        """The numbers of the batch in use, if its source has any."""
        return getattr(self._batches, "report", dict)()

    def _orders(self, batch: Any) -> np.ndarray:
        lengths = sorted({len(x) for x in jax.tree.leaves(batch)}) or [0]
        if len(lengths) > 1:
            raise ValueError(
                f"a batch has arrays of {' and '.join(map(str, lengths))} rows: "
                "expected one number, such as one target to each source"
            )
        rows = lengths[0]
        if not rows or rows % self._batch_size:
            raise ValueError(
                f"a batch of {rows} rows does not divide into minibatches of "
                f"batch_size={self._batch_size}: choose a divisor"
            )
        rng = np.random.default_rng([self._seed, self._taken])
        orders = [rng.permutation(rows) for _ in range(self._epochs)]
        return np.concatenate(orders).reshape(-1, self._batch_size)

    def save(self) -> dict[str, Any]:
        """The place in the batches, and what is still to come of the one in use."""
        return {
            "batches": self._batches.save(),
            "taken": self._taken,
            "batch": self._batch,
            "order": self._order,
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Goes to a saved place."""
        self._batches.load(saved["batches"])
        self._taken = saved["taken"]
        self._batch, self._order = saved["batch"], saved["order"]
