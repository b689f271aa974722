"""MiniELM's Llama setting: Llama-3.1-8B, trained by adapters, teaches Llama-3.2-1B.

    python -m experiments.pipeline paper-llama --prepare.folder PATH/TO/ESCI \
        --sft-teacher.init PATH/TO/Llama-3.1-8B \
        --sft-student.init PATH/TO/Llama-3.2-1B \
        --relevance.init PATH/TO/bert-base-uncased

For 8 accelerators; not run yet. The paper leaves Llama's rates open.
"""

from pathlib import Path

from experiments.config import (
    SFT,
    ComputeConfig,
    Distill,
    LoraConfig,
    OnlineDPO,
    OptimizerConfig,
    Prepare,
    Relevance,
    Run,
)

_STUDENT = ComputeConfig("bfloat16", "dots", fsdp=8)

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
        init=Path("Llama-3.1-8B"),
        compute=ComputeConfig("bfloat16", "full", fsdp=8),
        lora=LoraConfig(rank=16, alpha=32.0),
    ),
    None,
    SFT(
        "student",
        OptimizerConfig(5000, 16, 1e-5, evaluate_every=250, checkpoint_every=250),
        init=Path("Llama-3.2-1B"),
        compute=_STUDENT,
    ),
    Distill(
        OptimizerConfig(5000, 64, 5e-6, evaluate_every=250, checkpoint_every=250),
        compute=_STUDENT,
    ),
    OnlineDPO(
        OptimizerConfig(
            1000, 16, 1e-6, "constant", evaluate_every=50, checkpoint_every=50
        ),
        reference="none",
        compute=_STUDENT,
    ),
)
