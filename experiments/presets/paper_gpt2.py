"""MiniELM's GPT-2 setting: GPT2-large teaches GPT2, from local Hugging Face folders.

    python -m experiments.pipeline paper-gpt2 --prepare.folder PATH/TO/ESCI \
        --sft-teacher.init PATH/TO/gpt2-large --sft-student.init PATH/TO/gpt2 \
        --relevance.init PATH/TO/bert-base-uncased

For one accelerator; not run yet. Rates are MiniLLM's.
"""

from pathlib import Path

from experiments.config import (
    SFT,
    Distill,
    OnlineDPO,
    OptimizerConfig,
    Prepare,
    Relevance,
    Run,
)

RUN = Run(
    Prepare(source="esci"),
    Relevance(
        OptimizerConfig(10_000, 64, 5e-5, evaluate_every=1000, checkpoint_every=1000),
        init=Path("bert-base-uncased"),
        max_tokens=96,
    ),
    None,
    SFT(
        "teacher",
        OptimizerConfig(5000, 16, 1e-4, evaluate_every=250, checkpoint_every=250),
        init=Path("gpt2-large"),
    ),
    None,
    SFT(
        "student",
        OptimizerConfig(5000, 16, 5e-4, evaluate_every=250, checkpoint_every=250),
        init=Path("gpt2"),
    ),
    Distill(OptimizerConfig(5000, 64, 5e-6, evaluate_every=250, checkpoint_every=250)),
    OnlineDPO(
        OptimizerConfig(
            1000, 16, 1e-6, "constant", evaluate_every=50, checkpoint_every=50
        ),
        reference="none",
    ),
)
