"""The loop: cadence, the best model, and runs that are broken and go on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxqr.data.pipeline import Batches, pair_batches
from jaxqr.rewards import Reward, Sidecar
from jaxqr.train import loop, online, rollout, steps
from jaxqr.train.checkpoint import Checkpoints
from jaxqr.train.log import read_metrics
from jaxqr.types import TrainState

CLOCK = {"seconds", "tokens_per_second"}


class Interrupts:
    """Batches during whose making, before the given steps, a signal comes."""

    def __init__(self, batches, before, number=signal.SIGINT):
        self._batches, self._before, self._number = batches, before, number
        if hasattr(batches, "report"):
            self.report = batches.report

    def next(self, state):
        batch = self._batches.next(state)
        if int(state.step) in self._before:
            signal.raise_signal(self._number)
        return batch

    def save(self):
        return self._batches.save()

    def load(self, saved):
        self._batches.load(saved)


def lines(folder):
    """The metrics of a run, without what the clock decides."""
    return [
        {name: value for name, value in line.items() if name not in CLOCK}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


# A toy step, for what does not depend on a model


def toy_step(state, batch):
    params = {"w": state.params["w"] + jnp.sum(batch)}
    metrics = {"loss": params["w"], "tokens": jnp.float32(4.0)}
    return TrainState(params, state.opt_state, state.key, state.step + 1), metrics


TOY = steps.compile_step(toy_step)


def toy_state():
    return TrainState({"w": jnp.zeros(())}, (), jax.random.key(0), jnp.int32(0))


def toy_batches():
    return Batches(list(range(10)), lambda rows: np.float32(rows), batch_size=3, seed=0)


def toy_run(folder, batches=None, num_steps=7, **options):
    return loop.run(
        TOY, toy_state(), batches or toy_batches(), num_steps=num_steps,
        folder=folder, **options,
    )  # fmt: skip


def test_the_loop_is_its_steps():
    batches = toy_batches()
    expected = sum(batches.next(None).sum() for _ in range(7))
    state = toy_run(None)
    assert (int(state.step), float(state.params["w"])) == (7, expected)


@pytest.mark.parametrize(
    ("every", "steps"), [(0, [0, 7]), (3, [0, 3, 6, 7]), (7, [0, 7])]
)
def test_evaluation_comes_first_last_and_in_between(tmp_path, every, steps):
    seen = []

    def evaluate(state):
        seen.append((int(state.step), float(state.params["w"])))
        return {"w": seen[-1][1]}

    toy_run(tmp_path, evaluate=evaluate, evaluate_every=every)
    assert [step for step, _ in seen] == steps
    written = read_metrics(tmp_path / "metrics.jsonl")
    trained = {x["step"]: x["loss"] for x in written if x["kind"] == "train"}
    evaluated = {x["step"]: x["w"] for x in written if x["kind"] == "evaluation"}
    assert list(trained) == [1, 2, 3, 4, 5, 6, 7]
    assert evaluated == dict(seen)
    assert all(evaluated[step] == trained[step] for step in steps if step)


def test_lines_of_training_come_as_often_as_asked(tmp_path):
    toy_run(tmp_path, log_every=3)
    written = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in written] == [3, 6, 7]
    for line in written:
        speed = line["tokens_per_second"]
        assert speed == pytest.approx(4.0 / line["seconds"])


def test_reports_and_numbers_that_are_not_finite(tmp_path):
    class Reporting(Interrupts):
        def report(self):
            return {"reward": float("nan"), "tied": 0.5}

    toy_run(tmp_path, Reporting(toy_batches(), ()), num_steps=2)
    assert {(x["reward"], x["tied"]) for x in lines(tmp_path)} == {(None, 0.5)}
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("broken", [(), (3,), (1, 5)])
def test_the_best_parameters_are_kept(tmp_path, broken):
    scores = {0: float("nan"), 2: 1.0, 4: 0.5, 6: 1.0, 8: 2.0}
    kept = []

    def go(batches):
        return toy_run(
            tmp_path, batches, num_steps=8, evaluate_every=2, score="s",
            evaluate=lambda state: {"s": scores[int(state.step)]},
            keep=lambda params: kept.append(float(params["w"])),
        )  # fmt: skip

    for step in broken:
        with pytest.raises(loop.Interrupted):
            go(Interrupts(toy_batches(), [step]))
    go(toy_batches())
    batches = toy_batches()
    w = np.cumsum([batches.next(None).sum() for _ in range(8)])
    assert kept == [w[1], w[7]]  # a tie is no improvement, a NaN no beginning


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(loop.Interrupted, match="saved after step 4"):
        toy_run(tmp_path, Interrupts(toy_batches(), [3], number))
    assert signal.getsignal(number) is before
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    asked = []

    class Notes(Interrupts):
        def next(self, state):
            asked.append(int(state.step))
            return super().next(state)

    state = toy_run(tmp_path, Notes(toy_batches(), ()))
    assert asked == [4, 5, 6]
    tiny.assert_same_bits(state, toy_run(None))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_second_signal_acts_at_once(tmp_path):
    class Impatient(Interrupts):
        def next(self, state):
            signal.raise_signal(self._number)
            return super().next(state)

    with pytest.raises(KeyboardInterrupt) as error:
        toy_run(tmp_path, Impatient(toy_batches(), [0]))
    assert not isinstance(error.value, loop.Interrupted)


def test_a_run_that_is_done_is_left_alone(tmp_path):
    first = toy_run(tmp_path, evaluate=lambda state: {"one": 1.0})
    written = (tmp_path / "metrics.jsonl").read_text()

    def never(*_):
        raise AssertionError("nothing is left to do")

    batches = toy_batches()
    batches.next = never
    again = toy_run(tmp_path, batches, evaluate=never)
    tiny.assert_same_bits(again, first)
    assert (tmp_path / "metrics.jsonl").read_text() == written


def test_a_longer_run_goes_on(tmp_path):
    toy_run(tmp_path, num_steps=3)
    tiny.assert_same_bits(toy_run(tmp_path, num_steps=7), toy_run(None))


def test_a_failure_goes_on_from_the_last_checkpoint(tmp_path):
    class Fails(Interrupts):
        def next(self, state):
            if int(state.step) == 5:
                raise OSError("the disk is full")
            return super().next(state)

    with pytest.raises(OSError, match="disk is full"):
        toy_run(tmp_path, Fails(toy_batches(), ()), checkpoint_every=2)
    # The line of step 5 is of no checkpoint, and a kill cut the last line short.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "ki')
    state = toy_run(tmp_path)
    tiny.assert_same_bits(state, toy_run(None))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


# Stages: broken runs end in the bits of unbroken ones


def sft():
    return tiny.compiled(steps.sft_step), tiny.sft_batches(), ()


def minillm():
    sampling = rollout.Sampling(16, 8)
    teacher = tiny.params(1)
    settings = steps.MiniLLM.mode("lmops")
    corpus = tiny.tokenizer().plain([b for _, b in tiny.TRAIN], max_target=16)
    batches = rollout.MixtureRollouts(
        tiny.GPT2, tiny.GPT2, teacher, tiny.sft_batches(),
        pair_batches(corpus, batch_size=8, seed=1, fill=tiny.EOS), sampling,
        alpha=settings.alpha, rollouts=16, inner_epochs=2, batch_size=8,
    )  # fmt: skip
    static = {"teacher": tiny.GPT2, "settings": settings}
    return tiny.compiled(steps.minillm_step, **static), batches, (teacher,)


def count_letters(queries: list[str], rewrites: list[str]) -> Reward:
    """A reward that differs between almost any two texts, and fails now and then."""
    total = np.array([len(set(text)) + len(text) / 64 for text in rewrites], np.float32)
    parts = {"letters": np.array([len(set(text)) for text in rewrites], np.float32)}
    valid = np.array([not text.startswith("\ufffd") for text in rewrites], np.bool_)
    flags = {"empty": np.array([not text for text in rewrites], np.bool_)}
    return Reward(np.where(valid, total, 0), parts, valid, flags)


def online_dpo(overlap):
    def make():
        queries = Batches([q for q, _ in tiny.TRAIN], list, batch_size=8, seed=0)
        batches = online.OnlineRollouts(
            tiny.GPT2, tiny.tokenizer(), queries, Sidecar(count_letters).submit,
            Reward, online.prefer, rollout.Sampling(16, 8), overlap=overlap,
        )  # fmt: skip
        return tiny.compiled(steps.dpo_step), batches, ()

    return make


STAGES = {
    "sft": sft,
    "minillm": minillm,
    "online": online_dpo(overlap=False),
    "online-overlap": online_dpo(overlap=True),
}


def stage_run(name, folder, num_steps, broken=(), **options):
    step, batches, frozen = STAGES[name]()
    return loop.run(
        step, tiny.start(tiny.ADAM), Interrupts(batches, broken), num_steps=num_steps,
        folder=folder, frozen=frozen, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_a_broken_run_ends_in_the_same_bits(name, tmp_path):
    def go(folder, broken):
        return stage_run(
            name, folder, 6, broken, checkpoint_every=4,
            evaluate=lambda state: {"step": float(state.step)}, evaluate_every=2,
        )  # fmt: skip

    whole = go(tmp_path / "whole", ())
    # MiniLLM's rollouts serve four steps: 1 and 3 are within their inner epochs.
    for step in (1, 3):
        with pytest.raises(loop.Interrupted):
            go(tmp_path / "broken", (step,))
    broken = go(tmp_path / "broken", ())
    tiny.assert_same_bits(broken, whole)
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")
    assert len(lines(tmp_path / "whole")) == 6 + 4
    changed = zip(*map(jax.tree.leaves, (whole.params, tiny.params())), strict=True)
    assert any((a != b).any() for a, b in changed)


def test_batches_that_fail_lose_no_step(tmp_path):
    class Failing(Interrupts):
        def next(self, state):
            if int(state.step) == 3 and self._before:
                raise RuntimeError("scoring failed")
            return super().next(state)

    def go(before):
        return loop.run(
            TOY, toy_state(), Failing(toy_batches(), before), num_steps=5,
            folder=tmp_path,
        )  # fmt: skip

    with pytest.raises(RuntimeError, match="scoring failed"):
        go((9,))
    assert Checkpoints(tmp_path / "checkpoints").restore(toy_state())[0].step == 3
    expected = loop.run(TOY, toy_state(), toy_batches(), num_steps=5)
    tiny.assert_same_bits(go(()), expected)


# A kill

KILLED = """
import sys, conftest, test_loop
test_loop.stage_run(sys.argv[1], sys.argv[2], int(sys.argv[3]), checkpoint_every=1)
"""


@pytest.mark.parametrize("name", ["sft", "minillm", "online-overlap"])
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

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    state, _ = checkpoints.restore(tiny.start(tiny.ADAM))
    checkpoints.close()
    tiny.assert_same_bits(state, stage_run(name, None, num_steps))
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, num_steps + 1))
    for line in metrics.read_text().splitlines():
        assert json.loads(line)["kind"] == "train"
