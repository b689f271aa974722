"""What the training stages share: models in, and training as the settings say."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

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
    layers: int | None = None,
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
        layers=layers,
        seed=seed,
    )


def load_frozen(folder: Path, compute: ComputeConfig) -> LM:
    """A language model that is only asked, to compute as a stage's settings say."""
    mesh = sharding.make_mesh(compute.fsdp)
    return LM.load(folder, dtype=compute.dtype, mesh=mesh)


def load_classifier(
    init: Path | None,
    model: str,
    tokenizer: Tokenizer,
    num_labels: int,
    *,
    max_tokens: int,
    compute: ComputeConfig,
    lora: LoraConfig,
    seed: int,
) -> Classifier:
    """A classifier that will be trained.

    Args:
        init: a Hugging Face folder; None: `model` from scratch.
        model: a preset of `jaxqr.models`.
        tokenizer: of the preset; a folder has its own.
        num_labels: classes of its head.
        max_tokens: of both texts together.
        compute: how it computes, and where.
        lora: adapters.
        seed: of what is freshly drawn.
    """
    fields: dict[str, Any] = {"dtype": compute.dtype, "remat": compute.remat}
    fields |= {"lora_rank": lora.rank, "lora_alpha": lora.alpha}
    mesh = sharding.make_mesh(compute.fsdp)
    if init:
        return Classifier.load(
            init,
            max_tokens=max_tokens,
            mesh=mesh,
            num_labels=num_labels,
            seed=seed,
            **fields,
        )
    module = fresh_model(model, tokenizer, num_labels=num_labels, **fields)
    params = models.init(module, jax.random.key(seed))
    params = sharding.shard_params(params, mesh)
    return Classifier(module, params, tokenizer, max_tokens)


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
