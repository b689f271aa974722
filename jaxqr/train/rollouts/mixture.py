"""MiniLLM's rollouts: targets drawn from a mixture of teacher and student."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxqr import decode
from jaxqr.data.pipeline import Batches
from jaxqr.decode import Sampling
from jaxqr.lm import LM
from jaxqr.sharding import shard_batch
from jaxqr.train import loop
from jaxqr.train.rollouts.draw import (
    check_untruncated,
    prompt_batch,
    sampling_key,
)
from jaxqr.train.steps import MiniLLMBatch
from jaxqr.types import AnyArray, Pairs, TrainState


class MixtureRollout(NamedTuple):
    """Sampled targets, with the log-probabilities of both models that drew them."""

    pairs: Pairs
    student_logps: Float[AnyArray, "B T"]
    teacher_logps: Float[AnyArray, "B T"]


class MixtureRollouts:
    """Batches of `rollouts` targets of `alpha teacher + (1 - alpha) student`.

    `Minibatches` uses each of them for several inner epochs (Gu et al. 2024).

    Args:
        student: the language model that is trained, as it started.
        teacher: the one it learns from.
        sources: batches of sources, a list each.
        sampling: how to draw; at temperature 1 without truncation.
        alpha: the teacher's share.
        rollouts: rows of a batch, a multiple of the rows of `sources`.

    Raises:
        ValueError: another temperature, or truncation: the importance weights do not
            hold for it.
    """

    def __init__(
        self,
        student: LM,
        teacher: LM,
        sources: Batches[Any],
        sampling: Sampling,
        *,
        alpha: float,
        rollouts: int,
    ):
        check_untruncated(sampling, "MiniLLM's importance weights")
        self._student, self._teacher = student, teacher
        self._sources, self._sampling = sources, sampling
        self._alpha, self._rollouts = alpha, rollouts

    def next(self, state: TrainState) -> MixtureRollout:
        """Rollouts of the state's student, drawn with the state's key."""
        student = self._student.with_params(state.params)
        key = sampling_key(state)
        parts, sources, rows = [], [], 0
        while rows < self._rollouts:
            sources = self._sources.next(state)
            prompts = prompt_batch(student, sources, self._sampling)
            drawn = decode.generate_mixture(
                student.model,
                student.params,
                self._teacher.model,
                self._teacher.params,
                shard_batch(prompts, student.params),
                jax.random.fold_in(key, len(parts)),
                alpha=self._alpha,
                **self._sampling.arguments(),
            )
            parts.append((*prompts, *jax.device_get(drawn)))
            rows += len(sources)
        if rows != self._rollouts:
            raise ValueError(
                f"rollouts={self._rollouts} is not a multiple of the "
                f"{len(sources)} sources that are drawn from at a time"
            )
        *pairs, student_logps, teacher_logps = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        return MixtureRollout(Pairs(*pairs), student_logps, teacher_logps)

    def save(self) -> dict[str, Any]:
        """The place in the sources."""
        return self._sources.save()

    def load(self, saved: dict[str, Any]) -> None:
        """Goes to a saved place."""
        self._sources.load(saved)


class WithCorpus:
    """MiniLLM's batches: rollouts, and a batch of plain text for each."""

    def __init__(self, rollouts: loop.Batches, corpus: Batches[Pairs]):
        self._rollouts, self._corpus = rollouts, corpus

    def next(self, state: TrainState) -> MiniLLMBatch:
        """The next rollouts with the next plain text."""
        pairs, student_logps, teacher_logps = self._rollouts.next(state)
        corpus = self._corpus.next(state)
        return MiniLLMBatch(pairs, student_logps, teacher_logps, corpus)

    def save(self) -> dict[str, Any]:
        """Both places."""
        return {"rollouts": self._rollouts.save(), "corpus": self._corpus.save()}

    def load(self, saved: dict[str, Any]) -> None:
        """Goes to a saved place."""
        self._rollouts.load(saved["rollouts"])
        self._corpus.load(saved["corpus"])
