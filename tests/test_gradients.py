"""Every step's gradient is the slope of its loss, for every family of models.

The slope is a central difference along random directions. It sees whatever part of the
gradient is missing, doubled or of the wrong sign, in whatever parameter.
"""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
import tiny
from step_cases import Case, cases, labeled
from test_ppo import STEP, ppo_batch, valued

from jaxqr import models
from jaxqr.train import steps

# One layer: what more of them cost is compilation.
LLAMA = models.build(dataclasses.replace(tiny.LLAMA.config, num_hidden_layers=1))
T5 = models.build(dataclasses.replace(tiny.T5.config, num_layers=1))
FAMILIES = {"gpt2": tiny.GPT2, "llama": LLAMA, "t5": T5}
CASES = {
    (family, name): (model, case)
    for family, model in FAMILIES.items()
    for name, case in cases(model).items()
}
for family, model in FAMILIES.items():
    step = tiny.compiled(steps.ppo_step, tiny.SGD, model, **STEP)
    CASES[family, "ppo"] = model, Case(step, partial(ppo_batch, model))
for name, model in {"bert": tiny.BERT, "llama": LLAMA, "t5": T5}.items():
    labels = models.build(dataclasses.replace(model.config, num_labels=4))
    step = tiny.compiled(steps.classify_step, tiny.SGD, labels)
    CASES[name, "classify"] = labels, Case(step, labeled)

DIRECTIONS = 6
SIZE = 1e-3
"""Of a move, as a share of each parameter's root mean square."""
TOLERANCE = 0.01
"""Of the slopes, by their norm; rounding and curvature take a third of it."""


def direction(params, seed):
    """Random numbers of each parameter's own size."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.float32(rng.normal(size=x.shape) * np.sqrt(np.mean(x**2))), params
    )


def slopes(step, state, arguments):
    """Along the directions: of the gradient, and of the loss."""
    params = jax.device_get(state.params)

    def take(params):
        given = tiny.copy_of(state._replace(params=params))  # steps give it away
        return step(given, *arguments)

    def loss(seed, size):
        moved = jax.tree.map(lambda x, d: x + size * d, params, direction(params, seed))
        return float(take(moved)[1]["loss"])

    new, _ = take(params)  # of gradient descent at rate 1
    gradient = jax.tree.map(lambda x, y: np.float64(x) - y, params, new.params)
    of_gradient, of_loss = [], []
    for seed in range(DIRECTIONS):
        parts = jax.tree.map(np.vdot, gradient, direction(params, seed))
        of_gradient.append(sum(jax.tree.leaves(parts)))
        of_loss.append((loss(seed, SIZE) - loss(seed, -SIZE)) / (2 * SIZE))
    return np.array(of_gradient), np.array(of_loss)


@pytest.mark.parametrize(("family", "name"), CASES, ids=map("-".join, CASES))
def test_a_gradient_is_the_slope_of_its_loss(family, name):
    model, case = CASES[family, name]
    state = tiny.start(model=model)
    if name == "ppo":
        state = state._replace(params=valued(state.params, model))
    arguments = [case.batch(), {}]
    if case.frozen:
        arguments.append(tiny.params(1, model=model))
    of_gradient, of_loss = slopes(case.step, state, arguments)
    error = np.linalg.norm(of_loss - of_gradient) / np.linalg.norm(of_gradient)
    assert error < TOLERANCE, (of_gradient, of_loss)
