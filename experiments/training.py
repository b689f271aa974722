"""What the training stages share: models in, and training as the settings say."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from experiments.config import (
    ComputeConfig,
    LoraConfig,
    OptimizerConfig,
    PromptConfig,
)
from jaxqr import sharding
from jaxqr.data.tokenize import Tokenizer
from jaxqr.lm import LM
from jaxqr.train import loop, state
from jaxqr.train.fit import Trainable, fit

T = TypeVar("T", bound=Trainable)
Row = TypeVar("Row")


class StageConfig(Protocol):
    """The settings that every training stage has."""

    @property
    def optimizer(self) -> OptimizerConfig: ...  # noqa: D102
    @property
    def compute(self) -> ComputeConfig: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


def load_model(
    folder: Path,
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008 - frozen
    lora: LoraConfig = LoraConfig(),  # noqa: B008
    *,
    prompt: PromptConfig = PromptConfig(),  # noqa: B008
    seed: int = 0,
) -> LM:
    """A language model that will be trained; see `LM.load`."""
    return LM.load(
        folder,
        dtype=compute.dtype,
        mesh=sharding.make_mesh(compute.fsdp),
        prompt=prompt.kind,
        instruction=prompt.instruction,
        remat=compute.remat,
        lora_rank=lora.rank,
        lora_alpha=lora.alpha,
        seed=seed,
    )


def load_frozen(folder: Path, compute: ComputeConfig) -> LM:
    """A language model that is only asked, to compute as a stage's settings say."""
    mesh = sharding.make_mesh(compute.fsdp)
    return LM.load(folder, dtype=compute.dtype, mesh=mesh)


def train(
    folder: Path,
    start: T,
    step: Callable,
    batches: loop.Batches,
    config: StageConfig,
    *,
    evaluate: Callable[[T, int], dict[str, float]],
    **options: Any,
) -> None:
    """`train.fit` with a stage's settings; `options` are its further arguments."""
    how = config.optimizer
    fit(
        start,
        step,
        batches,
        folder=folder,
        optimizer=state.adamw(
            how.learning_rate,
            how.num_steps,
            warmup=how.warmup,
            schedule=how.schedule,
            weight_decay=how.weight_decay,
        ),
        num_steps=how.num_steps,
        evaluate=evaluate,
        evaluate_every=how.evaluate_every,
        checkpoint_every=how.checkpoint_every,
        seed=config.seed,
        **options,
    )


def check_same(one: Path, other: Path, names: tuple[str, str]) -> None:
    """Refuses two folders whose tokenizers differ, before anything is read or trained.

    Raises:
        ValueError: they do; the message says how.
    """
    Tokenizer.load(one).check_same(Tokenizer.load(other), *names)


def sample(rows: Sequence[Row], most: int, seed: int = 0) -> list[Row]:
    """At most `most` rows in a random order, the same ones for a seed."""
    order = np.random.default_rng(seed).permutation(len(rows))[:most]
    return [rows[int(i)] for i in order]


def sample_pairs(rows: Sequence[Row], most: int, seed: int = 0) -> list[Row]:
    """At most `most` rows in their own order, the same ones for a seed."""
    if len(rows) <= most:
        return list(rows)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:most]
    return [rows[int(i)] for i in sorted(chosen)]
