"""Candidates that the current policy draws for a batch of sources."""

from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Key

from jaxqr import decode, vocab
from jaxqr.data.pipeline import Batches, bucket
from jaxqr.data.prompts import Source
from jaxqr.data.tokenize import pad_prompts
from jaxqr.decode import Sampling
from jaxqr.lm import LM
from jaxqr.models.value import COLLECTION, ValueModel
from jaxqr.sharding import shard_batch
from jaxqr.train.steps.update import completion
from jaxqr.types import AnyArray, Pairs, Params, PromptBatch, TrainState


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


class ReferencedSamples:
    """Samples with a reference's log-probabilities, and values if there is a head.

    Log-probabilities, values and reference log-probabilities are read off the finished
    targets in one pass each, with the parameters that drew. So the probability ratios
    of the first minibatch are 1 but for rounding, and the KL penalty is of one policy.

    Args:
        policy: the language model that is trained, as it started; with a value head for
            PPO.
        reference: the frozen one that the KL is to.
        sources: batches of sources, a list each.
        sampling: how to draw; at temperature 1 without truncation.
        n: candidates per source; PPO's minibatches need 1.

    Raises:
        ValueError: another temperature, or truncation: the samples are not the policy's
            then, and the ratios are wrong.
    """

    def __init__(
        self,
        policy: LM,
        reference: LM,
        sources: Batches[Any],
        sampling: Sampling,
        *,
        n: int = 1,
    ):
        check_untruncated(sampling, "the probability ratios of policy gradients")
        self._policy, self._reference = policy, reference
        self._samples = Samples(policy, sources, sampling, n=n)
        self.save, self.load = self._samples.save, self._samples.load

    def __call__(self, state: TrainState) -> Candidates:
        """Samples of the state's parameters, and what is known of their tokens."""
        candidates = self._samples(state)
        policy, reference = self._policy.with_params(state.params), self._reference
        pairs = shard_batch(candidates.pairs, policy.params)
        logps, values = read(policy.model, policy.params, pairs)
        ref_logps, _ = read(reference.model, reference.params, pairs)
        logps, values, ref_logps = jax.device_get((logps, values, ref_logps))
        return candidates._replace(logps=logps, values=values, ref_logps=ref_logps)


def check_untruncated(sampling: Sampling, what: str) -> None:
    """Refuses samples that are not drawn from the model's own distribution.

    Raises:
        ValueError: another temperature than 1, or truncation; `what` does not hold.
    """
    if sampling.arguments() != Sampling(*sampling[:2]).arguments():
        raise ValueError(
            f"{sampling}: {what} hold for samples at temperature 1 without truncation; "
            "leave these at their defaults"
        )


@partial(jax.jit, static_argnums=0)
def read(
    model: Any, params: Params, pairs: Pairs
) -> tuple[Float[Array, "BN T"], Float[Array, "BN T"] | None]:
    """Log-probabilities and values of the targets' tokens; 0 outside the mask.

    Args:
        model: a language model.
        params: its parameters; without a value head there are no values (None).
        pairs: sources and their targets.
    """
    if COLLECTION not in params:
        targets = completion(model, params, pairs)
        return (targets.logps * targets.mask)[:, 1:], None
    features, values, tokens, mask = ValueModel(model).completion(params, pairs)
    logps = vocab.token_logps(features, tokens)
    return (logps * mask)[:, 1:], (values * mask)[:, 1:]


class OnPolicyPairs:
    """The policy's own candidates as training pairs: on-policy distillation."""

    def __init__(self, draw: Draw):
        self._draw = draw
        self.save, self.load = draw.save, draw.load

    def next(self, state: TrainState) -> Pairs:
        """Sources with targets of the state's parameters."""
        return self._draw(state).pairs
