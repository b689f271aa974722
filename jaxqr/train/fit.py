"""One training stage: optimizer, state, compiled step, loop, the best model kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import optax

from jaxqr.train import loop, state
from jaxqr.train.steps import compile_step
from jaxqr.types import Params


@runtime_checkable
class Trainable(Protocol):
    """A model with its parameters: an `LM`, or a classifier."""

    @property
    def model(self) -> Any:
        """The flax module."""
        ...

    def partition(self) -> tuple[Params, Params]:
        """What is trained of the parameters, and the frozen rest."""
        ...

    def with_params(self, trained: Params) -> Any:
        """The same with other trained parameters."""
        ...

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face folder."""
        ...


T = TypeVar("T", bound=Trainable)


def fit(
    start: T,
    step: Callable,
    batches: loop.Batches,
    *,
    folder: Path,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    evaluate: Callable[[T, int], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    checkpoint_every: int = 0,
    score: str | None = None,
    patience: int | None = None,
    frozen: tuple[Params, ...] = (),
    keep_start: bool = False,
    seed: int = 0,
    log_every: int = 10,
    **static: Any,
) -> None:
    """Trains `start` in `folder` and writes the model to `folder/model`.

    The model written is that of the best `score` among the evaluations, or the last one
    if no score is named. Adapters are trained alone and merged on export.

    Args:
        start: where to start.
        step: one of `jaxqr.train.steps`, not compiled.
        batches: see `loop.Batches`.
        folder: takes `model/`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`.
        optimizer: such as `state.adamw`.
        num_steps: steps of the whole stage.
        evaluate: called with the model as trained so far, and the step.
        evaluate_every: see `loop.run`, as for the next two.
        checkpoint_every: steps between checkpoints, besides those at evaluations.
        score: the evaluated number that decides which model is best.
        patience: evaluations without a better score after which training ends.
        frozen: teacher or reference parameters, the step's arguments after `base`.
        keep_start: the parameters of `start` stay usable (a reference, say). Otherwise
            those that are trained are given away.
        seed: for everything random in the stage.
        log_every: steps between lines of training metrics.
        static: further static arguments of the step.
    """
    trained, base = start.partition()
    first = state.create(
        trained, optimizer, jax.random.key(seed), donate=not keep_start
    )
    del trained

    def export(params: Params) -> None:
        start.with_params(params).save(folder / "model")

    last = loop.run(
        compile_step(
            step, like=first, model=start.model, optimizer=optimizer, **static
        ),
        first,
        batches,
        num_steps=num_steps,
        frozen=(base, *frozen),
        folder=folder,
        evaluate=evaluate
        and (lambda now: evaluate(start.with_params(now.params), int(now.step))),
        evaluate_every=evaluate_every,
        score=score,
        keep=export,
        patience=patience,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        title=folder.name,
    )
    if not score:
        export(last.params)
