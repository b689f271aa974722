"""Worst difference of every family's logits from transformers', in float32 on the CPU.

    python -m benchmarks.parity                       # small models of every version
    python -m benchmarks.parity --models gpt2 t5-base flan-t5-large llama-3.2-1b

Prints Markdown rows: model, parameters, worst absolute difference, largest logit.

The weights are random; as those of trained models they make logits of about 1 to 10.
Each model is drawn and written by `models.save_pretrained`, read by
`models.load_pretrained`, and read by transformers, so that both ways through the folder
are part of the comparison. One text is padded on the left, one on the right; only real
tokens are compared. With `--models` these three things happen in processes of their
own, one after another: none holds more than one copy of the model. Needs torch.
"""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxqr import models
from jaxqr.types import Pairs

VOCABULARY = 1000
FIRST = 10
"""The first token that texts are drawn from: those before it have special roles."""
SHARD_BYTES = 5 * 10**8


@dataclass(frozen=True)
class Config:
    """What to compare."""

    models: tuple[str, ...] = ()
    """Presets of `jaxqr.models` in their real sizes; none: a small model of every
    family and version."""
    length: int = 48
    """Tokens of a text where nothing needs a longer one."""


class Case(NamedTuple):
    """A model, and how long its texts are."""

    name: str
    config: Any
    length: int


def main(config: Config) -> None:
    """Prints a row for each model."""
    if find_spec("torch") is None:
        print("Nothing is compared: torch is not installed here (pip install torch).")
        return
    jax.config.update("jax_platforms", "cpu")
    os.environ["JAX_PLATFORMS"] = "cpu"  # for the processes to come
    named = [Case(name, models.preset(name), config.length) for name in config.models]
    print(precision())
    print("\n| model | parameters | worst difference | largest logit |")
    print("|---|---|---|---|")
    call = in_its_own_process if config.models else here
    for case in named or small(config.length):
        if (lacking := lacking_bytes(case.config)) > 0:
            print(f"| {case.name} | skipped: {lacking / 1e9:.1f} GB too few | | |")
            continue
        with TemporaryDirectory() as folder:
            count = call(write, folder, case.config)
            ours = call(logits, folder, case.length)
            theirs = call(their_logits, folder, case.length)
        worst, largest = np.abs(ours - theirs).max(), np.abs(theirs).max()
        row = f"| {case.name} | {count:,} | {worst:.1e} | {largest:.1f} |"
        print(row, flush=True)


def here(work: Callable, *arguments: Any) -> Any:
    """What `work` returns."""
    return work(*arguments)


