"""Where arrays meet text on the way out: rollouts, and the batches made of them.

Three sources of batches for `loop.run`, each drawing samples of the state it is asked
with: `StudentSamples` for on-policy distillation, `MixtureRollouts` for MiniLLM,
`OnlinePreferences` for online DPO. `rewrite` is generation from text to text.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxqr import decode
from jaxqr.data.pipeline import Batches, bucket, in_order
from jaxqr.data.tokenize import Tokenizer, pad_prompts
from jaxqr.train.steps import MiniLLMBatch
from jaxqr.types import AnyArray, Pairs, Params, Preferences, Prompts, TrainState


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

    Queries go through in batches of one shape; the last one is filled up with
    copies of its last query.
    """
    width = bucket(sampling.max_source)
    collate = partial(pad_prompts, width=width, fill=tokenizer.eos)
    once = tokenizer.source(queries, sampling.max_source)
    sources = [source for source in once for _ in range(n)]
    texts: list[str] = []
    for index, (prompts, real) in enumerate(
        in_order(sources, collate, batch_size=batch_size)
    ):
        generated = decode.generate(
            model,
            params,
            prompts,
            jax.random.fold_in(key, index),
            **sampling.arguments(),
        )
        tokens, mask = jax.device_get((generated.tokens, generated.mask))
        texts += tokenizer.decode(tokens[:real], mask[:real])
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def _sampling_key(state: TrainState) -> Key[Array, ""]:
    """The half of the state's key that the step itself does not go on with."""
    return jax.random.split(state.key)[1]


class StudentSamples:
    """The student's own continuations of the data's prompts, as `Pairs`."""

    def __init__(self, model: Any, prompts: Batches[Pairs], sampling: Sampling):
        self._model, self._prompts, self._sampling = model, prompts, sampling

    def next(self, state: TrainState) -> Pairs:
        """Samples of the state's parameters, drawn with the state's key."""
        batch = self._prompts.next(state)
        generated = decode.generate(
            self._model,
            state.params,
            Prompts(batch.source, batch.source_mask),
            _sampling_key(state),
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
        key = _sampling_key(state)
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
                Prompts(source, source_mask),
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


class _Round(NamedTuple):
    """Candidates of one batch of queries, row `q * N + n` being query q's n-th."""

    source: AnyArray
    source_mask: AnyArray
    tokens: AnyArray
    mask: AnyArray
    pending: Pending


class OnlinePreferences:
    """Candidates of the current policy, scored, best against worst.

    With `overlap`, the candidates of step k + 1 are generated while those of step k
    are scored, so a batch is one step off the policy that it trains; without it,
    exactly on-policy and strictly in turn.

    Args:
        model: the policy's model.
        tokenizer: its tokenizer.
        queries: batches of query texts.
        score: starts scoring (queries, rewrites) and returns at once.
        make_reward: builds a reward from the saved fields total, parts, valid, flags.
        sampling: how candidates are drawn.
        candidates: N >= 2 per query.
        overlap: score and generate at the same time.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        queries: Batches[list[str]],
        score: Callable[[list[str], list[str]], Pending],
        make_reward: Callable[..., Reward],
        sampling: Sampling,
        *,
        candidates: int = 2,
        overlap: bool = True,
    ):
        if candidates < 2:
            raise ValueError(f"candidates={candidates}: a preference needs two")
        self._model, self._tokenizer = model, tokenizer
        self._queries, self._score, self._make_reward = queries, score, make_reward
        self._sampling, self._candidates = sampling, candidates
        self._overlap = overlap
        self._rounds = 0
        self._queue: list[_Round] = []
        self._report: dict[str, float] = {}

    def next(self, state: TrainState) -> Preferences:
        """The next batch of preferences."""
        while len(self._queue) < 1 + self._overlap:
            self._queue.append(self._launch(state))
        finished = self._queue.pop(0)
        reward = finished.pending.result()
        batch, self._report = prefer(finished, reward, self._candidates)
        return batch

    def report(self) -> dict[str, float]:
        """Reward, its parts, and what went wrong, of the latest batch."""
        return self._report

    def _launch(self, state: TrainState) -> _Round:
        queries = [
            q for q in self._queries.next(state) for _ in range(self._candidates)
        ]
        width = bucket(self._sampling.max_source)
        prompts = pad_prompts(
            self._tokenizer.source(queries, self._sampling.max_source),
            width,
            self._tokenizer.eos,
        )
        generated = decode.generate(
            self._model,
            state.params,
            prompts,
            jax.random.fold_in(_sampling_key(state), self._rounds),
            **self._sampling.arguments(),
        )
        self._rounds += 1
        tokens, mask = jax.device_get((generated.tokens, generated.mask))
        pending = self._score(queries, self._tokenizer.decode(tokens, mask))
        return _Round(prompts.tokens, prompts.mask, tokens, mask, pending)

    def save(self) -> dict[str, Any]:
        """The place in the queries, and the queued rounds with their rewards."""
        queue = []
        for waiting in self._queue:
            reward = waiting.pending.result()
            queue.append(
                {name: getattr(waiting, name) for name in _Round._fields[:-1]}
                | {
                    "reward": {
                        "total": reward.total,
                        "parts": dict(reward.parts),
                        "valid": reward.valid,
                        "flags": dict(reward.flags),
                    }
                }
            )
        return {
            "queries": self._queries.save(),
            "rounds": self._rounds,
            "queue": queue,
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Goes to a saved place."""
        self._queries.load(saved["queries"])
        self._rounds = saved["rounds"]
        self._queue = [
            _Round(
                **{name: waiting[name] for name in _Round._fields[:-1]},
                pending=_Scored(self._make_reward(**waiting["reward"])),
            )
            for waiting in saved["queue"]
        ]


def prefer(
    candidates: _Round, reward: Reward, n: int
) -> tuple[Preferences, dict[str, float]]:
    """Best against worst of each query's `n` candidates.

    Rows without two validly scored candidates, and ties, get weight 0.

    Returns:
        The preferences, and means over rows to log: `reward` and its parts over all
        valid candidates, chosen and rejected rewards over the pairs that count.
    """
    total = np.where(reward.valid, reward.total, np.nan).reshape(-1, n)
    valid = reward.valid.reshape(-1, n)
    best = np.argmax(np.where(valid, total, -np.inf), axis=1)
    worst = np.argmin(np.where(valid, total, np.inf), axis=1)
    rows = np.arange(len(total))
    scored = valid.sum(axis=1) >= 2
    counted = scored & (total[rows, best] > total[rows, worst])
    chosen, rejected = rows * n + best, rows * n + worst
    batch = Preferences(
        candidates.source[chosen],
        candidates.source_mask[chosen],
        candidates.tokens[chosen],
        candidates.mask[chosen],
        candidates.tokens[rejected],
        candidates.mask[rejected],
        counted.astype(np.float32),
    )

    def mean(values, where):
        return float(np.mean(values, where=where)) if np.any(where) else float("nan")

    report = {"reward": mean(reward.total, reward.valid)}
    report |= {k: mean(v, reward.valid) for k, v in reward.parts.items()}
    report |= {k: float(np.mean(v)) for k, v in reward.flags.items()}
    return batch, report | {
        "chosen_score": mean(total[rows, best], counted),
        "rejected_score": mean(total[rows, worst], counted),
        "tied": float(np.mean(scored & ~counted)),
        "failed": float(np.mean(~reward.valid)),
        "length": float(np.mean(candidates.mask.sum(axis=1))),
    }
