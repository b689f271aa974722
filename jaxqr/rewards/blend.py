"""Several judges in one, such as logged shoppers, and simulated ones for the rest."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxqr.records import Hits, Interactions
from jaxqr.rewards.profiles import Profile
from jaxqr.rewards.reward import INTERACTIONS, Judge


class Blend:
    """The weighted mean of judges, for each list of those that know it.

    Weights are renormalized over the judges that are `valid` for a list; a list that
    none of them knows is not valid.

    Attributes:
        answered: how many lists each judge knew so far, in their order.
    """

    def __init__(self, judges: Mapping[Judge, float]):
        """Blends judges.

        Args:
            judges: the weight of each.

        Raises:
            ValueError: no judges, or a weight that is not above 0.
        """
        if not judges or not all(0 < w < float("inf") for w in judges.values()):
            raise ValueError(
                f"weights {list(judges.values())}: expected a finite number above 0 "
                "for each judge, and one judge at least"
            )
        self._judges = dict(judges)
        self.answered = [0] * len(judges)

    def __call__(
        self,
        queries: Sequence[str],
        hits: Hits,
        gains: Float[np.ndarray, "Q M"],
        profiles: Sequence[Profile],
    ) -> Interactions:
        """See `Judge`."""
        total = np.zeros(len(queries))
        sums = {name: np.zeros(len(queries)) for name in INTERACTIONS}
        for place, (judge, weight) in enumerate(self._judges.items()):
            verdict = judge(queries, hits, gains, profiles)
            total += weight * verdict.valid
            self.answered[place] += int(verdict.valid.sum())
            for name, column in sums.items():
                column += weight * np.where(verdict.valid, getattr(verdict, name), 0.0)
        rates = [(sums[n] / np.maximum(total, 1e-30)).astype(np.float32) for n in sums]
        return Interactions(*rates, valid=total > 0)
