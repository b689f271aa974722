"""The whole job: data, M1, warm-up, SFT, distillation, online DPO, tables, report.

    python -m experiments.pipeline quickstart
    python -m experiments.pipeline quickstart --model t5-tiny
    python -m experiments.pipeline esci-small --prepare.folder PATH/TO/ESCI
    python -m experiments.pipeline paper-gpt2 --prepare.folder PATH/TO/ESCI \
        --sft-teacher.init PATH/TO/gpt2-large --sft-student.init PATH/TO/gpt2

Stages that are done are passed over, one that was interrupted goes on: the same
command again finishes the run. On a CPU, M1 trains in a process of its own beside the
language models, and writes to `runs/NAME/relevance.log`.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax

from experiments import (
    distill,
    evaluate,
    online_dpo,
    prepare,
    relevance,
    report,
    sft,
    warmup,
)
from experiments.layout import launch, set_up
from experiments.training import PromptConfig, check_same

Model = Literal["gpt2-tiny", "llama-tiny", "t5-tiny"]

TEACHERS: dict[Model, str] = {
    "gpt2-tiny": "gpt2-3x192",
    "llama-tiny": "llama-3x192",
    "t5-tiny": "t5-3x192",
}
"""The larger sibling of each student."""


@dataclass(frozen=True)
class Config:
    """All stages of a run."""

    run: Path | None
    """None: `runs/` and the preset's name, and that of `model`."""
    prepare: prepare.Config
    relevance: relevance.Config
    warmup_teacher: warmup.Config | None
    warmup_student: warmup.Config | None
    sft_teacher: sft.Config
    sft_student: sft.Config
    distill: distill.Config
    online: online_dpo.Config
    evaluate: evaluate.Config
    model: Model | None = None
    """Another student than the preset's, with its larger sibling as the teacher."""


PRESETS = {
    name: Config(
        None,
        prepare.PRESETS[name],
        relevance.PRESETS[name],
        warmup.PRESETS.get(f"{name}-teacher"),
        warmup.PRESETS.get(f"{name}-student"),
        sft.PRESETS[f"{name}-teacher"],
        sft.PRESETS[f"{name}-student"],
        distill.PRESETS[name],
        online_dpo.PRESETS[name],
        evaluate.PRESETS[name],
    )
    for name in prepare.PRESETS
}


def main(config: Config) -> None:
    """Runs every stage in turn."""
    run, teacher, student = config.run, config.warmup_teacher, config.warmup_student
    if run is None:
        name = [config.prepare.run.name, *([config.model] if config.model else [])]
        run = config.prepare.run.with_name("-".join(name))
    if config.model:
        if not (teacher and student):
            raise ValueError(
                f"--model {config.model} is trained from scratch, which this preset "
                "has no stage for: give --sft-teacher.init and --sft-student.init"
            )
        if config.sft_teacher.init or config.sft_student.init:
            raise ValueError(
                f"--model {config.model} begins at random, --sft-*.init with a "
                "pretrained folder: give one of the two"
            )
        teacher = replace(teacher, model=TEACHERS[config.model])
        student = replace(student, model=config.model)
    teachers, students = config.sft_teacher.init, config.sft_student.init
    # What a command line says of prompts, the folders do not know yet.
    as_found = config.sft_teacher.prompt == config.sft_student.prompt == PromptConfig()
    if as_found and teachers and students and teachers.is_dir() and students.is_dir():
        check_same(teachers, students, ("teacher", "student"))
    prepare.main(replace(config.prepare, run=run))
    with _beside(replace(config.relevance, run=run)):
        for module, stage in (
            (warmup, teacher),
            (sft, config.sft_teacher),
            (warmup, student),
            (sft, config.sft_student),
            (distill, config.distill),
        ):
            if stage is not None:
                module.main(replace(stage, run=run))
    online_dpo.main(replace(config.online, run=run))
    evaluate.main(replace(config.evaluate, run=run))
    report.main(report.Config(run))


@contextmanager
def _beside(config: relevance.Config) -> Iterator[None]:
    """Trains M1 while the body runs, or before it where an accelerator is shared.

    Raises:
        RuntimeError: M1 failed; the message names its log.
    """
    done = (config.run / "relevance" / "done").exists()
    if done or jax.default_backend() != "cpu":
        relevance.main(config)
        yield
        return
    log = config.run / "relevance.log"
    # Spawned: a fork of a process whose JAX has started its threads can hang.
    child = multiprocessing.get_context("spawn").Process(
        target=_logged, args=(config, log), name="relevance"
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


def _logged(config: relevance.Config, log: Path) -> None:
    with log.open("a", buffering=1) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
        set_up()
        relevance.main(config)


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
