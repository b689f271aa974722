"""Where arrays meet text on the way out: `rewrite`, and rollouts without a reward.

`StudentSamples`, for on-policy distillation, and `MixtureRollouts`, for MiniLLM, are
sources of batches for `loop.run`: they draw samples of the state they are asked with.
Rollouts that a reward waits for are in `jaxqr.train.online`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxqr import decode
from jaxqr.data.pipeline import Batches, bucket, in_order
from jaxqr.data.tokenize import Tokenizer, pad_prompts
from jaxqr.train.sharding import shard_batch
from jaxqr.train.steps import MiniLLMBatch
from jaxqr.types import Pairs, Params, PromptBatch, TrainState


class Sampling(NamedTuple):
    """How rewrites are drawn; see `decode.generate`."""

    max_source: int = 32
    max_new_tokens: int = 24
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `decode.generate`."""
        fields = self._asdict()
        del fields["max_source"]
        return fields


def rewrite(
    model: Any,
    params: Params,
    tokenizer: Tokenizer,
    queries: Sequence[str],
    key: Key[Array, ""],
    *,
    sampling: Sampling,
    n: int = 1,
    batch_size: int = 64,
) -> list[list[str]]:
    """`n` rewrites of every query.

    Queries go through in batches of one shape, at most `batch_size` rewrites each but
    one query at least; the last one is filled up with copies of its last query.
    """
    sources = tokenizer.source(queries, sampling.max_source)
    most = max(1, batch_size // n)
    at_once = min(most, bucket(min(most, len(sources))))
    collate = partial(
        pad_prompts, width=bucket(sampling.max_source), fill=tokenizer.eos
    )
    texts: list[list[str]] = []
    for index, (prompts, real) in enumerate(
        in_order(sources, collate, batch_size=at_once)
    ):
        generated = decode.generate(
            model,
            params,
            shard_batch(prompts, params),
            jax.random.fold_in(key, index),
            n=n,
            **sampling.arguments(),
        )
        tokens, mask = jax.device_get((generated.tokens, generated.mask))
        flat = tokenizer.decode(tokens[: n * real], mask[: n * real])
        texts += [flat[i : i + n] for i in range(0, len(flat), n)]
    return texts


def sampling_key(state: TrainState) -> Key[Array, ""]:
    """The half of the state's key that the step itself does not go on with."""
    return jax.random.split(state.key)[1]


class StudentSamples:
    """The student's own continuations of the data's prompts, as `Pairs`."""

    def __init__(self, model: Any, prompts: Batches[Pairs], sampling: Sampling):
        self._model, self._prompts, self._sampling = model, prompts, sampling

    def next(self, state: TrainState) -> Pairs:
        """Samples of the state's parameters, drawn with the state's key."""
        batch = self._prompts.next(state)
        prompts = PromptBatch(batch.source, batch.source_mask)
        generated = decode.generate(
            self._model,
            state.params,
            shard_batch(prompts, state.params),
            sampling_key(state),
            **self._sampling.arguments(),
        )
        return Pairs(batch.source, batch.source_mask, generated.tokens, generated.mask)

    def save(self) -> dict[str, Any]:
        """The place in the prompts."""
        return self._prompts.save()

    def load(self, saved: dict[str, Any]) -> None:
        """Goes to a saved place."""
        self._prompts.load(saved)


class MixtureRollouts:
    """MiniLLM's batches: teacher-mixed rollouts, used for several inner epochs.

    Every `rollouts / batch_size * inner_epochs` steps, `rollouts` prompts are
    continued by `alpha teacher + (1 - alpha) student`; minibatches of them are then
    used in a new random order every inner epoch, each with a batch of plain text.

    Args:
        student: the model that is trained.
        teacher: the model it learns from.
        teacher_params: frozen.
        prompts: batches of `batch_size` pairs whose sources are continued.
        corpus: batches of plain text.
        sampling: how the mixture is drawn from.
        alpha: the teacher's share.
        rollouts: a multiple of `batch_size`.
        inner_epochs: how often each rollout is used.
        batch_size: rows of a minibatch.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        teacher_params: Params,
        prompts: Batches[Pairs],
        corpus: Batches[Pairs],
        sampling: Sampling,
        *,
        alpha: float,
        rollouts: int,
        inner_epochs: int,
        batch_size: int,
    ):
        if sampling.arguments() != Sampling(*sampling[:2]).arguments():
            raise ValueError(
                f"{sampling}: MiniLLM's importance weights hold for samples at "
                "temperature 1 without truncation; leave these at their defaults"
            )
        if rollouts % batch_size:
            raise ValueError(
                f"rollouts={rollouts} is not a multiple of batch_size={batch_size}"
            )
        self._student, self._teacher = student, teacher
        self._teacher_params = teacher_params
        self._prompts, self._corpus, self._sampling = prompts, corpus, sampling
        self._alpha, self._inner_epochs = alpha, inner_epochs
        self._rollouts, self._batch_size = rollouts, batch_size
        self._rows: list[np.ndarray] = []  # columns of the rollouts in use
        self._order = np.zeros((0, batch_size), np.int64)  # minibatches still to come

    def next(self, state: TrainState) -> MiniLLMBatch:
        """The next minibatch; samples anew when the rollouts are used up."""
        if not len(self._order):
            self._collect(state)
        index, self._order = self._order[0], self._order[1:]
        *pairs, student, teacher = [column[index] for column in self._rows]
        corpus = self._corpus.next(state)
        return MiniLLMBatch(Pairs(*pairs), student, teacher, corpus)

    def _collect(self, state: TrainState) -> None:
        parts = []
        key = sampling_key(state)
        width = bucket(self._sampling.max_source)
        for index in range(self._rollouts // self._batch_size):
            batch = self._prompts.next(state)
            extra = ((0, 0), (width - batch.source.shape[1], 0))
            source = np.pad(batch.source, extra)
            source_mask = np.pad(batch.source_mask, extra)
            drawn = decode.generate_mixture(
                self._student,
                state.params,
                self._teacher,
                self._teacher_params,
                shard_batch(PromptBatch(source, source_mask), state.params),
                jax.random.fold_in(key, index),
                alpha=self._alpha,
                **self._sampling.arguments(),
            )
            parts.append((source, source_mask, *jax.device_get(drawn)))
        self._rows = [np.concatenate(c) for c in zip(*parts, strict=True)]
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        orders = [rng.permutation(self._rollouts) for _ in range(self._inner_epochs)]
        self._order = np.concatenate(orders).reshape(-1, self._batch_size)

    def save(self) -> dict[str, Any]:
        """Both places in the data, and the rollouts still to be used."""
        return {
            "prompts": self._prompts.save(),
            "corpus": self._corpus.save(),
            "rows": self._rows,
            "order": self._order,
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Goes to a saved place."""
        self._prompts.load(saved["prompts"])
        self._corpus.load(saved["corpus"])
        self._rows, self._order = saved["rows"], saved["order"]
