"""The whole job: data, M1, pretraining, SFT, distillation, online DPO, tables, report.

    python -m experiments.pipeline quickstart
    python -m experiments.pipeline quickstart --model t5-tiny
    python -m experiments.pipeline esci-small --prepare.folder PATH/TO/ESCI
    python -m experiments.pipeline paper-gpt2 --prepare.folder PATH/TO/ESCI \
        --sft-teacher.init PATH/TO/gpt2-large --sft-student.init PATH/TO/gpt2

Stages that are done are passed over, one that was interrupted goes on: the same
command again finishes the run. On a CPU, M1 trains in a process of its own at the same
time as the language models, and writes to `runs/NAME/relevance.log`.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from experiments import (
    distill,
    evaluate,
    online_dpo,
    prepare,
    pretrain,
    relevance,
    report,
    sft,
    visits,
)
from experiments.cli import launch, set_up
from experiments.config import Model, PromptConfig, Relevance, Run
from experiments.presets import PRESETS
from experiments.training import check_same

TEACHERS: dict[Model, str] = {
    "gpt2-tiny": "gpt2-3x192",
    "llama-tiny": "llama-3x192",
    "t5-tiny": "t5-3x192",
}
"""The larger sibling of each student."""


@dataclass(frozen=True)
class Config(Run):
    """All stages of a run, in order."""

    model: Model | None = None
    """Another student than the preset's, with its larger sibling as the teacher; its
    run is `runs/PRESET-MODEL` unless `--run` names another."""


def main(run: Path, config: Config) -> None:
    """Runs every stage in turn, and shows what came of it."""
    run = train(run, config)
    evaluate.main(run, config.evaluate)
    report.main(run, report.Config())


def train(run: Path, config: Config) -> Path:
    """Runs every stage but the last two; returns the run's folder."""
    teacher, student = config.pretrain_teacher, config.pretrain_student
    if config.model:
        if not (teacher and student):
            raise ValueError(
                f"--model {config.model} is trained from scratch, which this preset "
                "has no stage for: give --sft-teacher.init and --sft-student.init"
            )
        if config.sft_teacher.init or config.sft_student.init:
            raise ValueError(
                f"--model {config.model} starts at random, --sft-*.init with a "
                "pretrained folder: give one of the two"
            )
        teacher = replace(teacher, model=TEACHERS[config.model])
        student = replace(student, model=config.model)
        if run.name in PRESETS:  # nobody named another
            run = run.with_name(f"{run.name}-{config.model}")
    _check_tokenizers(config)
    prepare.main(run, config.prepare)
    with _at_the_same_time(run, config.relevance):
        if teacher:
            pretrain.main(run, teacher)
        sft.main(run, config.sft_teacher)
        if student:
            pretrain.main(run, student)
        sft.main(run, config.sft_student)
        distill.main(run, config.distill)
    if config.visits:
        visits.main(run, config.visits)
    online_dpo.main(run, config.online)
    return run


def _check_tokenizers(config: Config) -> None:
    """Teacher and student must share one; the folders say so before anything is run."""
    folders = [config.sft_teacher.init, config.sft_student.init]
    # What a command line says of prompts, the folders do not know yet.
    as_found = config.sft_teacher.prompt == config.sft_student.prompt == PromptConfig()
    teacher, student = folders
    if as_found and teacher and student and teacher.is_dir() and student.is_dir():
        check_same(teacher, student, ("teacher", "student"))


@contextmanager
def _at_the_same_time(run: Path, config: Relevance) -> Iterator[None]:
    """Trains M1 while the body runs, or before it where an accelerator is shared.

    Raises:
        RuntimeError: M1 failed; the message names its log.
    """
    done = (run / "relevance" / "done").exists()
    if done or jax.default_backend() != "cpu":
        relevance.main(run, config)
        yield
        return
    log = run / "relevance.log"
    # Spawned: a fork of a process whose JAX has started its threads can hang.
    child = multiprocessing.get_context("spawn").Process(
        target=_logged, args=(run, config, log), name="relevance"
    )
    child.start()
    try:
        yield
    except BaseException:
        child.terminate()  # it saves its checkpoint and ends
        raise
    finally:
        child.join()
    if child.exitcode:
        raise RuntimeError(f"M1 was not trained; {log} says why")


def _logged(run: Path, config: Relevance, log: Path) -> None:
    with log.open("a", buffering=1, encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
        set_up()
        relevance.main(run, config)


CONFIGS = {name: Config(**vars(run)) for name, run in PRESETS.items()}

if __name__ == "__main__":
    launch(main, CONFIGS, __doc__)