def in_its_own_process(work: Callable, *arguments: Any) -> Any:
    """What `work` returns; what it has held is then free again."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def precision() -> str:
    """How exact products of float32 matrices are here."""
    import torch  # pyright: ignore[reportMissingImports]

    one, two = np.random.default_rng(0).normal(size=(2, 512, 512)).astype(np.float32)
    exact = np.matmul(one, two, dtype=np.float64)

    def error(product: Any) -> float:
        return np.abs(np.asarray(product) - exact).max() / np.abs(exact).max()

    setting = jax.config.values["jax_default_matmul_precision"]
    return (
        f"jax on {jax.default_backend()}, default matmul precision "
        f"{setting or 'not set'}: a product of float32 "
        f"matrices is within {error(jnp.asarray(one) @ jnp.asarray(two)):.0e} of "
        f"float64's, in torch within {error(torch.tensor(one) @ torch.tensor(two)):.0e}"
        " (TF32 or bfloat16 would be at about 1e-3)."
    )


# The models


def small(length: int) -> Iterator[Case]:
    """A small model of every family and version, with texts that show its ways."""
    gpt2, llama, t5, bert = (
        partial(models.preset, f"{name}-tiny", vocab_size=VOCABULARY)
        for name in ("gpt2", "llama", "t5", "bert")
    )
    gpt2 = partial(gpt2, bos_token_id=2, eos_token_id=2)
    yield Case("GPT-2", gpt2(), length)

    untied = partial(llama, tie_word_embeddings=False)
    yield Case("Llama, untied", untied(), length)
    yield Case("Llama, tied", llama(), length)
    # Texts of three times the original context.
    theta, context = {"rope_theta": 5e5}, 64
    scaling = partial(models.RopeScaling, original_max_position_embeddings=context)
    yield Case(
        "Llama 3.1 beyond its original context",
        untied(rope_scaling=scaling(8.0), **theta),
        3 * context,
    )
    yield Case(
        "Llama 3.2 beyond its original context",
        llama(rope_scaling=scaling(32.0), **theta),
        3 * context,
    )

    first = {"feed_forward_proj": "relu", "tied": True, "scale_decoder_outputs": True}
    farther = models.T5Config().relative_attention_max_distance + length
    yield Case("T5 1.0", t5(**first), farther)
    yield Case("T5 1.1", t5(), farther)
    yield Case("BERT, last states", bert(), length)
    for name, make in (
        ("GPT-2", gpt2), ("Llama", llama), ("T5", t5), ("BERT", bert),
    ):  # fmt: skip
        yield Case(f"{name}, classes", make(num_labels=4), length)


def lacking_bytes(config: Any) -> float:
    """Bytes of memory that are missing for one copy of the model and all else."""
    model = models.build(config)
    shapes = jax.eval_shape(partial(models.init, model), jax.random.key(0))
    needed = 1.1 * sum(4 * x.size for x in jax.tree.leaves(shapes)) + 4 * SHARD_BYTES
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:  # not Linux: nothing is known
        return 0
    (free,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return needed - 1024 * int(free)


def write(folder: str, config: Any) -> int:
    """Writes a random model; returns the number of its parameters."""
    model = models.build(config)
    rng = np.random.default_rng(0)

    def changed(x: jax.Array) -> jax.Array:
        # Fresh biases are 0 and fresh scales are 1, in which one is as another.
        if x.ndim > 1:
            return x
        return x + rng.normal(0, 0.1, x.shape).astype(np.float32)

    # As `models.init`, but operation by operation: one program for all of them takes
    # long to compile, and 1.5 times the model on top.
    params = model.init(jax.random.key(0), method="run_once")
    params = jax.tree.map(changed, params)
    models.save_pretrained(folder, model, params, shard_bytes=SHARD_BYTES)
    return sum(x.size for x in jax.tree.leaves(params))


def texts(vocab_size: int, length: int) -> Pairs:
    """Random texts, a quarter of each padding, the first's on the left.

    Decoder-only models and encoders read the sources alone.
    """
    rng = np.random.default_rng(1)
    source, target = rng.integers(FIRST, vocab_size, (2, 2, length), dtype=np.int32)
    source_mask, target_mask = np.ones((2, 2, length), bool)
    source_mask[0, : length // 4] = False
    for mask in (source_mask, target_mask):
        mask[1, -(length // 4) :] = False
    return Pairs(source, source_mask, target, target_mask)


def window_mask(pairs: Pairs) -> np.ndarray:
    """What a decoder reads: its start token, then the target."""
    return np.pad(pairs.target_mask, ((0, 0), (1, 0)), constant_values=True)


# What they compute: [rows, V], a row for each real token, or for each text


def logits(folder: str, length: int) -> np.ndarray:
    """Ours, of the model in a folder."""
    model, params = models.load_pretrained(folder)
    pairs = texts(model.config.vocab_size, length)
    tokens, mask = pairs.source, pairs.source_mask
    apply = jax.jit(model.apply, static_argnames="method")
    if model.config.num_labels:
        return np.asarray(apply(params, tokens, mask, 0 * tokens, method="classify"))
    if isinstance(model.config, models.BertConfig):
        return np.asarray(apply(params, tokens, mask, 0 * tokens))[mask]
    if model.encoder_decoder:
        features, _, _ = apply(params, pairs, method="completion")
        mask = window_mask(pairs)
    else:
        features = apply(params, tokens, mask)
    return np.asarray(features.hidden @ features.unembed.T)[mask]


def their_logits(folder: str, length: int) -> np.ndarray:
    """Transformers', of the model in a folder."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    settings = json.loads((Path(folder) / "config.json").read_text())
    (architecture,) = settings["architectures"]
    model, report = getattr(transformers, architecture).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    if any(report.values()):
        raise ValueError(f"transformers reads {architecture} differently: {report}")
    pairs = texts(settings["vocab_size"], length)
    tokens, mask = pairs.source, pairs.source_mask

    def compute(**given: Any) -> np.ndarray:
        tensors = {k: torch.from_numpy(v).long() for k, v in given.items()}
        with torch.no_grad():
            return model.eval()(**tensors)[0].numpy()

    read = {"input_ids": tokens, "attention_mask": mask}
    positions = {"position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0)}
    match architecture:
        case "GPT2LMHeadModel" | "LlamaForCausalLM" | "BertModel":
            return compute(**read, **positions)[mask]
        case "T5ForConditionalGeneration":
            start = settings["decoder_start_token_id"]
            begun = np.pad(pairs.target, ((0, 0), (1, 0)), constant_values=start)
            window = window_mask(pairs)
            read |= {"decoder_input_ids": begun, "decoder_attention_mask": window}
            return compute(**read)[window]
        case "T5ForTokenClassification":  # ours are the mean over a text
            by_token = compute(**read) * mask[..., None]
            return by_token.sum(axis=1) / mask.sum(axis=1, keepdims=True)
        case "BertForSequenceClassification":
            # It looks at column 0, whatever is there: all padding goes to the end.
            order = np.argsort(~mask, axis=1, kind="stable")
            return compute(
                **{k: np.take_along_axis(v, order, axis=1) for k, v in read.items()}
            )
        case _:  # looks at the last token that is not the padding token
            read["input_ids"] = np.where(mask, tokens, settings["pad_token_id"])
            return compute(**read, **positions)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
