"""The fine-tuned teacher teaches the fine-tuned student.

    python -m experiments.distill quickstart
    python -m experiments.distill quickstart --method forward_kl --name distill-kd

MiniLLM in its two modes (`minillm-paper`, `minillm-lmops`), and its baselines:
token-level KD on the data (`forward_kl`, `reverse_kl`, `jsd`) and on the student's own
samples (`on-policy`, reverse KL). Keeps the parameters of the best validation ROUGE-L
of samples at temperature 1, as MiniLLM's authors do.
"""

from functools import partial
from pathlib import Path
from typing import Any

from experiments import runs, training
from experiments.cli import launch
from experiments.config import Distill
from experiments.prepare import Prepared
from experiments.presets import PRESETS
from jaxqr.data.pipeline import Batches, pair_batches
from jaxqr.decode import Sampling
from jaxqr.evaluation import pairs
from jaxqr.lm import LM
from jaxqr.train import loop, steps
from jaxqr.train.rollouts.draw import OnPolicyPairs, Samples
from jaxqr.train.rollouts.minibatches import Minibatches
from jaxqr.train.rollouts.mixture import MixtureRollouts, WithCorpus


def main(run: Path, config: Distill) -> None:
    """Distils once."""
    data = Prepared(run)
    folder = run / config.name
    command = "python -m experiments.sft PRESET-{}"
    teachers, students = (
        runs.require(run / f"sft-{role}", command.format(role)) / "model"
        for role in ("teacher", "student")
    )
    with runs.stage(folder, config) as work:
        if not work:
            return
        training.check_same(teachers, students, ("teacher", "student"))
        teacher = training.load_frozen(teachers, config.compute)
        student = training.load_model(
            students, config.compute, config.lora, seed=config.seed
        )
        step, static = _step(config)
        lengths = data.lengths
        training.train(
            folder,
            student,
            step,
            _batches(config, data, student, teacher),
            config.optimizer,
            seed=config.seed,
            evaluate=pairs.validation(
                training.sample_pairs(
                    data.pairs["validation"], config.validation_pairs
                ),
                max_source=lengths.source,
                max_target=lengths.target,
                teacher=teacher,
                samples=pairs.SAMPLES,
            ),
            score="rouge_l_sampled",
            frozen=(teacher.params,),
            teacher=teacher.model,
            **static,
        )


def _step(config: Distill) -> tuple[Any, dict[str, Any]]:
    """The method's step and its static arguments."""
    if config.method.startswith("minillm-"):
        mode = config.method.removeprefix("minillm-")
        settings = steps.MiniLLM.mode(
            mode, alpha=config.alpha, corpus_weight=config.corpus_weight
        )
        return steps.minillm_step, {"settings": settings}
    kind = "reverse_kl" if config.method == "on-policy" else config.method
    return steps.distill_step, {"kind": kind}


def _batches(config: Distill, data: Prepared, student: LM, teacher: LM) -> loop.Batches:
    """Where the method's targets come from."""
    size, tokenizer, lengths = (
        config.optimizer.batch_size,
        student.tokenizer,
        data.lengths,
    )
    sampling = Sampling(lengths.source, lengths.target)
    batches = partial(pair_batches, batch_size=size, fill=tokenizer.eos)
    queries = [query for query, _ in data.pairs["train"]]
    sources = partial(Batches, queries, list, batch_size=size, seed=config.seed)
    if config.method.startswith("minillm-"):
        rollouts = MixtureRollouts(
            student,
            teacher,
            sources(),
            sampling,
            alpha=config.alpha,
            rollouts=config.rollouts,
        )
        corpus = tokenizer.plain(data.corpus, max_target=lengths.corpus)
        return WithCorpus(
            Minibatches(
                rollouts,
                epochs=config.inner_epochs,
                batch_size=size,
                seed=config.seed,
            ),
            batches(corpus, seed=config.seed + 1),
        )
    if config.method == "on-policy":
        return OnPolicyPairs(Samples(student, sources(), sampling))
    rows = tokenizer.pairs(
        data.pairs["train"], max_source=lengths.source, max_target=lengths.target
    )
    return batches(rows, seed=config.seed)


if __name__ == "__main__":
    launch(main, {name: run.distill for name, run in PRESETS.items()}, __doc__)
