"""The whole job: data, M1, warm-up, SFT, distillation, online DPO, tables, report.

    python -m experiments.pipeline quickstart
    python -m experiments.pipeline esci-small --prepare.folder PATH/TO/ESCI
    python -m experiments.pipeline paper-gpt2 --prepare.folder PATH/TO/ESCI \
        --sft-teacher.init PATH/TO/gpt2-large --sft-student.init PATH/TO/gpt2

Stages that are done are passed over, one that was interrupted goes on: the same
command again finishes the run.
"""

from dataclasses import dataclass, replace
from pathlib import Path

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
from experiments.layout import launch


@dataclass(frozen=True)
class Config:
    """All stages of a run."""

    run: Path
    prepare: prepare.Config
    relevance: relevance.Config
    warmup_teacher: warmup.Config | None
    warmup_student: warmup.Config | None
    sft_teacher: sft.Config
    sft_student: sft.Config
    distill: distill.Config
    online: online_dpo.Config
    evaluate: evaluate.Config


PRESETS = {
    name: Config(
        Path("runs") / name,
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
    for name in ("quickstart", "esci-small", "paper-gpt2")
}


def main(config: Config) -> None:
    """Runs every stage in turn."""
    for module, stage in (
        (prepare, config.prepare),
        (relevance, config.relevance),
        (warmup, config.warmup_teacher),
        (sft, config.sft_teacher),
        (warmup, config.warmup_student),
        (sft, config.sft_student),
        (distill, config.distill),
        (online_dpo, config.online),
        (evaluate, config.evaluate),
    ):
        if stage is not None:
            module.main(replace(stage, run=config.run))
    report.main(report.Config(config.run))


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
