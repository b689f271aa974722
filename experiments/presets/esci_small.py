"""An extract of ESCI; a 4.3 M-parameter teacher, a 0.9 M-parameter student.

    python -m experiments.pipeline esci-small --prepare.folder PATH/TO/ESCI \
        --relevance.init PATH/TO/all-MiniLM-L6-v2

Two CPU cores, about 40 minutes. From scratch these models do not beat copying the
query.
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

_SFT = OptimizerConfig(200, 16, 1e-4, evaluate_every=50, checkpoint_every=100)

RUN = Run(
    Prepare(
        source="esci",
        # Of the extract's pairs hardly any are free of official test queries.
        official_split=False,
        vocab_size=4096,
        lengths=Lengths(corpus=16),
    ),
    # The extract has too few judgements for an encoder from scratch.
    Relevance(
        OptimizerConfig(300, 32, 1e-4, evaluate_every=100, checkpoint_every=100),
        max_tokens=64,
    ),
    Pretrain(
        "teacher",
        "gpt2-mini",
        OptimizerConfig(3000, 32, 1e-3, evaluate_every=1000, checkpoint_every=500),
        denoise=8,
    ),
    SFT("teacher", _SFT),
    Pretrain(
        "student",
        "gpt2-tiny",
        OptimizerConfig(3000, 32, 2e-3, evaluate_every=1000, checkpoint_every=500),
        denoise=8,
    ),
    SFT("student", _SFT),
    Distill(
        OptimizerConfig(320, 32, 1e-4, evaluate_every=80, checkpoint_every=80),
        corpus_weight=0.1,
    ),
    OnlineDPO(
        OptimizerConfig(
            200, 16, 1e-4, "constant", evaluate_every=25, checkpoint_every=25
        ),
        beta=0.3,
        candidates=4,
        system=SystemConfig(k=10),
    ),
)
