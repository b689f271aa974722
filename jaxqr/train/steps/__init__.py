"""The train steps: module-level pure functions, jitted in one place, `compile_step`.

Every step is `step(state, batch, base, *frozen, **static) -> (state, metrics)`:

- `state.params` is what is trained and nothing else;
- `base` is the rest of the model, `{}` where everything is trained;
- `frozen` are further parameters, of a teacher or a reference;
- `static` are the models, the optimizer and coefficients, bound by `compile_step`.

Metrics are scalars; each step's docstring says which mean each one is.
"""

from jaxqr.train.steps.classification import classify_step
from jaxqr.train.steps.distillation import (
    MiniLLM,
    MiniLLMBatch,
    distill_step,
    minillm_step,
)
from jaxqr.train.steps.policy import (
    PolicyBatch,
    PPOBatch,
    policy_gradient_step,
    ppo_step,
)
from jaxqr.train.steps.preference import dpo_step
from jaxqr.train.steps.supervised import sft_step
from jaxqr.train.steps.update import compile_step

__all__ = [
    "MiniLLM",
    "MiniLLMBatch",
    "PPOBatch",
    "PolicyBatch",
    "classify_step",
    "compile_step",
    "distill_step",
    "dpo_step",
    "minillm_step",
    "policy_gradient_step",
    "ppo_step",
    "sft_step",
]
