"""A language model as the shopper (MiniELM, section 3.2), and as a judge of queries."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from jaxqr.records import Hits, Interactions, Product
from jaxqr.rewards.llm.client import LLM, NoAnswerError
from jaxqr.rewards.profiles import Profile
from jaxqr.rewards.questions import (
    Job,
    judge_lists,
    probability_of_yes,
    same_search,
    yes_or_no,
)


class LLMJudge:
    """M2 by a language model: three questions about each list, a number for answer.

    The rate of an interaction is the number that the model answers with over the length
    of the list. A list with a question that could not be answered is not `valid`; the
    reasons are in `llm.counts`.

    The products are shown in an order of their own, because models favor places; with
    `both_orders` also in the reverse one, and the two answers are averaged.
    """

    def __init__(
        self,
        llm: LLM,
        products: Mapping[str, Product],
        *,
        both_orders: bool = False,
        fresh: bool = False,
        seed: int = 0,
    ):
        """A judge of a catalogue's products.

        Args:
            llm: what is asked.
            products: the catalogue by id. A list with others is not judged.
            both_orders: whether to ask about every list twice.
            fresh: whether to ask again what is in the cache.
            seed: draws other orders where it differs.
        """
        self.llm = llm
        self._products, self._seed = products, seed
        self._both_orders, self._fresh = both_orders, fresh

    def __call__(
        self,
        queries: Sequence[str],
        hits: Hits,
        gains: Float[np.ndarray, "Q M"],
        profiles: Sequence[Profile],
    ) -> Interactions:
        """See `Judge`; `gains` play no part."""
        del gains
        return judge_lists(
            lambda jobs: self.llm.map(self._ask, jobs),
            queries,
            hits,
            profiles,
            self._products,
            both_orders=self._both_orders,
            seed=self._seed,
            count=self.llm.count,
        )

    def _ask(self, job: Job) -> float:
        """NaN where there is no answer."""
        try:
            return self.llm.number(*job, fresh=self._fresh)
        except NoAnswerError:
            return float("nan")


def equivalent(
    llm: LLM, pairs: Sequence[tuple[str, str]]
) -> tuple[Float[np.ndarray, " P"], Bool[np.ndarray, " P"]]:
    """Whether two queries ask for the same thing: P(yes), and which are known.

    Where the server gives no probabilities they are 0 or 1.
    """

    def ask(pair: tuple[str, str]) -> float | None:
        try:
            logprobs = llm.abilities().logprobs
            answer = llm.ask(same_search(*pair), logprobs=logprobs)
        except NoAnswerError:
            return None
        likely = probability_of_yes(answer.positions[0]) if answer.positions else None
        found = yes_or_no(answer.text) if likely is None else likely
        if found is None:
            llm.count("no_yes_or_no")
        return found

    found = llm.map(ask, pairs)
    valid = np.array([p is not None for p in found], np.bool_)
    return np.array([p or 0.0 for p in found], np.float32), valid
