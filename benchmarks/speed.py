"""Seconds, tokens/s and compile time of the four things a run does.

    python -m benchmarks.speed                     # s4 on one core
    python -m benchmarks.speed --model gpt2 --repeats 6

SFT step (16 x 64 tokens), DPO step (16 pairs, prompts and completions of 24 tokens),
generation (64 prompts of 24 tokens, 24 new ones: greedy, sampled, top-k 50, top-p
0.9) and one whole online round (16 prompts, 2 candidates each, then the DPO step;
rewards excluded). Where torch and its transformers models are installed, each is
timed beside the same work there, alternating, and the ratio of the medians of process
CPU time is printed: below 1, jaxqr is faster. Everything is pinned to one CPU core,
unless there is an accelerator.
"""

import gc
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import tyro

SIZES = {
    "s4": {"n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 8192},
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
}
EOS = 0
SFT_ROWS, SFT_TOKENS = 16, 64
PAIRS, PROMPT, NEW = 16, 24, 24
PROMPTS = 64


@dataclass(frozen=True)
class Config:
    """What to time."""

    model: Literal["s4", "gpt2"] = "s4"
    repeats: int = 8
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype of jaxqr; torch stays in float32."""
    torch: bool = True
    """Time torch beside it, if it is installed."""
    cores: int = 1
    """CPU cores to pin to; 0 leaves them all."""


def main(config: Config) -> None:
    """Times everything and prints one line of JSON per work."""
    if config.cores:
        allowed = sorted(os.sched_getaffinity(0))[-config.cores :]
        os.sched_setaffinity(0, allowed)
        os.environ["OMP_NUM_THREADS"] = str(config.cores)
    import jax

    ours = jaxqr_works(config)
    theirs = torch_works(config) if config.torch else {}
    print(f"{jax.devices()[0].device_kind}, model {config.model}, {config.dtype}")
    for name, (work, tokens) in ours.items():
        begin = time.perf_counter()
        work()
        compile_seconds = time.perf_counter() - begin
        rival = theirs.get(name)
        if rival:
            rival()
        mine, other = [], []
        for _ in range(config.repeats):
            mine.append(timed(work))
            if rival:
                other.append(timed(rival))
        wall, cpu = np.median(mine, axis=0)
        line = {
            "work": name,
            "seconds": round(float(wall), 4),
            "cpu_seconds": round(float(cpu), 4),
            "tokens_per_second": round(tokens / float(wall)),
            "first_call_seconds": round(compile_seconds, 2),
        }
        if rival:
            their_wall, their_cpu = np.median(other, axis=0)
            line |= {
                "torch_seconds": round(float(their_wall), 4),
                "torch_cpu_seconds": round(float(their_cpu), 4),
                "ratio": round(float(cpu / their_cpu), 3),
            }
        print(json.dumps(line))


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and process CPU seconds of one call."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def inputs(size: dict) -> dict[str, np.ndarray]:
    """Token ids without EOS, so that every row has its full length."""
    rng = np.random.default_rng(0)
    draw = partial(rng.integers, EOS + 1, size["vocab_size"])
    return {
        "sft": draw((SFT_ROWS, SFT_TOKENS)),
        "prompts": draw((PROMPTS, PROMPT)),
        "chosen": draw((PAIRS, NEW)),
        "rejected": draw((PAIRS, NEW)),
    }


def jaxqr_works(config: Config) -> dict[str, tuple[Callable[[], None], int]]:
    """Name -> (work, tokens it trains on or generates)."""
    import jax
    import jax.numpy as jnp

    from jaxqr import decode, models
    from jaxqr.train import state, steps
    from jaxqr.types import Pairs, Preferences, Prompts

    size = SIZES[config.model]
    model = models.build(
        models.GPT2Config(
            **size,  # pyright: ignore[reportArgumentType]
            bos_token_id=EOS,
            eos_token_id=EOS,
            dtype=config.dtype,
        )
    )
    params = models.init(model, jax.random.key(0))
    # EOS is never drawn: all rows run to their full length, as they do in torch.
    optimizer = state.adamw(1e-4, 10_000)
    data = {k: jnp.asarray(v, jnp.int32) for k, v in inputs(size).items()}

    def full(x):
        return jnp.ones(x.shape, bool)

    rows = data["sft"]
    sft = Pairs(rows[:, :1], full(rows[:, :1]), rows[:, 1:], full(rows[:, 1:]))
    source = data["prompts"][:PAIRS]
    preferences = Preferences(
        source,
        full(source),
        data["chosen"],
        full(data["chosen"]),
        data["rejected"],
        full(data["rejected"]),
        jnp.ones(PAIRS),
    )
    compiled = {
        "SFT step": steps.compile_step(
            steps.sft_step, model=model, optimizer=optimizer
        ),
        "DPO step": steps.compile_step(
            steps.dpo_step, model=model, optimizer=optimizer
        ),
    }
    states = {
        name: state.create(params, optimizer, jax.random.key(0)) for name in compiled
    }

    def step(name, batch):
        states[name], metrics = compiled[name](states[name], batch)
        jax.block_until_ready((states[name], metrics))

    prompts = Prompts(data["prompts"], full(data["prompts"]))
    keys = iter(jax.random.split(jax.random.key(1), 10_000))

    def generate(prompts=prompts, **arguments):
        return jax.block_until_ready(
            decode.generate(
                model, params, prompts, next(keys), max_new_tokens=NEW, **arguments
            )
        )

    def online_round():
        drawn = generate(Prompts(*(x[:PAIRS] for x in prompts)), n=2)
        best, worst = ((drawn.tokens[i::2], drawn.mask[i::2]) for i in (0, 1))
        step(
            "DPO step",
            Preferences(source, full(source), *best, *worst, jnp.ones(PAIRS)),
        )

    trained, generated = 2 * PAIRS * NEW, PROMPTS * NEW
    return {
        "SFT step": (lambda: step("SFT step", sft), SFT_ROWS * (SFT_TOKENS - 1)),
        "DPO step": (lambda: step("DPO step", preferences), trained),
        "greedy": (lambda: generate(temperature=0.0), generated),
        "sampled": (lambda: generate(), generated),
        "top-k 50": (lambda: generate(top_k=50), generated),
        "top-p 0.9": (lambda: generate(top_p=0.9), generated),
        "online round": (online_round, trained),
    }


def torch_works(config: Config) -> dict[str, Callable[[], None]]:
    """The same with torch and transformers' GPT-2, or nothing without them."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return {}
    if config.cores:
        torch.set_num_threads(config.cores)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = SIZES[config.model]
    settings = GPT2Config(
        **size,  # pyright: ignore[reportArgumentType]
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=EOS,
        eos_token_id=None,
        pad_token_id=EOS,
    )
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(settings)
    model = model.to(device).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95))
    data = {k: torch.tensor(v, device=device) for k, v in inputs(size).items()}

    def finish():
        if device == "cuda":
            torch.cuda.synchronize()

    def update(loss):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        finish()

    def logps(tokens):
        logits = model(tokens).logits[:, :-1]
        return -torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        ).view(len(tokens), -1)

    def sft():
        update(-logps(data["sft"]).mean())

    def dpo(prompts, chosen, rejected):
        rows = torch.cat(
            [torch.cat([prompts, chosen], 1), torch.cat([prompts, rejected], 1)]
        )
        totals = logps(rows)[:, prompts.shape[1] - 1 :].sum(1)
        best, worst = totals.chunk(2)
        update(-torch.nn.functional.logsigmoid(0.1 * (best - worst)).mean())

    @torch.no_grad()
    def generate(prompts=data["prompts"], **arguments):
        out = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            **arguments,
        )
        finish()
        return out[:, prompts.shape[1] :]

    def online_round():
        prompts = data["prompts"][:PAIRS]
        drawn = generate(prompts.repeat_interleave(2, 0), do_sample=True, top_k=0)
        dpo(prompts, drawn[0::2], drawn[1::2])

    return {
        "SFT step": sft,
        "DPO step": lambda: dpo(
            data["prompts"][:PAIRS], data["chosen"], data["rejected"]
        ),
        "greedy": lambda: generate(do_sample=False),
        "sampled": lambda: generate(do_sample=True, top_k=0),
        "top-k 50": lambda: generate(do_sample=True, top_k=50),
        "top-p 0.9": lambda: generate(do_sample=True, top_k=0, top_p=0.9),
        "online round": online_round,
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
