"""An extract of ESCI with pretrained models: SmolLM2-135M teaches 10 of its own layers.

    python -m experiments.pipeline esci-smollm2 --prepare.folder PATH/TO/ESCI \
        --prepare.tokenizer PATH/TO/SmolLM2 --sft-teacher.init PATH/TO/SmolLM2 \
        --sft-student.init PATH/TO/SmolLM2 --relevance.init PATH/TO/all-MiniLM-L6-v2

Two CPU cores, 90 minutes by an estimate. Fully judged queries make no pairs, so
that `experiments.cross_validate` can measure all of them.
"""

from pathlib import Path

from experiments.config import (
    SFT,
    Distill,
    Folds,
    Lengths,
    OnlineDPO,
    OptimizerConfig,
    Prepare,
    PromptConfig,
    Relevance,
    Run,
    SystemConfig,
)

_MODEL = Path("SmolLM2-135M")
_PROMPT = PromptConfig("completion")

RUN = Run(
    Prepare(
        source="esci",
        official_split=False,
        k=1,
        titles=3,
        named=1,
        folds=Folds(5),
        tokenizer=_MODEL,
        lengths=Lengths(corpus=16),
    ),
    Relevance(
        OptimizerConfig(300, 32, 1e-4, evaluate_every=100, checkpoint_every=100),
        init=Path("all-MiniLM-L6-v2"),
        max_tokens=64,
    ),
    None,
    SFT(
        "teacher",
        OptimizerConfig(240, 16, 1e-4, evaluate_every=120, checkpoint_every=120),
        init=_MODEL,
        prompt=_PROMPT,
    ),
    None,
    SFT(
        "student",
        OptimizerConfig(400, 16, 3e-4, evaluate_every=200, checkpoint_every=100),
        init=_MODEL,
        layers=10,
        prompt=_PROMPT,
        validation_pairs=128,
    ),
    Distill(
        OptimizerConfig(100, 16, 1e-4, evaluate_every=50, checkpoint_every=50),
        rollouts=64,
        validation_pairs=64,
        corpus_weight=0.1,
    ),
    OnlineDPO(
        OptimizerConfig(
            100, 8, 1e-5, "constant", evaluate_every=50, checkpoint_every=50
        ),
        beta=0.3,
        candidates=2,
        evaluation_queries=64,
        system=SystemConfig(k=10),
    ),
)
