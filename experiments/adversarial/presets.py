"""Adversarial runs by name, with every setting that is not a default."""

from experiments.adversarial.config import (
    PPO,
    Adversarial,
    Data,
    Generator,
    QueryClassifier,
    Synthesis,
)
from experiments.config import Lengths, OptimizerConfig, Pretrain

SHOP = Adversarial(
    Data(
        products=3000,
        types=24,
        intents=300,
        vocab_size=1024,
        lengths=Lengths(source=32, target=16, corpus=24),
    ),
    Pretrain("student", "t5-tiny", OptimizerConfig(1000, 64, 2e-3)),
    Generator(OptimizerConfig(1500, 64, 1e-3, evaluate_every=300)),
    QueryClassifier(max_tokens=32),
    PPO(OptimizerConfig(160, 64, 1e-4, "constant")),
    Synthesis(rows=3000),
)

PRESETS = {"shop": SHOP}
