"""Every stage's broken and killed runs end in the bits of unbroken ones."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from test_loop import Interrupts, lines

from jaxqr.data.pipeline import Batches, collate_encoder, pair_batches
from jaxqr.decode import Sampling
from jaxqr.models.value import init_value
from jaxqr.records import Reward
from jaxqr.rewards.pool import ScoringPool
from jaxqr.train import loop, steps
from jaxqr.train import state as train_state
from jaxqr.train.checkpoint import Checkpoints
from jaxqr.train.rollouts import finish
from jaxqr.train.rollouts.draw import ReferencedSamples, Samples
from jaxqr.train.rollouts.minibatches import Minibatches
from jaxqr.train.rollouts.mixture import MixtureRollouts, WithCorpus
from jaxqr.train.rollouts.online import OnlineRollouts

SAMPLING = Sampling(16, 8)


def sft():
    return tiny.compiled(steps.sft_step), tiny.sft_batches(), ()


def queries():
    return Batches([q for q, _ in tiny.TRAIN], list, batch_size=8, seed=0)


def minillm():
    teacher = tiny.params(1)
    settings = steps.MiniLLM.mode("lmops")
    corpus = tiny.tokenizer().plain([b for _, b in tiny.TRAIN], max_target=16)
    rollouts = MixtureRollouts(
        tiny.lm(), tiny.lm(1), queries(), SAMPLING, alpha=settings.alpha, rollouts=16
    )
    batches = WithCorpus(
        Minibatches(rollouts, epochs=2, batch_size=8, seed=0),
        pair_batches(corpus, batch_size=8, seed=1, fill=tiny.EOS),
    )
    static = {"teacher": tiny.GPT2, "settings": settings}
    return tiny.compiled(steps.minillm_step, **static), batches, (teacher,)


def count_letters(queries: list[str], rewrites: list[str]) -> Reward:
    """A reward that differs between almost any two texts, and fails now and then."""
    total = np.array([len(set(text)) + len(text) / 64 for text in rewrites], np.float32)
    parts = {"letters": np.array([len(set(text)) for text in rewrites], np.float32)}
    valid = np.array([not text.startswith("\ufffd") for text in rewrites], np.bool_)
    flags = {"empty": np.array([not text for text in rewrites], np.bool_)}
    return Reward(np.where(valid, total, 0), parts, valid, flags)


def online_dpo(lag):
    def make():
        draw = Samples(tiny.lm(), queries(), SAMPLING, n=2)
        score = ScoringPool(count_letters).submit
        batches = OnlineRollouts(draw, score, finish.prefer, lag=lag)
        return tiny.compiled(steps.dpo_step), batches, ()

    return make


def ppo():
    """The coefficient of the KL adapts, and each rollout is used twice."""
    lm = valued(tiny.lm())
    rollouts = OnlineRollouts(
        ReferencedSamples(lm, tiny.lm(), queries(), SAMPLING),
        ScoringPool(count_letters).submit,
        finish.PPO(kl_coef=0.1, kl_target=0.01),
        lag=0,
    )
    batches = Minibatches(rollouts, epochs=2, batch_size=4, seed=0)
    return tiny.compiled(steps.ppo_step, max_kl=1.0), batches, ()


def valued(lm):
    return lm._replace(params=init_value(lm.model, lm.params))


def classify():
    pairs = [*tiny.TRAIN, *((q, "a pink mug") for q, _ in tiny.TRAIN)]
    asked, titles = zip(*pairs, strict=True)
    labels = [i * 2 // len(pairs) for i in range(len(pairs))]
    rows = tiny.tokenizer().encoder(asked, titles, max_tokens=16, labels=labels)
    collate = partial(collate_encoder, fill=tiny.EOS)
    batches = Batches(rows, collate, batch_size=8, seed=0)
    return tiny.compiled(steps.classify_step, model=tiny.BERT), batches, ()


STAGES = {
    "sft": sft,
    "minillm": minillm,
    "online": online_dpo(lag=0),
    "online-lag": online_dpo(lag=2),
    "ppo": ppo,
    "classify": classify,
}


def start(name):
    if name == "ppo":
        params = valued(tiny.lm()).params
        return train_state.create(params, tiny.ADAM, jax.random.key(0))
    model = tiny.BERT if name == "classify" else tiny.GPT2
    return tiny.start(tiny.ADAM, model=model)


def stage_run(name, folder, num_steps, broken=(), **options):
    step, batches, frozen = STAGES[name]()
    return loop.run(
        step, start(name), Interrupts(batches, broken), num_steps=num_steps,
        folder=folder, frozen=({}, *frozen), **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_a_broken_run_ends_in_the_same_bits(name, tmp_path):
    def go(folder, broken):
        return stage_run(
            name, folder, 6, broken, checkpoint_every=4,
            evaluate=lambda state: {"step": float(state.step)}, evaluate_every=2,
        )  # fmt: skip

    whole = go(tmp_path / "whole", ())
    # MiniLLM's and PPO's rollouts serve four steps: 1 and 3 are within them.
    for step in (1, 3):
        with pytest.raises(loop.Interrupted):
            go(tmp_path / "broken", (step,))
    broken = go(tmp_path / "broken", ())
    tiny.assert_same_bits(broken, whole)
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")
    assert len(lines(tmp_path / "whole")) == 6 + 4
    changed = zip(
        *map(jax.tree.leaves, (whole.params, start(name).params)), strict=True
    )
    assert any((a != b).any() for a, b in changed)


@pytest.mark.parametrize("lag", [0, 2])
def test_a_queued_batch_whose_scoring_failed_for_good_is_scored_again(lag, tmp_path):
    """The engine goes down at step 2 and stays down while the checkpoint is saved."""
    down = {"from": 1000}

    def make(pool):
        draw = Samples(tiny.lm(), queries(), SAMPLING, n=2)
        return OnlineRollouts(draw, pool.submit, finish.prefer, lag=lag)

    def run(folder):
        calls = [0]

        def score(queries, rewrites):
            calls[0] += 1
            if calls[0] > down["from"]:
                raise ConnectionError("search engine is down")
            return count_letters(queries, rewrites)

        with ScoringPool(score, max_consecutive_failures=1) as pool:
            return loop.run(
                tiny.compiled(steps.dpo_step), tiny.start(tiny.ADAM), make(pool),
                num_steps=5, folder=folder, frozen=({},),
            )  # fmt: skip

    whole = run(tmp_path / "whole")
    down["from"] = 2
    with pytest.raises(RuntimeError, match="search engine is down"):
        run(tmp_path / "broken")
    saved = [p.name for p in (tmp_path / "broken" / "checkpoints").iterdir()]
    assert saved == ["2"]
    down["from"] = 1000
    tiny.assert_same_bits(run(tmp_path / "broken"), whole)
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")


def test_a_run_does_not_go_on_with_another_teacher(tmp_path):
    stage_run("minillm", tmp_path, 1)
    step, batches, _ = minillm()
    with pytest.raises(ValueError, match=r"another frozen model \(base, teacher or"):
        loop.run(
            step, start("minillm"), batches, num_steps=2, folder=tmp_path,
            frozen=({}, tiny.params(2)),
        )  # fmt: skip


# A kill

KILLED = """
import sys, conftest, test_resume
test_resume.stage_run(sys.argv[1], sys.argv[2], int(sys.argv[3]), checkpoint_every=1)
"""


@pytest.mark.parametrize("name", ["minillm", "online-lag"])
def test_a_run_that_was_killed_twice_ends_in_the_same_bits(name, tmp_path):
    num_steps = 24
    chance = random.Random()
    moments = [chance.uniform(0, 0.8) for _ in range(2)]
    print(f"killed {moments} s after the first new line of metrics")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", KILLED, name, str(tmp_path), str(num_steps)]
    metrics = tmp_path / "metrics.jsonl"

    def written():
        return metrics.stat().st_size if metrics.exists() else 0

    kills = 0
    for moment in [*moments, None]:
        with (tmp_path / "output").open("a") as output:
            child = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output
            )
        if moment is None:
            assert child.wait(60) == 0, (tmp_path / "output").read_text()
            break
        # The first lines belong to the checkpoint that it went on from.
        before, deadline = written(), time.monotonic() + 60
        while written() <= before and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moment)
        child.kill()
        kills += child.wait() == -signal.SIGKILL
    assert kills

    frozen = STAGES[name]()[2]
    checkpoints = Checkpoints(tmp_path / "checkpoints", frozen=({}, *frozen))
    state, _ = checkpoints.restore(start(name))
    checkpoints.close()
    tiny.assert_same_bits(state, stage_run(name, None, num_steps))
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, num_steps + 1))
    for line in metrics.read_text().splitlines():
        assert json.loads(line)["kind"] == "train"
