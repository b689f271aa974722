"""Adversarial runs by name, with every setting that is not a default.

==============  ====================================================================
`shop`          the synthetic shop, models from scratch; 2 CPU cores, about 9 minutes
                (17 on a slower machine, and 11 for each further seed)
`esci-small`    the ESCI extract's fully judged queries; give `--generator.init` and
                `--classifier.init` pretrained folders
`wands`         Wayfair's release
`home-depot`    Home Depot's release
`category`      clicks in and out of a category
`paper`         FLAN-T5-large and FLAN-T5-small on ESCI, with the paper's settings; for
                an accelerator, not run yet
==============  ====================================================================

All but `shop` read a folder: `--data.folder`. `wands`, `home-depot` and `category`
begin with small models from scratch, unless `--generator.init` and `--classifier.init`
name pretrained ones.
"""

from dataclasses import replace
from pathlib import Path

from experiments.adversarial.config import (
    PPO,
    Adversarial,
    Data,
    Generator,
    QueryClassifier,
    Synthesis,
)
from experiments.config import (
    Lengths,
    OptimizerConfig,
    Pretrain,
    PromptConfig,
)

SHOP = Adversarial(
    Data(
        products=12_000,
        types=60,
        intents=2000,
        vocab_size=1024,
        lengths=Lengths(source=32, target=16, corpus=24),
    ),
    Pretrain(
        "student", "t5-tiny", OptimizerConfig(2000, 64, 2e-3), denoise=2, select=4
    ),
    Generator(
        OptimizerConfig(900, 64, 1e-3, evaluate_every=300),
        rows_per_query=4,
        selections=1,
    ),
    QueryClassifier(rows=6000, max_tokens=32),
    PPO(OptimizerConfig(112, 64, 1e-4, "constant")),
    Synthesis(rows=2500),
)

_SCRATCH = Lengths(source=64, target=16, corpus=64)
_RELEASE = replace(
    SHOP,
    pretrain=Pretrain("student", "t5-tiny", OptimizerConfig(4000, 64, 2e-3)),
    generator=Generator(OptimizerConfig(4000, 64, 1e-3, evaluate_every=1000)),
    classifier=QueryClassifier(max_tokens=64),
)
"""Small models from scratch on a release."""

WANDS = replace(_RELEASE, data=Data(source="wands", vocab_size=4096, lengths=_SCRATCH))
HOME_DEPOT = replace(
    _RELEASE,
    # The release has no categories.
    data=Data(source="home-depot", unit="product", vocab_size=4096, lengths=_SCRATCH),
)
CATEGORY = replace(
    _RELEASE,
    data=Data(source="category", unit="product", vocab_size=4096, lengths=_SCRATCH),
)

ESCI_SMALL = Adversarial(
    Data(
        source="esci",
        unit="product",
        official_split=False,  # the official test part has nearly all of these queries
        held_out_share=0.25,
        fully_judged=True,
        lengths=Lengths(source=64, target=16),
    ),
    None,
    Generator(
        OptimizerConfig(60, 8, 1e-4, evaluate_every=20),
        init=Path("SmolLM2-135M-Instruct"),
        prompt=PromptConfig("completion"),
        rows_per_query=8,
        validation_rows=64,
    ),
    QueryClassifier(
        epochs=3,
        batch_size=32,
        learning_rate=1e-4,
        init=Path("all-MiniLM-L6-v2"),
        max_tokens=64,
    ),
    PPO(OptimizerConfig(16, 8, 1e-5, "constant"), rollouts=32),
    Synthesis(rows=300),
    cycles=1,
)

PAPER = Adversarial(
    Data(source="esci", unit="product", lengths=Lengths(source=256, target=32)),
    None,
    Generator(
        OptimizerConfig(20_000, 64, 5e-5, evaluate_every=1000, checkpoint_every=1000),
        init=Path("flan-t5-large"),
    ),
    QueryClassifier(learning_rate=5e-5, init=Path("flan-t5-small"), max_tokens=256),
    PPO(
        OptimizerConfig(2000, 64, 1e-6, "constant", checkpoint_every=500),
        alpha=0.9,
        kl_coef=0.85,
        epochs=2,
        clip=0.2,
    ),
    Synthesis(rows=50_000),
    cycles=4,
)

PRESETS = {
    "shop": SHOP,
    "esci-small": ESCI_SMALL,
    "wands": WANDS,
    "home-depot": HOME_DEPOT,
    "category": CATEGORY,
    "paper": PAPER,
}
