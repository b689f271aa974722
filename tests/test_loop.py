"""The loop on a toy step: cadence, failures, signals, the best model."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxqr.data.pipeline import Batches
from jaxqr.train import loop, steps
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


def toy_step(state, batch, *frozen):
    del frozen
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
    # A tie is no improvement, a NaN no beginning. A run that was stopped after the
    # evaluation of step 2 repeats it and keeps the same model again.
    again = [w[1]] if 1 in broken else []
    assert kept == [w[1], *again, w[7]]


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


def test_a_run_that_is_done_takes_no_step(tmp_path):
    """It repeats its last evaluation, which a kill may have cut short."""
    first = toy_run(tmp_path, evaluate=lambda state: {"one": 1.0})
    written = lines(tmp_path)

    def never(*_):
        raise AssertionError("no step is left to take")

    batches, evaluated = toy_batches(), []
    batches.next = never

    def evaluate(state):
        evaluated.append(int(state.step))
        return {"one": 1.0}

    again = toy_run(tmp_path, batches, evaluate=evaluate)
    tiny.assert_same_bits(again, first)
    assert evaluated == [7]
    assert lines(tmp_path) == written


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


# Evaluations that fail, or are cut short


class Killed(BaseException):
    """What no handler of the loop may stop."""


def scoring(scores, kept, cut=()):
    """Options of a run whose evaluations score so, by step; some are cut short."""

    def evaluate(state):
        step = int(state.step)
        if step in cut:
            raise Killed
        if scores[step] is None:
            raise ConnectionError("search engine is down")
        return {"s": scores[step]}

    return {
        "evaluate": evaluate, "evaluate_every": 2, "score": "s",
        "keep": lambda params: kept.append(float(params["w"])),
    }  # fmt: skip


def test_a_checkpoint_is_safe_before_its_evaluation(tmp_path):
    def evaluate(state):
        step = int(state.step)
        saved = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
        assert saved == ([str(step)] if step else [])
        return {"saved": 1.0}

    toy_run(tmp_path, evaluate=evaluate, evaluate_every=3)
    assert [x["step"] for x in lines(tmp_path) if x["kind"] == "evaluation"] == [
        0, 3, 6, 7,
    ]  # fmt: skip
    assert not [x for x in lines(tmp_path) if x["kind"] == "failure"]


def test_an_evaluation_that_fails_costs_its_line_alone(tmp_path, capsys):
    scores = {0: 1.0, 2: None, 4: 3.0, 6: None, 7: None}
    kept = []
    state = toy_run(tmp_path, **scoring(scores, kept))
    tiny.assert_same_bits(state, toy_run(None))
    written = lines(tmp_path)
    assert [x["step"] for x in written if x["kind"] == "train"] == list(range(1, 8))
    failures = [x for x in written if x["kind"] == "failure"]
    assert [x["step"] for x in failures] == [2, 6, 7]
    assert {x["error"] for x in failures} == {"ConnectionError: search engine is down"}
    assert [x["step"] for x in written if x["kind"] == "evaluation"] == [0, 4]
    w = [x["loss"] for x in written if x["kind"] == "train"]
    assert kept == [0.0, w[3]]
    assert "step 2  evaluation failed: search engine is down" in capsys.readouterr().out


@pytest.mark.parametrize("score", [None, float("nan")], ids=["raises", "nan"])
def test_without_any_score_the_last_model_is_kept(tmp_path, score):
    kept = []
    scores = dict.fromkeys((0, 2, 4, 6, 7), score)
    state = toy_run(tmp_path, **scoring(scores, kept))
    assert kept == [float(state.params["w"])]


@pytest.mark.parametrize("cut", [(0,), (2,), (4,), (7,), (2, 6, 7)])
def test_a_kill_between_checkpoint_and_evaluation(tmp_path, cut):
    """The evaluation is repeated: one line of each, and the same best model."""
    scores = {0: 1.0, 2: 2.0, 4: 0.5, 6: 3.0, 7: 2.5}
    kept, expected = [], []
    whole = toy_run(tmp_path / "whole", **scoring(scores, expected))
    for step in cut:
        with pytest.raises(Killed):
            toy_run(tmp_path / "cut", **scoring(scores, kept, (step,)))
    state = toy_run(tmp_path / "cut", **scoring(scores, kept))
    tiny.assert_same_bits(state, whole)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert kept == expected


def test_a_kill_after_the_model_was_kept_keeps_it_again(tmp_path):
    """The export is older than the checkpoint that knows of it."""
    scores = {0: 1.0, 2: 2.0, 4: 1.5, 6: 1.5, 7: 1.5}
    kept = []

    class Dies(Interrupts):
        def next(self, state):
            if int(state.step) == 3 and self._before:
                raise Killed
            return super().next(state)

    def batches(before):
        return Dies(toy_batches(), before)

    with pytest.raises(Killed):
        toy_run(tmp_path, batches((99,)), **scoring(scores, kept))
    toy_run(tmp_path, batches(()), **scoring(scores, kept))
    assert len(kept) == 3
    assert kept[1] == kept[2] != kept[0]


def test_a_failed_evaluation_is_repeated_by_a_run_that_goes_on_from_it(tmp_path):
    kept = []
    fails = {0: 1.0, 2: None}
    toy_run(tmp_path, num_steps=2, **scoring(fails, kept))
    assert lines(tmp_path)[-1]["kind"] == "failure"
    works = {2: 2.0, 4: 0.5}
    toy_run(tmp_path, num_steps=4, **scoring(works, kept))
    kinds = [(x["step"], x["kind"]) for x in lines(tmp_path) if x["kind"] != "train"]
    assert kinds == [(0, "evaluation"), (2, "evaluation"), (4, "evaluation")]
    assert len(kept) == 2


@pytest.mark.parametrize("step", [0, 4])
@pytest.mark.parametrize("fails", [False, True])
def test_a_signal_during_an_evaluation(tmp_path, step, fails):
    """It ends first; then the run stops, and what goes on ends in the same bits."""
    kept, expected = [], []
    scores = {0: 1.0, 2: 2.0, 4: 3.0, 6: 0.5, 7: 0.5}
    options = scoring(scores, kept)

    def evaluate(state):
        if int(state.step) == step:
            signal.raise_signal(signal.SIGTERM)
            if fails:
                raise ConnectionError("the engine was stopped, too")
        return {"s": scores[int(state.step)]}

    with pytest.raises(loop.Interrupted, match=f"saved after step {max(step, 1)}"):
        toy_run(tmp_path / "broken", **options | {"evaluate": evaluate})
    state = toy_run(tmp_path / "broken", **options)
    whole = toy_run(tmp_path / "whole", **scoring(scores, expected))
    tiny.assert_same_bits(state, whole)
    if not (fails and step == 0):  # that one is not repeated: a step came after it
        assert lines(tmp_path / "broken") == lines(tmp_path / "whole")
        assert kept[-1] == expected[-1]


def test_a_signal_during_the_last_evaluation_stops_what_would_come_next(tmp_path):
    signals = [signal.SIGTERM]

    def evaluate(state):
        if int(state.step) == 7 and signals:
            signal.raise_signal(signals.pop())
        return {"one": 1.0}

    with pytest.raises(loop.Interrupted, match="saved after step 7"):
        toy_run(tmp_path, evaluate=evaluate)
    state = toy_run(tmp_path, evaluate=evaluate)
    tiny.assert_same_bits(state, toy_run(None))
    assert lines(tmp_path)[-1] == {"step": 7, "kind": "evaluation", "one": 1.0}


def test_a_score_that_is_not_evaluated(tmp_path):
    with pytest.raises(ValueError, match=r"score='ndcg'.*reward, total"):
        toy_run(
            tmp_path, score="ndcg", evaluate=lambda _: {"total": 1.0, "reward": 0.5}
        )


@pytest.mark.parametrize("which", [0, 1], ids=["base", "teacher"])
def test_other_frozen_parameters_are_refused(tmp_path, which):
    frozen = [{"w": jnp.arange(3.0)}, {"w": jnp.arange(4.0)}]
    toy_run(tmp_path, num_steps=2, frozen=tuple(frozen))
    other = [*frozen]
    other[which] = {"w": frozen[which]["w"].at[1].add(1e-6)}
    with pytest.raises(ValueError, match="made with another frozen model"):
        toy_run(tmp_path, frozen=tuple(other))
    with pytest.raises(ValueError, match="made with another frozen model"):
        toy_run(tmp_path, frozen=(frozen[0],))
    tiny.assert_same_bits(toy_run(tmp_path, frozen=tuple(frozen)), toy_run(None))


SCORES = {0: 0.1, 2: 0.5, 4: 0.4, 6: 0.6, 8: 0.6, 10: 0.2, 12: 0.9}
"""By step: the second evaluation in a row without a better one comes at 10."""


def patient_run(folder, batches=None, kept=None, patience=2):
    kept = [] if kept is None else kept
    options = {"evaluate": lambda state: {"score": SCORES[int(state.step)]}}
    options |= {"evaluate_every": 2, "score": "score", "patience": patience}
    options |= {"keep": lambda params: kept.append(float(params["w"]))}
    return toy_run(folder, batches, num_steps=12, **options)


def test_patience_ends_a_run(tmp_path):
    kept = []
    state = patient_run(tmp_path, kept=kept)
    assert int(state.step) == 10
    assert len(kept) == 3  # at 0, 2 and 6
    assert int(patient_run(tmp_path).step) == 10  # and it stays ended
    assert int(patient_run(None, patience=None).step) == 12


@pytest.mark.parametrize("before", [3, 7, 8])
def test_patience_outlasts_an_interruption(tmp_path, before):
    whole = patient_run(tmp_path / "whole")
    with pytest.raises(loop.Interrupted):
        patient_run(tmp_path / "cut", Interrupts(toy_batches(), {before}))
    resumed = patient_run(tmp_path / "cut")
    assert int(resumed.step) == int(whole.step) == 10
    assert resumed.params["w"] == whole.params["w"]
    assert lines(tmp_path / "cut")[-1] == lines(tmp_path / "whole")[-1]
