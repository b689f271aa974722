"""Distillation: token by token (KD), and by policy gradient (MiniLLM)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Float

from jaxqr import losses, vocab
from jaxqr.train.steps.update import Metrics, align, apply_gradient, completion
from jaxqr.types import AnyArray, Pairs, Params, TrainState


def distill_step(
    state: TrainState,
    batch: Pairs,
    base: Params,
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
        student = completion(model, params, batch)
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

    return apply_gradient(state, base, loss, optimizer)


class MiniLLMBatch(NamedTuple):
    """Rollouts of the teacher-student mixture, and plain text for the NLL part."""

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
    base: Params,
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
    old_logps = align(batch.student_logps)
    teacher_logps = align(batch.teacher_logps)
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
        student = completion(model, params, batch.rollout)
        policy, metrics = losses.minillm_policy(
            student.logps, old_logps, advantages, importance, mask, clip=settings.clip
        )
        reverse_kl = losses.masked_mean(
            vocab.divergence(student.features, teacher_features, kind="reverse_kl"),
            mask,
        )
        corpus = completion(model, params, batch.corpus)
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

    return apply_gradient(state, base, loss, optimizer)
