"""A language model of the shop's text, for models without pretrained weights.

    python -m experiments.pretrain quickstart-student

Next-token training on the catalogue's titles and the training queries; the same text is
MiniLLM's language-model corpus later. It is mixed with corrupted spans of the text to
be restored, which teaches the model to copy words and to spell them: without them the
rewrites of unseen queries have a ROUGE-L of nearly 0. Stages that start from a
pretrained Hugging Face folder (`--init`) do without all this.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments import runs, training
from experiments.cli import launch
from experiments.config import Pretrain
from experiments.prepare import Prepared
from experiments.presets import PRESETS
from jaxqr import models, sharding
from jaxqr.data.noise import denoising_pairs, selection_pairs
from jaxqr.data.pipeline import pair_batches
from jaxqr.data.tokenize import Tokenizer
from jaxqr.evaluation.pairs import validation
from jaxqr.lm import LM, fresh_model
from jaxqr.train import steps

VALIDATION_PAIRS = 128


def main(run: Path, config: Pretrain) -> None:
    """Trains one language model from scratch."""
    data = Prepared(run)
    held_out = training.sample_pairs(data.pairs["validation"], VALIDATION_PAIRS)
    pretrain(
        run / f"pretrain-{config.role}",
        config,
        data.tokenizer,
        data.corpus,
        data.lengths.corpus,
        evaluate=validation(
            held_out,
            max_source=data.lengths.source,
            max_target=data.lengths.target,
        ),
    )


def pretrain(
    folder: Path,
    config: Pretrain,
    tokenizer: Tokenizer,
    corpus: list[str],
    width: int,
    *,
    evaluate: Callable[[LM, int], dict[str, float]],
) -> None:
    """Trains a language model of a corpus, if the stage's folder is not done.

    Args:
        folder: the stage's.
        config: its settings.
        tokenizer: of the corpus.
        corpus: plain texts.
        width: most tokens of a text.
        evaluate: see `train.fit`.
    """
    with runs.stage(folder, config) as work:
        if not work:
            return
        compute = config.compute
        model = fresh_model(
            config.model, tokenizer, dtype=compute.dtype, remat=compute.remat
        )
        if model.encoder_decoder:  # one task, so no word in front of it
            tokenizer = tokenizer.with_prompt("prefix", "")
        params = models.init(model, jax.random.key(config.seed))
        params = sharding.shard_params(params, sharding.make_mesh(compute.fsdp))
        rng = np.random.default_rng(config.seed)
        pairs = denoising_pairs(corpus, config.denoise, rng)
        pairs += selection_pairs(corpus, config.select, rng)
        rows = tokenizer.plain(corpus, max_target=width) + tokenizer.pairs(
            pairs, max_source=width, max_target=width
        )
        training.train(
            folder,
            LM(model, params, tokenizer),
            steps.sft_step,
            pair_batches(
                rows,
                batch_size=config.optimizer.batch_size,
                seed=config.seed,
                fill=tokenizer.eos,
            ),
            config.optimizer,
            seed=config.seed,
            evaluate=evaluate,
        )


PRETRAIN = {
    f"{name}-{config.role}": config
    for name, run in PRESETS.items()
    for config in (run.pretrain_teacher, run.pretrain_student)
    if config is not None
}

if __name__ == "__main__":
    launch(main, PRETRAIN, __doc__)
