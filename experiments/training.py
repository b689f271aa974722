"""What the training stages share: models in and out, validation, the loop's set-up."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxqr import metrics, models
from jaxqr.data import prompts
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
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters and softmax are float32."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass computes again to save memory: nothing, each block, or
    all of it but its matrix products."""
    lora_rank: int = 0
    """Above 0, adapters of this rank are trained instead of the model (LoRA), and
    merged into it when the stage ends."""
    lora_alpha: float = 16.0
    """Adapters are scaled by `lora_alpha / lora_rank`."""

    def computation(self) -> dict[str, Any]:
        """The fields of a model's config that say how it computes and what trains."""
        names = ("dtype", "remat", "lora_rank", "lora_alpha")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class PromptConfig:
    """How a query is put to a model that another project trained."""

    kind: Literal["completion", "chat", "prefix"] | None = None
    """None: what the folder's `prompt.json` says; without one `prefix` for an
    encoder-decoder, `chat` for a tokenizer with a chat template, else `completion`."""
    instruction: str | None = None
    """The chat's text above the query, or the prefix; None: a default of the kind."""


def load_model(
    folder: Path,
    optimisation: Optimisation | None = None,
    *,
    frozen: bool = False,
    prompting: PromptConfig | None = None,
    seed: int = 0,
) -> tuple[Any, Params, Tokenizer]:
    """A language model, its parameters and its tokenizer from one folder.

    The parameters are read straight onto all devices, of which `optimisation.fsdp`
    share one copy. Ids that the tokenizer does not have are never predicted.

    Args:
        folder: a Hugging Face folder.
        optimisation: how it will compute, and whether with adapters.
        frozen: without adapters; nothing of it will be trained.
        prompting: what its prompts look like.
        seed: decides fresh adapters.

    Raises:
        FileNotFoundError: no such folder, or a file is missing in it.
        ValueError: the folder is not of a language model, or model and tokenizer do
            not belong together.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: give the path of a Hugging Face folder, with "
            "config.json, safetensors and tokenizer files in it"
        )
    options: dict[str, Any] = {}
    fsdp = 1
    if optimisation is not None:
        fsdp = optimisation.fsdp
        options |= optimisation.computation()
    if frozen:
        options |= {"remat": "none", "lora_rank": 0}
    # All that can be wrong is looked at before gigabytes are read.
    config, tokenizer = models.load_config(folder), Tokenizer.load(folder)
    _check_belongs(folder, config, tokenizer)
    options["num_tokens"] = tokenizer.vocab_size
    if fsdp > 1:
        options["vocab_multiple"] = math.lcm(128, fsdp)
    tokenizer = _prompted(
        tokenizer, folder, models.build(config), prompting or PromptConfig()
    )
    model, params = models.load_pretrained(
        folder, key=jax.random.key(seed), place=placement(fsdp), **options
    )
    return model, params, tokenizer


def placement(fsdp: int) -> Callable[[jax.ShapeDtypeStruct], jax.sharding.Sharding]:
    """Where parameters live, for `models.load_pretrained`."""
    return partial(sharding.placed, mesh=sharding.make_mesh(fsdp))


def _check_belongs(folder: Path, config: Any, tokenizer: Tokenizer) -> None:
    if not isinstance(config, models.LanguageModelConfig) or config.num_labels:
        kind = type(config).__name__.removesuffix("Config")
        what = "classifier" if config.num_labels else "encoder"
        raise ValueError(
            f"{folder} holds a {kind} {what}, which writes no text: give the folder of "
            "a GPT-2, Llama or T5 language model"
        )
    check_ids(folder, config, tokenizer)
    ends = vars(config)["eos_token_id"]
    if tokenizer.eos not in (ends if isinstance(ends, tuple) else (ends,)):
        raise ValueError(
            f"{folder}: config.json ends texts with token {ends}, the tokenizer with "
            f"{tokenizer.eos}; generation would never stop. Set both to the same "
            "eos_token_id"
        )


def check_ids(folder: Path, config: Any, tokenizer: Tokenizer) -> None:
    """Refuses a tokenizer with ids that the model has no embedding of.

    Raises:
        ValueError: it has.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model "
            f"{config.vocab_size}: they are not of one model"
        )


def _prompted(
    tokenizer: Tokenizer, folder: Path, model: Any, prompting: PromptConfig
) -> Tokenizer:
    """The tokenizer with the prompt that was asked for, or that suits the model."""
    kind = prompting.kind
    if kind is None and (
        prompting.instruction is not None or not (folder / prompts.FILE).exists()
    ):
        chat = "chat" if tokenizer.has_chat_template else "completion"
        kind = "prefix" if model.encoder_decoder else chat
    if kind is None:
        return tokenizer
    return tokenizer.with_prompt(kind, prompting.instruction)


def check_same(one: Path, other: Path, names: tuple[str, str]) -> None:
    """Refuses two folders whose tokenizers differ, before anything is read or trained.

    Raises:
        ValueError: they do; the message says how.
    """
    Tokenizer.load(one).check_same(Tokenizer.load(other), *names)


def load_stage(
    stage: Path, fsdp: int | None = None
) -> tuple[Any, Params, Tokenizer, Optimisation]:
    """What a finished stage has trained, to compute as it did there.

    Models that meet in one computation must share `fsdp`, if it is not the stage's.
    """
    settings = json.loads((stage / "config.json").read_text())
    how = Optimisation(**settings["optimisation"])
    how = dataclasses.replace(how, fsdp=how.fsdp if fsdp is None else fsdp)
    return *load_model(stage / "model", how, frozen=True), how


def fresh_model(name: str, tokenizer: Tokenizer, **fields: Any) -> Any:
    """A module of a preset's size for a tokenizer's ids.

    Raises:
        ValueError: no such preset, or adapters, which would stand beside random maps.
    """
    if fields.get("lora_rank"):
        raise ValueError(
            f"lora_rank={fields['lora_rank']}: adapters need a pretrained model, and "
            f"{name} begins at random; give a folder with --init, or lora-rank 0"
        )
    known = {field.name for field in dataclasses.fields(models.preset(name))}
    fields |= {
        "vocab_size": tokenizer.vocab_size,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.eos,
        "decoder_start_token_id": tokenizer.bos,
        "n_positions": 256,
    }
    return models.build(
        models.preset(name, **{k: v for k, v in fields.items() if k in known})
    )


def export(folder: Path, model: Any, params: Params, tokenizer: Tokenizer) -> None:
    """Writes a Hugging Face folder that `load_model` and transformers read."""
    tokenizer.save(folder)
    models.save_pretrained(folder, model, params)


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
    start_stays: bool = False,
    seed: int = 0,
    log_every: int = 10,
    **static: Any,
) -> None:
    """Runs one stage in `folder` and exports its model to `folder/model`.

    That is the model of the best `score` among the evaluations, or the last one if
    no score is named. `params` are given away, unless `start_stays`. The other
    arguments are those of `loop.run`; `static` goes to the step.
    """
    params = sharding.shard_params(params, sharding.make_mesh(optimisation.fsdp))
    optimizer = state.adamw(
        optimisation.learning_rate,
        optimisation.num_steps,
        warmup=optimisation.warmup,
        schedule=optimisation.schedule,
        weight_decay=optimisation.weight_decay,
    )
    start = state.create(
        params, optimizer, jax.random.key(seed), donate=not start_stays
    )
    del params

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
