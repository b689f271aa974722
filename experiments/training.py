"""What the training stages share: models in, and training as the settings say."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from experiments.config import (
    ComputeConfig,
    LoraConfig,
    OptimizerConfig,
    PromptConfig,
)
from jaxqr import models, sharding
from jaxqr.data.tokenize import Tokenizer
from jaxqr.lm import LM, fresh_model
from jaxqr.rewards.classifier import Classifier
from jaxqr.train import loop, state
from jaxqr.train.fit import Trainable, fit

T = TypeVar("T", bound=Trainable)
Row = TypeVar("Row")


def load_model(
    folder: Path,
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008 - frozen
    lora: LoraConfig = LoraConfig(),  # noqa: B008
    *,
    prompt: PromptConfig = PromptConfig(),  # noqa: B008
    value_head: bool = False,
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
        value_head=value_head,
        seed=seed,
    )


def load_frozen(folder: Path, compute: ComputeConfig) -> LM:
    """A language model that is only asked, to compute as a stage's settings say."""
    mesh = sharding.make_mesh(compute.fsdp)
    return LM.load(folder, dtype=compute.dtype, mesh=mesh)


class ClassifierConfig(Protocol):
    """The settings that say what a classifier starts as."""

    @property
    def init(self) -> Path | None: ...  # noqa: D102
    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def max_tokens(self) -> int: ...  # noqa: D102
    @property
    def compute(self) -> ComputeConfig: ...  # noqa: D102
    @property
    def lora(self) -> LoraConfig: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


def load_classifier(
    config: ClassifierConfig, tokenizer: Tokenizer, num_labels: int
) -> Classifier:
    """A classifier that will be trained: of a folder, or a preset from scratch.

    Args:
        config: the stage's settings.
        tokenizer: for a preset; a folder has its own.
        num_labels: classes of its head.
    """
    compute = config.compute
    fields: dict[str, Any] = {"dtype": compute.dtype, "remat": compute.remat}
    fields |= {"lora_rank": config.lora.rank, "lora_alpha": config.lora.alpha}
    mesh = sharding.make_mesh(compute.fsdp)
    if config.init:
        return Classifier.load(
            config.init,
            max_tokens=config.max_tokens,
            mesh=mesh,
            num_labels=num_labels,
            seed=config.seed,
            **fields,
        )
    model = fresh_model(config.model, tokenizer, num_labels=num_labels, **fields)
    params = models.init(model, jax.random.key(config.seed))
    params = sharding.shard_params(params, mesh)
    return Classifier(model, params, tokenizer, config.max_tokens)


def train(
    folder: Path,
    start: T,
    step: Callable,
    batches: loop.Batches,
    how: OptimizerConfig,
    *,
    evaluate: Callable[[T, int], dict[str, float]],
    **options: Any,
) -> None:
    """`train.fit` with a stage's settings; `options` are its further arguments."""
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
