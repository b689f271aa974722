"""Where the classifier of adversarial queries scores: in a pool, or in the rollout.

    python -m benchmarks.rollout

A rollout of 128 queries by a T5 (`t5-tiny`), and the loss of a T5 encoder of the same
size on them, three ways:

- turn: draw, decode to text, tokenize for the classifier, score; what a run does;
- pool: the same, with the next rollout drawn while a thread scores the last one;
- jitted: one program draws and scores token ids, which never become text.

The third needs one tokenizer for both models and prompts in the classifier's layout,
which only models that were trained here together have; it also pads every row to the
full length. Prints the median seconds of each, alternating.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.cli import keep_freed_memory
from jaxqr import decode, models
from jaxqr.data import shop
from jaxqr.data.tokenize import pad_prompts, pad_right, train_tokenizer
from jaxqr.lm import fresh_model
from jaxqr.records import Reward
from jaxqr.rewards import ScoringPool
from jaxqr.rewards.classifier import Classifier
from jaxqr.rewards.relevance import product_text
from jaxqr.types import PromptBatch

ROWS, SOURCE, NEW, READ = 128, 32, 16, 32
"""Queries, and most tokens of a prompt, of a query, of both in the classifier."""


@dataclass(frozen=True)
class Config:
    """What to time."""

    model: str = "t5-tiny"
    rounds: int = 12


def main(config: Config) -> None:
    """Times the three ways."""
    keep_freed_memory()
    catalogue = shop.make(num_products=800, num_intents=20).collection.products
    texts = [product_text(product) for product in catalogue.values()][:ROWS]
    tokenizer = train_tokenizer(texts, 1024).with_prompt("prefix", "exact query: ")
    writer = fresh_model(config.model, tokenizer)
    reader = fresh_model(config.model, tokenizer, num_labels=4)
    params, head = (models.init(m, jax.random.key(0)) for m in (writer, reader))
    judge = Classifier(reader, head, tokenizer, READ)
    prompts = pad_prompts(tokenizer.source(texts, SOURCE), SOURCE, tokenizer.eos)
    prompts = PromptBatch(*map(jnp.asarray, prompts))
    keys = iter(jax.random.split(jax.random.key(1), 10_000))
    draw = partial(decode.generate, writer, params, prompts, max_new_tokens=NEW)

    def written() -> list[str]:
        tokens, mask, _ = jax.device_get(draw(next(keys)))
        return tokenizer.decode(tokens, mask)

    def score(sources: list[str], queries: list[str]) -> Reward:
        loss = -np.log(judge.probabilities(queries, sources)[:, 0])
        return Reward(loss, {}, np.ones(len(loss), bool))

    def turn() -> None:
        score(texts, written())

    own = [ids[: READ - NEW] for ids in tokenizer.encode(texts)]
    product, there = map(jnp.asarray, pad_right(own, READ - NEW, tokenizer.eos))

    @jax.jit
    def drawn_and_scored(key):
        drawn = draw(key)
        tokens = jnp.concatenate([drawn.tokens, product], axis=1)
        mask = jnp.concatenate([drawn.mask, there], axis=1)
        segments = jnp.zeros_like(tokens)
        logits = reader.apply(head, tokens, mask, segments, method="classify")
        return drawn, -jax.nn.log_softmax(logits.astype(jnp.float32))[:, 0]

    def jitted() -> None:
        drawn, loss = jax.device_get(drawn_and_scored(next(keys)))
        tokenizer.decode(drawn.tokens, drawn.mask)  # texts are kept in any case
        del loss

    with ScoringPool(score) as pool:
        waiting = [pool.submit(texts, written())]

        def pooled() -> None:
            waiting.append(pool.submit(texts, written()))
            waiting.pop(0).result()

        ways: dict[str, Callable[[], None]]
        ways = {"turn": turn, "pool": pooled, "jitted": jitted}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for round in range(config.rounds + 2):
            for name, way in ways.items():
                begin = time.perf_counter()
                way()
                if round >= 2:  # the first ones compile
                    seconds[name].append(time.perf_counter() - begin)
        for pending in waiting:
            pending.result()
    for name, taken in seconds.items():
        print(f"{name:8}{np.median(taken):.3f} s")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
