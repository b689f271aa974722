"""Supervised fine-tuning on query pairs, of the teacher or of the student.

    python -m experiments.sft quickstart-teacher
    python -m experiments.sft quickstart-student

Starts from the run's pretrained model, or from `--init FOLDER` of a Hugging Face model;
keeps the parameters of the lowest validation loss.
"""

from pathlib import Path

from experiments import runs, training
from experiments.cli import launch
from experiments.config import SFT
from experiments.prepare import Prepared
from experiments.presets import PRESETS
from jaxqr.data.pipeline import pair_batches
from jaxqr.data.prompts import PromptTemplate
from jaxqr.data.tokenize import Tokenizer
from jaxqr.evaluation import pairs
from jaxqr.lm import LM
from jaxqr.train import steps


def main(run: Path, config: SFT) -> None:
    """Fine-tunes one model."""
    data = Prepared(run)
    if config.init:
        start = config.init
    else:
        command = f"python -m experiments.pretrain PRESET-{config.role}"
        start = runs.require(run / f"pretrain-{config.role}", command) / "model"
    folder = run / f"sft-{config.role}"
    with runs.stage(folder, config) as work:
        if not work:
            return
        lm = training.load_model(
            start,
            config.compute,
            config.lora,
            prompt=config.prompt,
            layers=config.layers,
            seed=config.seed,
        )
        lm = lm._replace(tokenizer=_prompted(lm, folder))
        other = "student" if config.role == "teacher" else "teacher"
        if ((done := run / f"sft-{other}") / "done").exists():
            others = Tokenizer.load(done / "model")
            lm.tokenizer.check_same(others, config.role, other)
        lengths = data.lengths
        rows = lm.tokenizer.pairs(
            data.pairs["train"], max_source=lengths.source, max_target=lengths.target
        )
        training.train(
            folder,
            lm,
            steps.sft_step,
            pair_batches(
                rows,
                batch_size=config.optimizer.batch_size,
                seed=config.seed,
                fill=lm.tokenizer.eos,
            ),
            config.optimizer,
            seed=config.seed,
            evaluate=pairs.validation(
                training.sample_pairs(
                    data.pairs["validation"], config.validation_pairs
                ),
                max_source=lengths.source,
                max_target=lengths.target,
            ),
            score="-nll",
        )


def _prompted(lm: LM, folder: Path) -> Tokenizer:
    """The tokenizer with the prompt that the stage began with, on another day too."""
    if begun := PromptTemplate.load(folder):
        return lm.tokenizer.with_prompt(begun)
    if lm.tokenizer.prompt:
        lm.tokenizer.prompt.save(folder)
    return lm.tokenizer


SFTS = {
    f"{name}-{config.role}": config
    for name, run in PRESETS.items()
    for config in (run.sft_teacher, run.sft_student)
}

if __name__ == "__main__":
    launch(main, SFTS, __doc__)
