"""Seconds and memory of reading and writing a folder of the size of Llama 3.2 1B.

    python -m benchmarks.loading                     # stored in bfloat16, 2.5 GB
    python -m benchmarks.loading --dtype float32     # 5 GB

A folder of random weights in several safetensors files is written a file at a time, and
then read and written, each in a fresh process: on one device, on a mesh of 8 CPU
devices, by transformers where torch is installed, and back by `models.save_pretrained`.
Prints Markdown rows. The parameters are float32 whatever the folder has, and their
bytes are the least that memory must hold. What it held is the peak of anonymous memory
(RssAnon, looked up every 20 ms), the interpreter and its modules included; the
high-water mark of the process (VmHWM) has the pages of mapped files as well, which the
system may take back. Transformers maps a float32 folder and copies none of it. The
files are in the page cache: no disk is timed.

Linux only. Without `--folder` there are at most 5 GB on the disk at a time; with it
the folder stays, and is not written again if it is there.
"""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import jax
import ml_dtypes
import numpy as np
import tyro
from safetensors.numpy import save_file

from jaxqr import models, sharding
from jaxqr.models.config import LanguageModelConfig

MODEL: Any = models.preset("llama-3.2-1b")
DEVICES = 8
SHARD_BYTES = 5 * 10**8
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Config:
    """What to read and write."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """What the folder has its tensors in."""
    folder: Path | None = None
    """Where to keep it, under the name of its dtype; else it is temporary."""


class Span(NamedTuple):
    """A piece of work between two times, which all processes share."""

    begin: float
    end: float
    parameter_bytes: int


def main(config: Config) -> None:
    """Prints a row for each way in, and one for the way out."""
    if sys.platform != "linux":
        raise SystemExit("benchmarks.loading reads /proc/PID/status: it needs Linux")
    os.environ["JAX_PLATFORMS"] = "cpu"  # for the processes to come
    if config.folder is not None:
        measure(config.folder / config.dtype, config.dtype, keep=True)
        return
    with TemporaryDirectory() as folder:
        measure(Path(folder), config.dtype, keep=False)


def measure(folder: Path, dtype: str, *, keep: bool) -> None:
    """All workloads on a folder, which is written if it is not there."""
    if not (folder / "config.json").exists():
        in_its_own_process(write, folder, dtype)
    files = [*folder.glob("*.safetensors")]
    for file in files:
        with file.open("rb") as stream:  # into the page cache
            while stream.read(2**24):
                pass
    print(f"Llama 3.2 1B, {dtype} in {len(files)} files\n")
    print(
        "| work | seconds | parameters, GB | peak, GB | peak - parameters, GB "
        "| peak / parameters | high-water mark, GB |"
    )
    print("|---|---|---|---|---|---|---|")
    row("load, one device", load_on_one, folder)
    row(f"load, fsdp={DEVICES}", load_on_mesh, folder)
    if find_spec("torch") is not None:
        row("load, transformers", load_by_transformers, folder)
    row("save", save, folder, keep)


def row(name: str, work: Callable[..., Span], *arguments: Any) -> None:
    """Prints the time and the memory of one workload."""
    span, memory, high_water = in_its_own_process(work, *arguments)
    peak = max(size for at, size in memory if span.begin <= at <= span.end)
    total = span.parameter_bytes
    cells = [
        f"{span.end - span.begin:.1f}",
        *(f"{x / 1e9:.2f}" for x in (total, peak, peak - total)),
        f"{peak / total:.2f}",
        f"{high_water / 1e9:.2f}",
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def in_its_own_process(
    work: Callable, *arguments: Any
) -> tuple[Any, list[tuple[float, int]], int]:
    """What `work` returns, its anonymous memory at all times, and its highest mark."""
    memory = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        worker = pool.submit(os.getpid).result()
        working = pool.submit(work, *arguments)
        while not working.done():
            memory.append((time.monotonic(), status(worker, "RssAnon")))
            time.sleep(0.02)
        return working.result(), memory, status(worker, "VmHWM")


def status(process: int, field: str) -> int:
    """Bytes that /proc/PID/status has under a name."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(kib)


