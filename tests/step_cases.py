"""What each step is given, on the tiny models: for all tests of the steps."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import golden
import jax
import numpy as np
import tiny
from tiny import SGD, compiled, pairs, rows

from jaxqr import vocab
from jaxqr.train import steps
from jaxqr.types import LabeledBatch, Pairs, Preferences

ROWS, OTHER_ROWS = rows(4), rows(4, seed=1)
CORPUS = rows(4, source=1, target=5, seed=2)
WEIGHT = np.array([1, 0, 1, 1], np.float32)
LABEL_WEIGHT = np.array([1, 2, 0.5, 0], np.float32)
ADVANTAGES = np.array([0.7, -1.3, 0.0, 0.4], np.float32)


class Case(NamedTuple):
    """A compiled step, its batch by padding, and whether it has a frozen model."""

    step: Callable
    batch: Callable[..., Any]
    frozen: bool = False


def preferences(one, other, weight=WEIGHT, **padding):
    """`one` preferred to `other`, whose sources are taken from `one`."""
    batch, rejected = pairs(one, **padding), pairs(other, **padding)
    return Preferences(*batch, rejected.target, rejected.target_mask, weight)


def labeled(seed=0, width=8):
    """Four rows of four classes, padded with random ids."""
    rng = np.random.default_rng(seed)
    mask = np.arange(width)[None] < np.array([8, 3, 1, 6])[:, None]
    tokens = rng.integers(0, tiny.VOCAB, mask.shape).astype(np.int32)
    segments = rng.integers(0, 2, mask.shape).astype(np.int32)
    label = np.arange(4, dtype=np.int32)
    return LabeledBatch(tokens, mask, segments, label, LABEL_WEIGHT)


@cache
def target_logps(model: Any, seed: int, pairs_of: Callable[[], Pairs]) -> np.ndarray:
    """Log-probabilities of the targets, `[B, T]`, 0 in the padding."""
    batch = pairs_of()
    parameters = tiny.params(seed, model=model)
    features, tokens, mask = golden.apply(model, parameters, batch, method="completion")
    logps = jax.jit(vocab.token_logps)(features, tokens)
    return np.asarray(logps * mask)[:, 1:]


def rollout_pairs() -> Pairs:
    return pairs(ROWS)


def minillm_batch(model=tiny.GPT2, old=2, **padding):
    """Rollouts of the parameters `old`, with a teacher of parameters 1."""
    width = padding.get("target", 8)

    def logps(seed):
        values = target_logps(model, seed, rollout_pairs)
        return np.pad(values, ((0, 0), (0, width - values.shape[1])))

    return steps.MiniLLMBatch(
        pairs(ROWS, **padding), logps(old), logps(1), pairs(CORPUS, **padding)
    )


@cache
def cases(model: Any = tiny.GPT2, optimizer: Any = SGD) -> dict[str, Case]:
    """Every step of a language model, by name."""

    def of_rows(**padding):
        return pairs(ROWS, **padding)

    def preferred(**padding):
        return preferences(ROWS, OTHER_ROWS, **padding)

    def sampled(**padding):
        return steps.PolicyBatch(pairs(ROWS, **padding), ADVANTAGES)

    def rollouts(**padding):
        return minillm_batch(model, **padding)

    def step(function, **static):
        return compiled(function, optimizer, model, **static)

    made = {
        "sft": Case(step(steps.sft_step), of_rows),
        "policy_gradient": Case(step(steps.policy_gradient_step), sampled),
        "dpo": Case(step(steps.dpo_step, beta=0.3), preferred),
        "dpo-reference": Case(step(steps.dpo_step, beta=0.3), preferred, True),
    }
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        static = {"kind": kind, "beta": 0.3, "temperature": 2.0, "nll_weight": 0.5}
        distill = step(steps.distill_step, teacher=model, **static)
        made[f"distill-{kind}"] = Case(distill, of_rows, True)
    for mode in ("paper", "lmops"):
        static = {"teacher": model, "settings": steps.MiniLLM.mode(mode)}
        minillm = step(steps.minillm_step, **static)
        made[f"minillm-{mode}"] = Case(minillm, rollouts, True)
    return made
