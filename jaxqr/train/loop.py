"""The one loop.

It asks for a batch, steps, writes numbers down, saves, evaluates. Everything a stage
does differently is in the step, in where its batches come from, and in what it
evaluates. An evaluation that fails is logged and costs nothing else: it comes after the
checkpoint is safe. Killed at any moment and started again, a run ends in the same bits
as one that was never broken; ctrl-C and SIGTERM save before they stop.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from jaxqr.sharding import shard_batch
from jaxqr.train.checkpoint import Checkpoints
from jaxqr.train.log import MetricWriter, ProgressBar
from jaxqr.types import Params, TrainState

SHOWN_METRICS = 6
"""Evaluated numbers that are shown at once; all of them are logged."""

_log = logging.getLogger(__name__)


@runtime_checkable
class Batches(Protocol):
    """Where batches come from: data, or rollouts of the state that is trained."""

    def next(self, state: TrainState) -> Any:
        """The batch for the step that `state` is about to take."""
        ...

    def save(self) -> dict[str, Any]:
        """All that is needed to go on after this batch; see `Checkpoints.save`."""
        ...

    def load(self, saved: dict[str, Any]) -> None:
        """Goes to a saved place."""
        ...


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run after its checkpoint was saved."""


def run(
    step: Callable[..., tuple[TrainState, dict]],
    state: TrainState,
    batches: Batches,
    *,
    num_steps: int,
    frozen: tuple[Params, ...] = (),
    folder: str | Path | None = None,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    score: str | None = None,
    keep: Callable[[Params], None] | None = None,
    patience: int | None = None,
    checkpoint_every: int = 0,
    log_every: int = 1,
    title: str = "train",
) -> TrainState:
    """Takes `num_steps` steps, or what is left of them after the newest checkpoint.

    Args:
        step: compiled by `steps.compile_step`; donates its state.
        state: where to start if `folder` holds no checkpoint; its shapes and
            shardings otherwise. Its buffers are given away.
        batches: see `Batches`. If it has a method `report() -> dict[str, float]`,
            those numbers of the latest batch are logged with the step's.
        num_steps: the step to end at.
        frozen: further arguments of every step.
        folder: where metrics and checkpoints go; None keeps nothing.
        evaluate: called before the first step, every `evaluate_every` steps and after
            the last; returns the numbers to log.
        evaluate_every: 0 evaluates before and after only. Every evaluation comes after
            a checkpoint; one that raises is logged, and the run goes on.
        score: the evaluated number whose highest value is best, or, with a minus
            before its name, whose lowest is.
        keep: called with `state.params` whenever `score` is the best so far, and at
            the end if no evaluation has given a score.
        patience: after so many evaluations in a row without a better score the run
            ends; None: it takes all its steps.
        checkpoint_every: 0 saves at the end and on a signal only.
        log_every: steps between lines of training metrics.
        title: what the progress bar says.

    Returns:
        The last state.

    Raises:
        Interrupted: after SIGINT or SIGTERM, the checkpoint being safe.
        ValueError: an evaluation does not return `score`.
        Exception: what `batches` raised, the checkpoint being safe.
    """
    writer, checkpoints = None, None
    done, best = 0, -math.inf
    stale = 0  # evaluations since the best one
    if folder is not None:
        checkpoints = Checkpoints(Path(folder) / "checkpoints", frozen=frozen)
        if (restored := checkpoints.restore(state)) is not None:
            state, host = restored
            done, best = int(state.step), host["best"]
            stale = host.get("stale", 0)
            batches.load(host["batches"])
        writer = MetricWriter(folder, done)
    bar = ProgressBar(title, done, num_steps)

    def save(state: TrainState) -> None:
        if checkpoints:
            host = {"batches": batches.save(), "best": best, "stale": stale}
            checkpoints.save(done, state, host)

    def evaluate_and_keep_best(state: TrainState) -> None:
        nonlocal best, stale
        due = evaluate_every and done % evaluate_every == 0
        if evaluate is None or not (due or done in (0, num_steps)):
            return
        try:
            values = evaluate(state)
        except Exception as error:
            _log.debug("evaluation at step %d failed", done, exc_info=True)
            bar.note(f"{title}  step {done}  evaluation failed: {error}; going on")
            if writer:
                writer.write_failure(done, f"{type(error).__name__}: {error}")
            return
        if writer:
            writer.write(done, "evaluation", values)
        numbers = "  ".join(
            f"{name} {value:.4g}"
            for name, value in list(values.items())[:SHOWN_METRICS]
        )
        bar.note(f"{title}  step {done}  {numbers}")
        if score is None:
            return
        sign, name = -1 if score.startswith("-") else 1, score.removeprefix("-")
        if name not in values:
            raise ValueError(
                f"{score=} is not among what the evaluation returned, "
                f"{', '.join(sorted(values))}: name one of these"
            )
        signed_score = sign * values[name]
        stale += 1
        if signed_score > best:  # never true of NaN
            best, stale = signed_score, 0
            if keep is not None:
                keep(state.params)

    report = getattr(batches, "report", dict)
    try:
        with _signals() as received:
            # A resumed run repeats the evaluation of the step that it goes on from:
            # the checkpoint was saved before it.
            evaluate_and_keep_best(state)
            since, logged = time.perf_counter(), done
            while done < num_steps and (patience is None or stale < patience):
                try:
                    batch = shard_batch(batches.next(state), state.params)
                except Exception:  # a search engine that stays down, say
                    save(state)
                    raise
                state, metrics = step(state, batch, *frozen)
                done += 1
                values = {}
                if done % log_every == 0 or done == num_steps:
                    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                    values |= report()
                    now = time.perf_counter()
                    seconds = (now - since) / (done - logged)
                    since, logged = now, done
                    values["seconds"] = seconds
                    if "tokens" in values:
                        values["tokens_per_second"] = values["tokens"] / seconds
                    if writer:
                        writer.write(done, "train", values)
                bar.show(done, values)
                pause = time.perf_counter()
                due = (n and done % n == 0 for n in (checkpoint_every, evaluate_every))
                if any(due) or done == num_steps:
                    save(state)
                evaluate_and_keep_best(state)
                if received:
                    save(state)
                    raise Interrupted(f"{title}: saved after step {done}")
                since += time.perf_counter() - pause
            if keep is not None and score is not None and best == -math.inf:
                keep(state.params)  # no evaluation said which step was best
    finally:
        bar.close()
        if checkpoints:
            checkpoints.close()
        if writer:  # the last: on a full disk it raises
            writer.close()
    return state


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Notes the first SIGINT or SIGTERM; a second of the same kind acts at once."""
    received: list[int] = []

    def note(number, frame):
        del frame
        if number in received:
            raise KeyboardInterrupt
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {number: signal.signal(number, note) for number in numbers}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
