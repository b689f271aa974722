"""The train steps: module-level pure functions, jitted in one place.

Every step is `step(state, batch, *frozen_params, **static) -> (state, metrics)`.
`compile_step` binds what is static (models, the optimiser, coefficients) and donates
the state. Teacher and reference parameters are positional arguments, never closures.
Metrics are scalars; the text says which mean each one is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxqr import losses, vocab
from jaxqr.train.state import joined, split
from jaxqr.types import (
    AnyArray,
    Features,
    LabeledBatch,
    Pairs,
    Params,
    Preferences,
    TrainState,
)

Metrics = dict[str, Float[Array, ""]]


def compile_step(
    step: Callable,
    *,
    donate: bool = True,
    like: TrainState | None = None,
    **static: Any,
) -> Callable:
    """Jits `step` with its static arguments bound and its first argument donated.

    Args:
        step: one of this module's steps.
        donate: False is for functions that only read, such as `measure`.
        like: where the new state's arrays shall live: where this one's do. On several
            devices XLA else chooses anew, and the second step compiles once more.
        static: the step's keyword arguments.
    """
    step = partial(step, **static)
    if not donate:
        return jax.jit(step)
    if "model" in static and static["model"].config.lora_rank:
        return _Adapting(step, like)
    placed = None if like is None else (_shardings(like), None)
    return jax.jit(step, donate_argnums=0, out_shardings=placed)


class _Adapting:
    """A compiled step of a model with adapters.

    What is not trained goes in beside the state instead of in it, and does not come
    out: a step neither copies it nor takes it from others, such as a reference.
    """

    def __init__(self, step: Callable, like: TrainState | None):
        def of_trained(state: TrainState, kept: Params, *rest: Any):
            full = state._replace(params=joined(state.params, kept))
            new, metrics = step(full, *rest)
            return new._replace(params=split(new.params)[0]), metrics

        placed = None
        if like is not None:
            trained = like._replace(params=split(like.params)[0])
            placed = _shardings(trained), None
        self._step = jax.jit(of_trained, donate_argnums=0, out_shardings=placed)
        self._cache_size = self._step._cache_size  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, state: TrainState, *rest: Any) -> tuple[TrainState, Metrics]:
        trained, kept = split(state.params)
        new, metrics = self._step(state._replace(params=trained), kept, *rest)
        return new._replace(params=joined(new.params, kept)), metrics


def _shardings(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: x.sharding, state)


def _update(
    state: TrainState, loss: Callable, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """One optimiser step on `loss(params) -> (loss, metrics)`."""
    trained, kept = split(state.params)

    def of_trained(trained: Params):
        return loss(joined(trained, kept))

    (value, metrics), grads = jax.value_and_grad(of_trained, has_aux=True)(trained)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    params = joined(optax.apply_updates(trained, updates), kept)
    key = jax.random.split(state.key)[0]  # the other half is for sampling
    scalars = {k: v for k, v in metrics.items() if v.ndim == 0}
    return TrainState(params, opt_state, key, state.step + 1), scalars | {
        "loss": value,
        "grad_norm": optax.tree.norm(grads),
    }


class _Completion(NamedTuple):
    """A batch's targets under one model; column 0 is the last source token."""

    features: Features
    logps: Float[Array, "B T"]
    mask: Array


def _completion(model: Any, params: Params, batch: Pairs) -> _Completion:
    features, tokens, mask = model.apply(params, batch, method="completion")
    return _Completion(features, vocab.token_logps(features, tokens), mask)


def _align(values: Float[AnyArray, "B T"]) -> Float[Array, "B T+1"]:
    """Numbers per target token -> the columns of a completion."""
    return jnp.pad(values, ((0, 0), (1, 0)))


