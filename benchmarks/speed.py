"""Seconds, tokens/s and compile time of what a run does.

    python -m benchmarks.speed                     # s4 on one core
    python -m benchmarks.speed --model t5-s4
    python -m benchmarks.speed --model gpt2 --repeats 6

SFT step (16 x 64 tokens; T5 reads half of them as the source), DPO step (16 pairs,
prompts and completions of 24 tokens), generation (64 prompts of 24 tokens, 24 new
ones: greedy, sampled, top-k 50, top-p 0.9), beam search (16 prompts, 4 beams), one
whole online round (16 prompts, 2 candidates each, then the DPO step; rewards excluded),
a PPO step (16 prompts and completions, values) and one whole PPO round (16 prompts
drawn, read with policy, values and a reference, then 2 steps; rewards excluded). Freed
memory stays with the process, as in every stage of a run. Where torch and its
transformers models are installed, each workload is timed there too, on the same weights
and alternating, and the ratio of the medians of process CPU time is printed: below 1,
jaxqr is faster. Before that, both have computed the same losses and the same tokens.
Everything is pinned to one CPU core, unless there is an accelerator.
"""

import dataclasses
import gc
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import baselines
from experiments.cli import keep_freed_memory
from jaxqr import decode, models
from jaxqr.models.value import COLLECTION, init_value
from jaxqr.records import Reward
from jaxqr.train import state, steps
from jaxqr.train.rollouts import finish
from jaxqr.train.rollouts.draw import Candidates, read
from jaxqr.types import Pairs, Params, Preferences, PromptBatch

