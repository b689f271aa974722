"""Policy gradients on sampled sequences: REINFORCE, and PPO with a value head."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Float

from jaxqr import losses, vocab
from jaxqr.models.value import ValueModel
from jaxqr.train.steps.update import Metrics, align, apply_gradient, completion
from jaxqr.types import AnyArray, Pairs, Params, TrainState


class PolicyBatch(NamedTuple):
    """Sampled targets, N per source, and how much better each was than expected."""

    pairs: Pairs
    advantages: Float[AnyArray, " BN"]


def policy_gradient_step(
    state: TrainState,
    batch: PolicyBatch,
    base: Params,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """REINFORCE (Williams 1992) on the policy's own samples.

    loss = -sum_b A_b sum_t log pi(y_bt) / number of target tokens. A row of advantage 0
    has no gradient.

    Metrics: `loss`, `tokens`; `advantage`, the mean over rows.
    """

    def loss(params):
        targets = completion(model, params, batch.pairs)
        advantages = jnp.asarray(batch.advantages)
        value, metrics = losses.policy_gradient(targets.logps, advantages, targets.mask)
        return value, metrics | {"advantage": jnp.mean(advantages)}

    return apply_gradient(state, base, loss, optimizer)


class PPOBatch(NamedTuple):
    """Sampled targets, one per source, and what was known of their tokens.

    Log-probabilities and values are those of the parameters that drew; advantages and
    returns follow from them (`train.rollouts.finish.PPO`). All are 0 outside the
    target's mask.
    """

    pairs: Pairs
    logps: Float[AnyArray, "BN T"]
    values: Float[AnyArray, "BN T"]
    advantages: Float[AnyArray, "BN T"]
    returns: Float[AnyArray, "BN T"]


def ppo_step(
    state: TrainState,
    batch: PPOBatch,
    base: Params,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
    clip: float = 0.2,
    value_clip: float = 0.2,
    value_coef: float = 0.1,
    entropy_coef: float = 0.0,
    max_kl: float | None = None,
) -> tuple[TrainState, Metrics]:
    """Proximal policy optimization (Schulman et al. 2017, eq. 9) of tokens.

    loss = clipped surrogate + `value_coef` * clipped squared error of the values
    - `entropy_coef` * entropy of the next-token distributions; each a mean per target
    token. The KL to a reference is part of the rewards, not of this loss.

    Args:
        state: its parameters have a value head (`models.value.init_value`).
        batch: a minibatch of rollouts.
        base: the rest of the model.
        model: the policy.
        optimizer: its learning rate is small for a policy of this size.
        clip: how far a token's probability ratio counts.
        value_clip: how far a value may move from that of the parameters that drew.
        value_coef: weight of the value loss (0.1 in Ziegler et al. 2019).
        entropy_coef: weight of the entropy; above 0 it costs another pass over the
            vocabulary.
        max_kl: a minibatch whose `approx_kl` is larger changes nothing: the policy is
            too far from the one that drew. None: every minibatch counts.

    Returns:
        The state, and the metrics: those of `losses.clipped_policy`; `policy_loss`,
        `value_loss`; `value_clip_fraction`; `explained_variance`, the share of the
        returns' variance that the values explain; `entropy` if it has a weight;
        `skipped`, 1 where `max_kl` was passed.
    """
    old_logps, old_values = align(batch.logps), align(batch.values)
    advantages, returns = align(batch.advantages), align(batch.returns)

    def loss(params):
        features, values, tokens, mask = ValueModel(model).completion(
            params, batch.pairs
        )
        logps = vocab.token_logps(features, tokens)
        policy, metrics = losses.clipped_policy(
            logps, old_logps, advantages, mask, clip=clip
        )
        value, of_value = losses.clipped_value(
            values, old_values, returns, mask, clip=value_clip
        )
        total = policy + value_coef * value
        if entropy_coef:
            entropy = losses.masked_mean(vocab.entropy(features), mask)
            total -= entropy_coef * entropy
            metrics["entropy"] = entropy
        far = metrics["approx_kl"] > (jnp.inf if max_kl is None else max_kl)
        return total, metrics | {
            "policy_loss": policy,
            "value_loss": value,
            "value_clip_fraction": of_value["clip_fraction"],
            "explained_variance": losses.explained_variance(values, returns, mask),
            "skipped": jnp.float32(far),
        }

    accept = None if max_kl is None else (lambda metrics: metrics["skipped"] == 0)
    return apply_gradient(state, base, loss, optimizer, accept=accept)