def sft_step(
    state: TrainState,
    batch: Pairs,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """Supervised fine-tuning: mean NLL of the target tokens, EOS included.

    Metrics: `loss` in nats per target token, `tokens` the number of them.
    """

    def loss(params):
        completion = _completion(model, params, batch)
        return losses.nll(completion.logps, completion.mask)

    return _update(state, loss, optimizer)


def distill_step(
    state: TrainState,
    batch: Pairs,
    teacher_params: Params,
    *,
    model: Any,
    teacher: Any,
    optimizer: optax.GradientTransformation,
    kind: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    nll_weight: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """Token-level distillation on the batch's targets.

    With targets from the data this is plain knowledge distillation, with the
    student's own samples on-policy distillation (Agarwal et al. 2024).
    loss = mean divergence + `nll_weight` * mean NLL, per target token.

    Metrics: `divergence` and `nll` in nats per target token.
    """
    teacher_features, _, _ = teacher.apply(teacher_params, batch, method="completion")

    def loss(params):
        student = _completion(model, params, batch)
        divergence = losses.masked_mean(
            vocab.divergence(
                student.features,
                teacher_features,
                kind=kind,
                beta=beta,
                temperature=temperature,
            ),
            student.mask,
        )
        nll, metrics = losses.nll(student.logps, student.mask)
        metrics = metrics | {"divergence": divergence, "nll": nll}
        return divergence + nll_weight * nll, metrics

    return _update(state, loss, optimizer)


class MiniLLMBatch(NamedTuple):
    """Rollouts of the teacher-student mixture, and plain text beside them."""

    rollout: Pairs
    student_logps: Float[AnyArray, "B T"]  # of the student that sampled
    teacher_logps: Float[AnyArray, "B T"]
    corpus: Pairs


class MiniLLM(NamedTuple):
    """Coefficients of `minillm_step` (Gu et al. 2024).

    `paper` has the paper's returns, normalised by length; its single-step part
    carries no importance weight. `lmops` follows the authors' released code:
    scaled and clipped rewards, discounting, whitened returns.
    """

    alpha: float = 0.2  # share of the teacher in the sampling mixture
    clip: float = 0.2
    gamma: float = 1.0
    include_current: bool = False
    reward_scale: float = 1.0
    reward_clip: float | None = None
    whiten: bool = False
    single_step_weight: float = 1.0
    corpus_weight: float = 1.0

    @classmethod
    def mode(cls, name: str, **overrides: Any) -> "MiniLLM":
        """The settings of `paper` or `lmops`.

        Raises:
            ValueError: another name.
        """
        if name == "paper":
            return cls(**overrides)
        if name == "lmops":
            lmops = {"gamma": 0.95, "include_current": True, "whiten": True}
            return cls(**lmops, reward_scale=2.0, reward_clip=100.0, **overrides)
        raise ValueError(f"mode={name!r} is not one of ('paper', 'lmops')")


def minillm_step(
    state: TrainState,
    batch: MiniLLMBatch,
    teacher_params: Params,
    *,
    model: Any,
    teacher: Any,
    optimizer: optax.GradientTransformation,
    settings: MiniLLM,
) -> tuple[TrainState, Metrics]:
    """Reverse-KL distillation by policy gradient (Gu et al. 2024, eq. 8).

    loss = policy part (clipped, importance-weighted, on the returns of
    log p - log q) + single-step part (full-vocabulary reverse KL at every counted
    position) + language-model part (NLL of the corpus). Every part is a mean per
    counted token.

    Metrics: `policy`, `reverse_kl` (on the rollouts), `corpus_nll`, `return`.
    """
    old_logps = _align(batch.student_logps)
    teacher_logps = _align(batch.teacher_logps)
    teacher_features, _, mask = teacher.apply(
        teacher_params, batch.rollout, method="completion"
    )
    returns = losses.minillm_returns(
        old_logps,
        teacher_logps,
        mask,
        gamma=settings.gamma,
        length_norm=True,
        include_current=settings.include_current,
        reward_scale=settings.reward_scale,
        reward_clip=settings.reward_clip,
    )
    advantages = losses.masked_whiten(returns, mask) if settings.whiten else returns
    importance = losses.importance_weights(
        old_logps, teacher_logps, alpha=settings.alpha
    )

    def loss(params):
        student = _completion(model, params, batch.rollout)
        policy, metrics = losses.minillm_policy(
            student.logps, old_logps, advantages, importance, mask, clip=settings.clip
        )
        reverse_kl = losses.masked_mean(
            vocab.divergence(student.features, teacher_features, kind="reverse_kl"),
            mask,
        )
        corpus = _completion(model, params, batch.corpus)
        corpus_nll, _ = losses.nll(corpus.logps, corpus.mask)
        total = (
            policy
            + settings.single_step_weight * reverse_kl
            + settings.corpus_weight * corpus_nll
        )
        return total, metrics | {
            "policy": policy,
            "reverse_kl": reverse_kl,
            "corpus_nll": corpus_nll,
            "return": losses.masked_mean(returns, mask),
            "tokens": jnp.sum(mask, dtype=jnp.float32),
        }

    return _update(state, loss, optimizer)


def dpo_step(
    state: TrainState,
    batch: Preferences,
    *ref_params: Params,
    model: Any,
    optimizer: optax.GradientTransformation,
    beta: float = 0.1,
    kind: str = "sigmoid",
) -> tuple[TrainState, Metrics]:
    """Direct preference optimisation on sequence log-probabilities.

    Without `ref_params` this is MiniELM's eq. 2, which has no reference; with them it
    is DPO (Rafailov et al. 2023, eq. 7). Log-probabilities are summed over the
    target tokens, EOS included.

    Metrics: those of `losses.dpo`, means over the pairs that count; `chosen_logp` and
    `rejected_logp` are means over all rows.
    """
    both = _both(batch)

    def sequence_logps(params):
        completion = _completion(model, params, both)
        total = jnp.sum(completion.logps * completion.mask, axis=1)
        return total.reshape(-1, 2).T

    if ref_params:
        ref_chosen, ref_rejected = sequence_logps(ref_params[0])
    else:
        ref_chosen = ref_rejected = jnp.zeros(batch.weight.shape)

    def loss(params):
        chosen, rejected = sequence_logps(params)
        value, metrics = losses.dpo(
            chosen,
            rejected,
            ref_chosen,
            ref_rejected,
            beta=beta,
            kind=kind,
            weight=jnp.asarray(batch.weight),
        )
        return value, metrics | {
            "chosen_logp": jnp.mean(chosen),
            "rejected_logp": jnp.mean(rejected),
            "tokens": jnp.sum(both.target_mask, dtype=jnp.float32),
        }

    return _update(state, loss, optimizer)


def _both(batch: Preferences) -> Pairs:
    """Two targets to each source, the chosen one first."""

    def in_turn(chosen, rejected):
        return jnp.stack([chosen, rejected], axis=1).reshape(-1, chosen.shape[-1])

    return Pairs(
        batch.source,
        batch.source_mask,
        in_turn(batch.chosen, batch.rejected),
        in_turn(batch.chosen_mask, batch.rejected_mask),
    )


def classify_step(
    state: TrainState,
    batch: LabeledBatch,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """Mean cross-entropy of an encoder's classes over the rows.

    Metrics: `accuracy`, the share of rows whose class is the most probable one.
    """

    def loss(params):
        logits = model.apply(
            params, batch.tokens, batch.mask, batch.segments, method="classify"
        )
        entropies = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), batch.label
        )
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch.label)
        return jnp.mean(entropies), {"accuracy": accuracy}

    return _update(state, loss, optimizer)


class Measured(NamedTuple):
    """Sums over each row's target tokens, in nats; divide by `tokens` for means."""

    tokens: Float[Array, " B"]
    nll: Float[Array, " B"]
    entropy: Float[Array, " B"]
    reverse_kl: Float[Array, " B"]  # KL(model || other); 0 without another model


def measure(
    params: Params, batch: Pairs, *other_params: Params, model: Any, other: Any = None
) -> Measured:
    """What a model makes of given targets, beside another one if there is one."""
    mine = _completion(model, params, batch)

    def row_sum(values):
        return jnp.sum(values * mine.mask, axis=1)

    if other_params:
        features, _, _ = other.apply(other_params[0], batch, method="completion")
        reverse_kl = vocab.divergence(mine.features, features, kind="reverse_kl")
    else:
        reverse_kl = jnp.zeros_like(mine.logps)
    return Measured(
        tokens=jnp.sum(mine.mask, axis=1, dtype=jnp.float32),
        nll=-row_sum(mine.logps),
        entropy=row_sum(vocab.entropy(mine.features)),
        reverse_kl=row_sum(reverse_kl),
    )
