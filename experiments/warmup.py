"""A language model of the shop's text, for models without pretrained weights.

    python -m experiments.warmup quickstart-student

Next-token training on the catalogue's titles and the training queries; the same text is
MiniLLM's language-model corpus later. Between plain texts stand corrupted ones to be
restored, which teaches the model to copy words and to spell them. Stages that start
from a pretrained Hugging Face folder (`--init`) do without all this.

Seen on 2 CPU cores: quickstart 58 s (teacher) and 27 s (student), after which the
student's rewrites of unseen queries have ROUGE-L 21, by copying; 0.2 without the
corrupted texts.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from experiments import prepare, training
from experiments.layout import launch, stage
from experiments.training import Optimisation
from jaxqr import models
from jaxqr.data.noise import denoising_pairs
from jaxqr.data.pipeline import pair_batches
from jaxqr.train import steps
from jaxqr.train.rollout import Sampling


@dataclass(frozen=True)
class Config:
    """Warm-up of one model."""

    role: Literal["teacher", "student"]
    model: str
    """A preset of `jaxqr.models`."""
    optimisation: Optimisation
    run: Path = Path("runs/quickstart")
    max_tokens: int = 24
    denoise: int = 4
    """Corrupted spans to restore per plain text."""
    seed: int = 0


_QUICK = Config("teacher", "gpt2-3x192", Optimisation(300, 32, 1e-3), max_tokens=16)
_ESCI = Config(
    "teacher",
    "gpt2-mini",
    Optimisation(3000, 32, 1e-3, evaluate_every=1000, checkpoint_every=500),
    run=Path("runs/esci-small"),
    max_tokens=16,
    denoise=8,
)

PRESETS = {
    "quickstart-teacher": _QUICK,
    "quickstart-student": Config(
        "student", "gpt2-tiny", Optimisation(300, 32, 2e-3), max_tokens=16
    ),
    "esci-small-teacher": _ESCI,
    "esci-small-student": replace(
        _ESCI,
        role="student",
        model="gpt2-tiny",
        optimisation=replace(_ESCI.optimisation, learning_rate=2e-3),
    ),
}


def main(config: Config) -> None:
    """Trains one language model from scratch."""
    data = prepare.load(config.run)
    folder = config.run / f"warmup-{config.role}"
    with stage(folder, config) as work:
        if not work:
            return
        model = training.fresh_model(
            config.model, data.tokenizer, **config.optimisation.computation()
        )
        tokenizer = data.tokenizer
        if model.encoder_decoder:  # one task, so no word in front of it
            tokenizer = tokenizer.with_prompt("prefix", "")
        texts = prepare.corpus(data.collection)
        rows = tokenizer.plain(texts, max_target=config.max_tokens) + tokenizer.pairs(
            denoising_pairs(texts, config.denoise, np.random.default_rng(config.seed)),
            max_source=config.max_tokens,
            max_target=config.max_tokens,
        )
        training.train(
            folder,
            steps.sft_step,
            model,
            models.init(model, jax.random.key(config.seed)),
            tokenizer,
            pair_batches(
                rows,
                batch_size=config.optimisation.batch_size,
                seed=config.seed,
                fill=tokenizer.eos,
            ),
            config.optimisation,
            evaluate=training.validation(
                model,
                tokenizer,
                training.sample_pairs(data.pairs["validation"], 128),
                Sampling(config.max_tokens, config.max_tokens),
            ),
            seed=config.seed,
        )


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)
