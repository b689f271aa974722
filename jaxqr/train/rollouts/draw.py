"""Candidates that the current policy draws for a batch of sources."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Key

from jaxqr import decode
from jaxqr.data.pipeline import Batches, bucket
from jaxqr.data.prompts import Source
from jaxqr.data.tokenize import pad_prompts
from jaxqr.decode import Sampling
from jaxqr.lm import LM
from jaxqr.sharding import shard_batch
from jaxqr.types import AnyArray, Pairs, PromptBatch, TrainState


class Candidates(NamedTuple):
    """N targets of each source, row `b * N + n` being source b's n-th."""

    sources: list[Source]
    """The source of each row: each of the B sources N times."""
    texts: list[str]
    pairs: Pairs
    logps: Float[AnyArray, "BN T"]
    """Of the policy that drew them, at temperature 1; 0 outside the mask."""
    values: Float[AnyArray, "BN T"] | None = None
    """A value head's, of the parameters that drew; None without such a head."""
    ref_logps: Float[AnyArray, "BN T"] | None = None
    """Of a reference, where the reward has a KL penalty."""


@runtime_checkable
class Draw(Protocol):
    """Draws candidates of the state's parameters; can save its place in the data."""

    def __call__(self, state: TrainState) -> Candidates:
        """Candidates for the next sources."""
        ...

    def save(self) -> dict[str, Any]:
        """All that is needed to go on after the last candidates."""
        ...

    def load(self, saved: dict[str, Any]) -> None:
        """Goes to a saved place."""
        ...


def sampling_key(state: TrainState) -> Key[Array, ""]:
    """The half of the state's key that the step itself does not go on with."""
    return jax.random.split(state.key)[1]


def prompt_batch(lm: LM, sources: list[Source], sampling: Sampling) -> PromptBatch:
    """Sources as prompts of one width."""
    tokens = lm.tokenizer.source(sources, sampling.max_source)
    return pad_prompts(tokens, bucket(sampling.max_source), lm.tokenizer.eos)


class Samples:
    """Draws `n` samples of each source from the current policy.

    Args:
        policy: the language model that is trained, as it started.
        sources: batches of sources, a list each.
        sampling: how to draw.
        n: candidates per source.
    """

    def __init__(
        self,
        policy: LM,
        sources: Batches[Any],
        sampling: Sampling,
        *,
        n: int = 1,
    ):
        self._policy, self._sources = policy, sources
        self._sampling, self._n = sampling, n
        self._rounds = 0  # two draws of one state must differ

    def __call__(self, state: TrainState) -> Candidates:
        """Samples of the state's parameters, drawn with the state's key."""
        policy = self._policy.with_params(state.params)
        sources = self._sources.next(state)
        prompts = prompt_batch(policy, sources, self._sampling)
        generated = decode.generate(
            policy.model,
            policy.params,
            shard_batch(prompts, policy.params),
            jax.random.fold_in(sampling_key(state), self._rounds),
            n=self._n,
            **self._sampling.arguments(),
        )
        self._rounds += 1
        tokens, mask, logps = jax.device_get(generated)
        return Candidates(
            [source for source in sources for _ in range(self._n)],
            policy.tokenizer.decode(tokens, mask),
            Pairs(*prompts, tokens, mask),
            logps,
        )

    def save(self) -> dict[str, Any]:
        """The place in the sources."""
        return {"sources": self._sources.save(), "rounds": self._rounds}

    def load(self, saved: dict[str, Any]) -> None:
        """Goes to a saved place."""
        self._sources.load(saved["sources"])
        self._rounds = saved["rounds"]


class OnPolicyPairs:
    """The policy's own candidates as training pairs: on-policy distillation."""

    def __init__(self, draw: Draw):
        self._draw = draw
        self.save, self.load = draw.save, draw.load

    def next(self, state: TrainState) -> Pairs:
        """Sources with targets of the state's parameters."""
        return self._draw(state).pairs
