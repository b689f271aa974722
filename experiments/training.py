"""What the training stages share: models in and out, validation, the loop's set-up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxqr import metrics, models
from jaxqr.data.pipeline import collate_pairs, in_order
from jaxqr.data.tokenize import Tokenizer
from jaxqr.train import loop, rollout, sharding, state, steps
from jaxqr.types import Params, TrainState

SAMPLES = 5
"""Samples of each query behind a sampled ROUGE-L, as in MiniLLM's evaluation."""


@dataclass(frozen=True)
class Optimisation:
    """How long, in which batches and how fast a stage trains."""

    num_steps: int
    batch_size: int
    learning_rate: float
    schedule: str = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.01
    evaluate_every: int = 0
    checkpoint_every: int = 0
    fsdp: int = 1
    """Devices that share one copy of the parameters; the rest split the batch."""


def load_model(folder: Path, fsdp: int = 1) -> tuple[Any, Params, Tokenizer]:
    """A language model, its parameters and its tokenizer from one folder.

    The parameters are placed on all devices, of which `fsdp` share one copy.

    Raises:
        ValueError: model and tokenizer end a text differently.
    """
    model, params = models.load_pretrained(folder)
    tokenizer = Tokenizer.load(folder)
    if model.config.eos_token_id != tokenizer.eos:
        raise ValueError(
            f"{folder}: config.json ends texts with token "
            f"{model.config.eos_token_id}, the tokenizer with {tokenizer.eos}; "
            "generation would never stop. Set both to the same eos_token_id"
        )
    mesh = sharding.make_mesh(fsdp)
    return model, sharding.shard_params(params, mesh), tokenizer


def export(folder: Path, model: Any, params: Params, tokenizer: Tokenizer) -> None:
    """Writes a Hugging Face folder that `load_model` and transformers read."""
    tokenizer.save(folder)
    models.save_pretrained(folder, model, jax.device_get(params))


def train(
    folder: Path,
    step: Callable,
    model: Any,
    params: Params,
    tokenizer: Tokenizer,
    batches: loop.Batches,
    optimisation: Optimisation,
    *,
    evaluate: Callable[[TrainState], dict[str, float]],
    score: str | None = None,
    frozen: tuple[Params, ...] = (),
    seed: int = 0,
    log_every: int = 10,
    **static: Any,
) -> None:
    """Runs one stage in `folder` and exports its model to `folder/model`.

    That is the model of the best `score` among the evaluations, or the last one if
    no score is named. The other arguments are those of `loop.run`; `static` goes to
    the step.
    """
    params = sharding.shard_params(params, sharding.make_mesh(optimisation.fsdp))
    optimizer = state.adamw(
        optimisation.learning_rate,
        optimisation.num_steps,
        warmup=optimisation.warmup,
        schedule=optimisation.schedule,
        weight_decay=optimisation.weight_decay,
    )
    start = state.create(params, optimizer, jax.random.key(seed))

    def keep(params: Params) -> None:
        export(folder / "model", model, params, tokenizer)

    last = loop.run(
        steps.compile_step(
            step, like=start, model=model, optimizer=optimizer, **static
        ),
        start,
        batches,
        num_steps=optimisation.num_steps,
        frozen=frozen,
        folder=folder,
        evaluate=evaluate,
        evaluate_every=optimisation.evaluate_every,
        score=score,
        keep=keep if score else None,
        checkpoint_every=optimisation.checkpoint_every,
        log_every=log_every,
        title=folder.name,
    )
    if not score:
        keep(last.params)


@cache
def _measure(model: Any, other: Any) -> Callable[..., steps.Measured]:
    return steps.compile_step(steps.measure, donate=False, model=model, other=other)


def measured(
    model: Any,
    params: Params,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    *,
    max_source: int,
    max_target: int,
    teacher: tuple[Any, Params] | None = None,
    batch_size: int = 64,
) -> steps.Measured:
    """`steps.measure` of every pair, as numpy columns."""
    other, other_params = teacher or (None, None)
    measure = _measure(model, other)
    rows = tokenizer.pairs(pairs, max_source=max_source, max_target=max_target)
    collate = partial(collate_pairs, fill=tokenizer.eos)
    parts = []
    for batch, real in in_order(rows, collate, batch_size=batch_size):
        batch = sharding.shard_batch(batch, params)
        values = measure(params, batch, *([other_params] if teacher else []))
        parts.append(jax.tree.map(lambda x, real=real: np.asarray(x)[:real], values))
    return jax.tree.map(lambda *columns: np.concatenate(columns), *parts)


def validation(
    model: Any,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    sampling: rollout.Sampling,
    *,
    teacher: tuple[Any, Params] | None = None,
) -> Callable[[TrainState], dict[str, float]]:
    """Evaluates on held-out pairs: `nll`, `rouge_l`, and two numbers of distillation.

    NLL is nats per target token; ROUGE-L (x 100) is of greedy rewrites against every
    reference. With a teacher, `reverse_kl` is the divergence from it in nats per
    target token, and `rouge_l_sampled` the mean ROUGE-L of `SAMPLES` per query.
    """
    queries = list(dict.fromkeys(query for query, _ in pairs))
    references = [rewrite for _, rewrite in pairs]

    def evaluate(state: TrainState) -> dict[str, float]:
        columns = measured(
            model,
            state.params,
            tokenizer,
            pairs,
            max_source=sampling.max_source,
            max_target=sampling.max_new_tokens,
            teacher=teacher,
        )
        nll = float(columns.nll.sum() / columns.tokens.sum())

        def rouge_l(sampling: rollout.Sampling, n: int = 1) -> float:
            written = rollout.rewrite(
                model,
                state.params,
                tokenizer,
                queries,
                jax.random.key(0),
                sampling=sampling,
                n=n,
            )
            by_query = dict(zip(queries, written, strict=True))
            scores = [
                metrics.rouge_l([by_query[q][i] for q, _ in pairs], references)
                for i in range(n)
            ]
            return 100 * float(np.mean(scores))

        values = {"nll": nll, "rouge_l": rouge_l(sampling._replace(temperature=0.0))}
        if teacher:
            kl = columns.reverse_kl.sum() / columns.tokens.sum()
            values["rouge_l_sampled"] = rouge_l(sampling, SAMPLES)
            values["reverse_kl"] = float(kl)
        return values

    return evaluate


def sample_pairs(
    pairs: Sequence[tuple[str, str]], most: int, seed: int = 0
) -> list[tuple[str, str]]:
    """At most `most` pairs, the same ones for a seed."""
    if len(pairs) <= most:
        return list(pairs)
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:most]
    return [pairs[i] for i in sorted(chosen)]