# The folder


def write(folder: Path, dtype: str) -> None:
    """Random weights as a Hugging Face folder; one file's are in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    stored, rng = np.dtype(DTYPES[dtype]), np.random.default_rng(0)
    shards = [*in_shards(stored.itemsize)]
    where = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(
            {name: drawn(rng, shape, stored) for name, shape in shard.items()},
            folder / file,
            metadata={"format": "pt"},
        )
        where |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ours_alone = {field.name for field in dataclasses.fields(LanguageModelConfig)}
    settings = {
        name: value
        for name, value in dataclasses.asdict(MODEL).items()
        if name not in ours_alone and value is not None
    }
    settings["rope_scaling"]["rope_type"] = "llama3"
    settings |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    settings |= {"dtype": dtype}
    (folder / "config.json").write_text(json.dumps(settings))


def drawn(rng: np.random.Generator, shape: Shape, dtype: np.dtype) -> np.ndarray:
    """A random tensor."""
    values = rng.standard_normal(shape, np.float32)
    values *= MODEL.initializer_range
    return values.astype(dtype, copy=False)


def in_shards(itemsize: int) -> Iterator[dict[str, Shape]]:
    """The names and shapes of each file's tensors."""
    shard, size = {}, 0
    for name, shape in tensors():
        bytes_ = itemsize * math.prod(shape)
        if shard and size + bytes_ > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += bytes_
    yield shard


def tensors() -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the tensors in a Hugging Face folder, embeddings tied."""
    width, inner = MODEL.hidden_size, MODEL.intermediate_size
    queries = MODEL.num_attention_heads * MODEL.channels
    keys = MODEL.kv_heads * MODEL.channels
    yield "model.embed_tokens.weight", (MODEL.vocab_size, width)
    for i in range(MODEL.num_hidden_layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.self_attn.q_proj.weight", (queries, width)
        yield f"{layer}.self_attn.k_proj.weight", (keys, width)
        yield f"{layer}.self_attn.v_proj.weight", (keys, width)
        yield f"{layer}.self_attn.o_proj.weight", (width, queries)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
        yield f"{layer}.mlp.gate_proj.weight", (inner, width)
        yield f"{layer}.mlp.up_proj.weight", (inner, width)
        yield f"{layer}.mlp.down_proj.weight", (width, inner)
    yield "model.norm.weight", (width,)


# The workloads


def load_on_one(folder: Path) -> Span:
    """On the first device."""
    return loading(partial(models.load_pretrained, folder))[0]


def load_on_mesh(folder: Path) -> Span:
    """Split over a mesh of CPU devices."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    place = partial(sharding.placement, mesh=sharding.make_mesh(DEVICES))
    return loading(
        partial(models.load_pretrained, folder, place=place, vocab_multiple=128)
    )[0]


def loading(load: Callable) -> tuple[Span, Any, Any]:
    """The loading, and what was loaded."""
    jax.devices()  # started before the clock
    begin = time.monotonic()
    model, params = load()
    jax.block_until_ready(params)
    end = time.monotonic()
    total = sum(x.nbytes for x in jax.tree.leaves(params))
    return Span(begin, end, total), model, params


def load_by_transformers(folder: Path) -> Span:
    """By torch."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    cls = transformers.LlamaForCausalLM
    begin = time.monotonic()
    model: Any = cls.from_pretrained(folder, dtype=torch.float32)
    for x in model.parameters():
        x.flatten()[::1024].sum()  # each page; a mapped one is not there before
    end = time.monotonic()
    total = sum(x.nbytes for x in model.parameters())
    return Span(begin, end, total)


def save(folder: Path, keep: bool) -> Span:
    """Back into a folder; what was read is deleted first unless `keep`."""
    span, model, params = loading(partial(models.load_pretrained, folder))
    if not keep:
        for file in folder.glob("*.safetensors"):
            file.unlink()
    with TemporaryDirectory(dir=folder) as saved:
        begin = time.monotonic()
        models.save_pretrained(saved, model, params, shard_bytes=SHARD_BYTES)
        return Span(begin, time.monotonic(), span.parameter_bytes)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
