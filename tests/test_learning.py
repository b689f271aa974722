"""Every stage learns its toy task, measured on what it has not seen."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import golden
import jax
import numpy as np
import pytest
import tiny

from jaxqr import metrics, models
from jaxqr.data.pipeline import Batches, collate_encoder, pair_batches
from jaxqr.decode import Sampling
from jaxqr.lm import LM
from jaxqr.records import Reward
from jaxqr.rewards.pool import ScoringPool
from jaxqr.train import loop, steps
from jaxqr.train import state as train_state
from jaxqr.train.rollouts import finish
from jaxqr.train.rollouts.draw import Samples
from jaxqr.train.rollouts.minibatches import Minibatches
from jaxqr.train.rollouts.mixture import MixtureRollouts, WithCorpus
from jaxqr.train.rollouts.online import OnlineRollouts

SAMPLING = Sampling(16, 8)
QUERIES = [query for query, _ in tiny.HELD_OUT]


class Tuned(NamedTuple):
    """A model, and its parameters after 40 and after 160 steps of fine-tuning."""

    model: Any
    early: Any
    late: Any


# GPT-2, which reads as Llama does, learns in the tests of the loop and the pipeline.
@pytest.fixture(scope="module", params=["llama", "t5"])
def tuned(request):
    model = {"llama": tiny.LLAMA, "t5": tiny.T5}[request.param]
    step, batches = tiny.compiled(steps.sft_step, model=model), tiny.sft_batches()
    fresh = models.init(model, jax.random.key(0))
    state = loop.run(step, start(fresh), batches, num_steps=40, frozen=({},))
    early = tiny.copy_of(state.params)
    for _ in range(120):
        state, _ = step(state, batches.next(state), {})
    return Tuned(model, early, state.params)


def rewrites(model, params, sampling, n=1):
    """`n` per held-out query, in one list."""
    drawn = LM(model, params, tiny.tokenizer()).rewrite(
        QUERIES, sampling=sampling, n=n, batch_size=16
    )
    return [rewrite.text for of_query in drawn for rewrite in of_query]


def queries():
    return Batches([q for q, _ in tiny.TRAIN], list, batch_size=8, seed=0)


def start(params):
    """A fresh start from these parameters."""
    return train_state.create(params, tiny.ADAM, jax.random.key(1))


def test_fine_tuning_beats_the_copy(tuned):
    references = [rewrite for _, rewrite in tiny.HELD_OUT]
    greedy = rewrites(tuned.model, tuned.late, SAMPLING._replace(temperature=0.0))
    gain = metrics.paired_bootstrap(
        metrics.rouge_l(QUERIES, references), metrics.rouge_l(greedy, references)
    )
    assert gain.low > 0, greedy
    # What a thing is called, at least, it has learned.
    names = [text.split()[0] for text in references]
    assert np.mean([t.startswith(n) for t, n in zip(greedy, names, strict=True)]) > 0.8


def test_distillation_comes_nearer_to_its_teacher(tuned):
    model, student, teacher = tuned
    settings = steps.MiniLLM.mode("lmops")
    corpus = tiny.tokenizer().plain([b for _, b in tiny.TRAIN], max_target=16)
    bundle = LM(model, student, tiny.tokenizer())
    rollouts = MixtureRollouts(
        bundle, bundle.with_params(teacher), queries(), SAMPLING,
        alpha=settings.alpha, rollouts=16,
    )  # fmt: skip
    batches = WithCorpus(
        Minibatches(rollouts, epochs=2, batch_size=8, seed=0),
        pair_batches(corpus, batch_size=8, seed=1, fill=tiny.EOS),
    )
    step = tiny.compiled(
        steps.minillm_step, model=model, teacher=model, settings=settings
    )
    state = loop.run(step, start(student), batches, num_steps=60, frozen=({}, teacher))

    assert step._cache_size() == 1

    def reverse_kl(params):
        """Of each held-out query's own sample, in nats."""
        drawn = rewrites(model, params, SAMPLING)
        stats = bundle.with_params(params).token_stats(
            list(zip(QUERIES, drawn, strict=True)),
            teacher=bundle.with_params(teacher), max_source=16, max_target=16,
            batch_size=16,
        )  # fmt: skip
        return stats.reverse_kl

    gain = metrics.paired_bootstrap(-reverse_kl(student), -reverse_kl(state.params))
    assert gain.low > 0, gain


def shortness(queries: list[str], rewrites: list[str]) -> Reward:
    total = np.array([max(0, 1 - len(text) / 32) for text in rewrites], np.float32)
    return Reward(total, {}, np.ones(len(rewrites), np.bool_))


def test_online_preferences_raise_the_reward(tuned):
    policy = LM(tuned.model, tuned.late, tiny.tokenizer())
    with ScoringPool(shortness) as pool:
        draw = Samples(policy, queries(), SAMPLING, n=2)
        batches = OnlineRollouts(draw, pool.submit, finish.prefer)
        step = tiny.compiled(steps.dpo_step, model=tuned.model)
        state = loop.run(step, start(tuned.late), batches, num_steps=40, frozen=({},))
    assert step._cache_size() == 1

    def rewards(params):
        """The mean of each held-out query's samples."""
        texts = rewrites(tuned.model, params, SAMPLING, n=8)
        return shortness(texts, texts).total.reshape(-1, 8).mean(axis=1)

    gain = metrics.paired_bootstrap(rewards(tuned.late), rewards(state.params))
    assert gain.low > 0, gain


@pytest.mark.parametrize("model", [tiny.BERT, tiny.T5], ids=["bert", "t5"])
def test_the_relevance_model_beats_the_majority(model):
    """Is the product the thing that is asked for, under the shop's name for it?"""
    rng = np.random.default_rng(0)
    names = list(tiny.RENAMED.values())
    rows = []
    for colour in tiny.COLOURS:
        for i, thing in enumerate(tiny.RENAMED):
            wrong = (i + int(rng.integers(1, len(names)))) % len(names)
            for j, label in ((i, 0), (i, 0), (wrong, 3)):
                title = f"{names[j]} in {rng.choice(tiny.COLOURS)}"
                rows.append((f"{colour} {thing}", title, label))
    asked, titles, labels = zip(
        *(rows[i] for i in rng.permutation(len(rows))), strict=True
    )
    encoded = tiny.tokenizer().encoder(asked, titles, max_tokens=16, labels=labels)
    held_out, train = encoded[:40], encoded[40:]

    collate = partial(collate_encoder, fill=tiny.EOS)
    optimizer = train_state.adamw(3e-3, 300)
    model = models.build(dataclasses.replace(model.config, num_labels=4))
    fresh = models.init(model, jax.random.key(0))
    state = train_state.create(fresh, optimizer, jax.random.key(0))
    step = steps.compile_step(steps.classify_step, model=model, optimizer=optimizer)
    batches = Batches(train, collate, batch_size=16, seed=0)
    state = loop.run(step, state, batches, num_steps=300, frozen=({},))

    batch = collate(held_out)
    logits = golden.apply(model, state.params, *batch[:3], method="classify")
    right = np.asarray(logits).argmax(axis=1) == batch.label
    majority = np.bincount([row.label for row in train]).argmax()
    gain = metrics.paired_bootstrap(1 * (batch.label == majority), 1 * right)
    assert gain.low > 0, gain
