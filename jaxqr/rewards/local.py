"""A language model of our own as the shopper: the questions of the HTTP judge, scored.

No text is generated: the probability of every possible answer is read off one pass over
the question, so that an accelerator's host needs no second server.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxqr import sharding, vocab
from jaxqr.data.pipeline import bucket
from jaxqr.data.rows import pad_left, pad_right
from jaxqr.records import Hits, Interactions, Product
from jaxqr.rewards.profiles import Profile
from jaxqr.rewards.questions import MIN_MASS, Job, judge_lists, longer
from jaxqr.types import Pairs

WIDTH = 64
"""Questions are padded to a multiple of this many tokens."""


class LocalJudge:
    """M2 by a language model in this process; see `rewards.llm.LLMJudge`.

    Numbers are weighed as there (`questions.expected_number`): by the probability of
    their tokens, times that of no further digit where a longer number begins alike.

    Attributes:
        counts: lists and questions that could not be judged, by reason.
    """

    def __init__(
        self,
        lm: Any,
        products: Mapping[str, Product],
        *,
        max_tokens: int = 1024,
        batch_size: int = 4,
        both_orders: bool = False,
        seed: int = 0,
    ):
        """A judge of a catalogue's products.

        Args:
            lm: a `jaxqr.lm.LM` of an instruct model.
            products: the catalogue by id. A list with others is not judged.
            max_tokens: of a question; a list that needs more is not judged.
            batch_size: questions at a time.
            both_orders: whether to ask about every list twice.
            seed: draws other orders where it differs.

        Raises:
            ValueError: the model's tokenizer has no chat template.
        """
        if not lm.tokenizer.has_chat_template:
            raise ValueError(
                "the judge's tokenizer has no chat template, as that of a base model: "
                "give the folder of an instruct model"
            )
        self.counts: Counter[str] = Counter()
        self._lm, self._products = lm, products
        self._max_tokens, self._batch_size = max_tokens, batch_size
        self._both_orders, self._seed = both_orders, seed

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
            self.numbers,
            queries,
            hits,
            profiles,
            self._products,
            both_orders=self._both_orders,
            seed=self._seed,
            count=lambda why: self.counts.update([why]),
        )

    def numbers(self, jobs: Sequence[Job]) -> list[float]:
        """The mean number that each question is answered with; NaN where there is none.

        There is none where the question is too long (`too_long`), or the numbers have
        too little probability together (`no_number`).
        """
        found = [float("nan")] * len(jobs)
        prompts = [self._lm.tokenizer.chat(messages) for messages, _ in jobs]
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (prompt, (_, most)) in enumerate(zip(prompts, jobs, strict=True)):
            if len(prompt) > self._max_tokens:
                self.counts["too_long"] += 1
            else:
                width = -(-len(prompt) // WIDTH) * WIDTH
                groups.setdefault((most, width), []).append(i)
        for (most, width), members in sorted(groups.items()):
            answers = self._answers(most)
            for start in range(0, len(members), self._batch_size):
                part = members[start : start + self._batch_size]
                logps = self._logps([prompts[i] for i in part], width, answers)
                for i, row in zip(part, logps, strict=True):
                    weights = dict(zip(answers, np.exp(row).tolist(), strict=True))
                    mean = _mean(weights, most)
                    if mean is None:
                        self.counts["no_number"] += 1
                    else:
                        found[i] = mean
        return found

    def _answers(self, most: int) -> dict[str, list[int]]:
        """The ids of every number, and of those that a longer one begins like."""
        digits = list("0123456789")
        texts = [str(n) for n in range(most + 1)]
        ids = dict(zip(texts, self._lm.tokenizer.answers(texts), strict=True))
        single = dict(zip(digits, self._lm.tokenizer.answers(digits), strict=True))
        for text in texts:
            if longer(text, most):
                for digit in digits:
                    ids.setdefault(f"{text}+{digit}", ids[text] + single[digit])
        return ids

    def _logps(
        self, prompts: Sequence[list[int]], width: int, answers: Mapping[str, list[int]]
    ) -> Float[np.ndarray, "B N"]:
        """The log-probability of every answer to every question, in nats."""
        fill, rows = self._lm.tokenizer.eos, len(prompts)
        padded = [*prompts, *[prompts[-1]] * (bucket(rows) - rows)]
        source = pad_left(padded, width, fill)
        longest = max(map(len, answers.values()))
        target = pad_right([*answers.values()] * len(padded), longest, fill)
        batch = sharding.shard_batch(Pairs(*source, *target), self._lm.params)
        logps = np.asarray(_sum_logps(self._lm.model, self._lm.params, batch))
        return logps.reshape(len(padded), len(answers))[:rows]


def _mean(probabilities: Mapping[str, float], most: int) -> float | None:
    """The mean number, from the probabilities of `LocalJudge._answers`."""
    weights = np.zeros(most + 1)
    for n in range(most + 1):
        text = str(n)
        further = sum(p for t, p in probabilities.items() if t.startswith(f"{text}+"))
        weights[n] = max(probabilities[text] - further, 0.0)
    total = weights.sum()
    if not total >= MIN_MASS:
        return None
    return float(weights @ np.arange(most + 1) / total)


@partial(jax.jit, static_argnums=0)
def _sum_logps(model, params, batch):
    features, tokens, mask = model.apply(params, batch, method="completion")
    return jnp.sum(vocab.token_logps(features, tokens), axis=1, where=mask)