SIZES: dict[str, Any] = {
    "s4": models.GPT2Config(vocab_size=8192, n_layer=4, n_embd=256, n_head=4),
    "llama-s4": models.LlamaConfig(
        vocab_size=8192,
        num_hidden_layers=4,
        hidden_size=256,
        intermediate_size=704,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "t5-s4": models.T5Config(
        vocab_size=8192,
        num_layers=4,
        d_model=256,
        d_kv=64,
        d_ff=512,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tied=False,
        scale_decoder_outputs=False,
    ),
    "gpt2": models.preset("gpt2"),
}
"""The first three have 4 layers of width 256; T5 (version 1.1) has 4 + 4."""

SFT_ROWS, SFT_TOKENS = 16, 64
PAIRS, PROMPT, NEW = 16, 24, 24
PROMPTS = 64
END = 1
"""The end of text; no input has it."""
SEARCHED, BEAMS = 16, 4
COMPARED = ("SFT step", "DPO step", "PPO step", "greedy", f"beam {BEAMS}")
"""Workloads whose first results are those of torch."""

Workload = Callable[[], Any]
"""Does it once, to the end; returns the loss or the tokens."""


@dataclass(frozen=True)
class Config:
    """What to time."""

    model: Literal["s4", "llama-s4", "t5-s4", "gpt2"] = "s4"
    repeats: int = 8
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of jaxqr; torch stays in float32."""
    torch: bool = True
    """Time torch as well, if it is installed."""
    works: tuple[str, ...] = ()
    """Which workloads to time, such as "PPO round"; none: all."""
    cores: int = 1
    """CPU cores to pin to; 0 leaves them all."""


def main(config: Config) -> None:
    """Times everything and prints one line of JSON per workload."""
    if config.cores:  # before jax looks for devices, and torch is imported
        allowed = sorted(os.sched_getaffinity(0))[-config.cores :]
        os.sched_setaffinity(0, allowed)
        os.environ["OMP_NUM_THREADS"] = str(config.cores)
    keep_freed_memory()
    size = SIZES[config.model]
    # Of thousands of random tokens hardly one is the end of text, and decoding runs
    # until the last row has it: to the full length.
    model = models.build(
        dataclasses.replace(size, eos_token_id=END, dtype=config.dtype)
    )
    params = models.init(model, jax.random.key(0))
    data = inputs(model)
    theirs: dict[str, Workload] = {}
    if config.torch:
        with TemporaryDirectory() as folder:
            models.save_pretrained(folder, model, params)
            theirs = baselines.workloads(
                Path(folder), data, num_beams=BEAMS, threads=config.cores
            )
    print(f"{jax.devices()[0].device_kind}, model {config.model}, {config.dtype}")
    mine = workloads(model, params, data)
    if unknown := set(config.works) - set(mine):
        raise ValueError(f"no work is called {unknown}: give some of {list(mine)}")
    for name in config.works or mine:
        workload, tokens = mine[name]
        begin = time.perf_counter()
        result = workload()
        first_call = time.perf_counter() - begin
        baseline = theirs.get(name)
        if baseline:
            expected = baseline()
            if name in COMPARED:
                compare(name, result, expected, config)
        ours, other = [], []
        for _ in range(config.repeats):
            ours.append(timed(workload))
            if baseline:
                other.append(timed(baseline))
        wall, cpu = np.median(ours, axis=0)
        line = {
            "work": name,
            "seconds": round(float(wall), 4),
            "cpu_seconds": round(float(cpu), 4),
            "tokens_per_second": round(tokens / float(wall)),
            "first_call_seconds": round(first_call, 2),
        }
        if baseline:
            their_wall, their_cpu = np.median(other, axis=0)
            line |= {
                "torch_seconds": round(float(their_wall), 4),
                "torch_cpu_seconds": round(float(their_cpu), 4),
                "ratio": round(float(cpu / their_cpu), 3),
            }
        print(json.dumps(line), flush=True)


def timed(workload: Workload) -> tuple[float, float]:
    """Wall and process CPU seconds of one call."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    workload()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(name: str, mine: Any, theirs: Any, config: Config) -> None:
    """Sees to it that both have done the same thing: one loss, or the same tokens.

    Where two tokens are all but equally probable, rounding decides, and the row goes
    another way from there. Rounding is coarse in bfloat16 and on accelerators.
    """
    exact = config.dtype == "float32" and jax.default_backend() == "cpu"
    if np.ndim(mine) == 0:
        np.testing.assert_allclose(
            mine, theirs, rtol=1e-5 if exact else 1e-2, err_msg=f"loss of {name}"
        )
    elif exact:
        same = np.mean(np.all(mine == theirs, axis=-1))
        assert same >= 0.9, f"{name}: {same:.0%} of the rows are those of torch"


def inputs(model: Any) -> dict[str, np.ndarray]:
    """Random tokens, what is read first and what is predicted; numbers for PPO."""
    shapes = jax.eval_shape(partial(models.init, model), jax.random.key(0))
    width = len(init_value(model, shapes)[COLLECTION]["kernel"])
    rng = np.random.default_rng(0)
    vocab = model.config.vocab_size
    draw = partial(rng.integers, 2, vocab, dtype=np.int32)
    normal = partial(rng.standard_normal, dtype=np.float32)
    text = draw((SFT_ROWS, SFT_TOKENS))
    split = SFT_TOKENS // 2 if model.encoder_decoder else 1
    return {
        "source": text[:, :split],
        "target": text[:, split:],
        "prompts": draw((PROMPTS, PROMPT)),
        "chosen": draw((PAIRS, NEW)),
        "rejected": draw((PAIRS, NEW)),
        # Rollouts for PPO: log-probabilities are those of a uniform policy, nearly.
        "logps": normal((PAIRS, NEW)) / 10 - np.float32(np.log(vocab)),
        **{name: normal((PAIRS, NEW)) for name in ("values", "advantages", "returns")},
        "score": normal(PAIRS),
        "value": normal(width) / np.float32(width),
    }


def workloads(
    model: Any, params: Params, data: dict[str, np.ndarray]
) -> dict[str, tuple[Workload, int]]:
    """Name -> (workload, tokens it trains on or generates)."""
    optimizer = state.adamw(1e-4, 10_000)
    keys = iter(jax.random.split(jax.random.key(1), 10_000))
    compiled = {
        "SFT step": steps.compile_step(
            steps.sft_step, model=model, optimizer=optimizer
        ),
        "DPO step": steps.compile_step(
            steps.dpo_step, model=model, optimizer=optimizer
        ),
    }
    compiled["PPO step"] = steps.compile_step(
        steps.ppo_step, model=model, optimizer=optimizer
    )
    head = {"kernel": jnp.asarray(data["value"]), "bias": jnp.zeros(())}
    starts = dict.fromkeys(compiled, params)
    starts["PPO step"] = {**params, COLLECTION: head}
    states = {
        name: state.create(start, optimizer, jax.random.key(0))
        for name, start in starts.items()
    }

    def whole(name, rows=None):
        """Tokens, and a mask that counts them all."""
        tokens = jnp.asarray(data[name][:rows])
        return tokens, jnp.ones(tokens.shape, bool)

    prompts = PromptBatch(*whole("prompts"))
    source, some = whole("prompts", PAIRS), PromptBatch(*whole("prompts", SEARCHED))
    sft = Pairs(*whole("source"), *whole("target"))
    dpo = Preferences(*source, *whole("chosen"), *whole("rejected"), jnp.ones(PAIRS))

    def step(name, batch):
        states[name], metrics = compiled[name](states[name], batch, {})
        jax.block_until_ready(states[name])
        return float(metrics["loss"])

    def generate(prompts=prompts, **arguments):
        return jax.block_until_ready(
            decode.generate(
                model, params, prompts, next(keys), max_new_tokens=NEW, **arguments
            )
        )

    def generated_tokens(**arguments):
        return np.asarray(generate(**arguments).tokens)

    def search():
        found = jax.block_until_ready(
            decode.beam_search(model, params, some, max_new_tokens=NEW, num_beams=BEAMS)
        )
        return np.asarray(found.tokens[:, 0])

    def online_round():
        drawn = generate(PromptBatch(*source), n=2)
        best, worst = ((drawn.tokens[i::2], drawn.mask[i::2]) for i in (0, 1))
        return step("DPO step", Preferences(*source, *best, *worst, jnp.ones(PAIRS)))

    ppo = steps.PPOBatch(
        Pairs(*source, *whole("chosen")),
        *(data[name] for name in ("logps", "values", "advantages", "returns")),
    )
    finisher = finish.PPO(kl_coef=0.1, lam=0.95)

    def ppo_round():
        """Draw, read with policy, values and reference, advantages, two epochs."""
        policy = states["PPO step"].params
        drawn = jax.block_until_ready(
            decode.generate(
                model, policy, PromptBatch(*source), next(keys), max_new_tokens=NEW
            )
        )
        pairs = Pairs(*source, drawn.tokens, drawn.mask)
        logps, values = read(model, policy, pairs)
        ref_logps, _ = read(model, params, pairs)
        known = np.ones(PAIRS, bool)
        batch, _ = finisher(
            Candidates([""] * PAIRS, [""] * PAIRS, pairs, logps, values, ref_logps),
            Reward(data["score"], {}, known),
        )
        step("PPO step", batch)
        return step("PPO step", batch)

    trained, generated = 2 * PAIRS * NEW, PROMPTS * NEW
    return {
        "SFT step": (lambda: step("SFT step", sft), data["target"].size),
        "DPO step": (lambda: step("DPO step", dpo), trained),
        "PPO step": (lambda: step("PPO step", ppo), PAIRS * NEW),
        "greedy": (lambda: generated_tokens(temperature=0.0), generated),
        "sampled": (generated_tokens, generated),
        "top-k 50": (lambda: generated_tokens(top_k=50), generated),
        "top-p 0.9": (lambda: generated_tokens(top_p=0.9), generated),
        f"beam {BEAMS}": (search, SEARCHED * NEW),
        "online round": (online_round, trained),
        "PPO round": (ppo_round, trained),
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
