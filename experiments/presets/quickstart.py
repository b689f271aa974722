"""The synthetic shop; a 1.6 M-parameter teacher, a 0.6 M-parameter student.

    python -m experiments.quickstart

Two CPU cores, about ten minutes. Online DPO lifts the reward and all its parts.
"""

from experiments.config import (
    SFT,
    Distill,
    Lengths,
    OnlineDPO,
    OptimizerConfig,
    Prepare,
    Pretrain,
    Relevance,
    Run,
    SystemConfig,
)

RUN = Run(
    Prepare(
        products=6000,
        types=12,
        intents=1000,
        vocab_size=1024,
        lengths=Lengths(source=16, target=16, corpus=16),
    ),
    Relevance(OptimizerConfig(2200, 64, 1e-3, evaluate_every=1100), max_tokens=32),
    Pretrain("teacher", "gpt2-3x192", OptimizerConfig(300, 32, 1e-3)),
    SFT("teacher", OptimizerConfig(1000, 32, 1e-3, evaluate_every=250)),
    Pretrain("student", "gpt2-tiny", OptimizerConfig(300, 32, 2e-3)),
    SFT("student", OptimizerConfig(600, 32, 1e-3, evaluate_every=150)),
    Distill(
        OptimizerConfig(480, 32, 6e-4, evaluate_every=120),
        # Small models that begin with a little of the corpus soon forget the queries.
        corpus_weight=0.1,
        validation_pairs=1000,
    ),
    OnlineDPO(
        OptimizerConfig(
            150, 16, 1e-4, "constant", evaluate_every=25, checkpoint_every=50
        ),
        beta=0.3,
        candidates=4,
        evaluation_queries=100,
        system=SystemConfig(k=10),
    ),
)
