"""The settings of an adversarial run, stage by stage."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from experiments.config import (
    ComputeConfig,
    LoraConfig,
    OptimizerConfig,
    Pretrain,
    PromptConfig,
    SourceConfig,
)
from jaxqr.data.cold_start import Unit
from jaxqr.rewards.adversarial import PgenSign

Field = Literal["title", "description", "bullets", "brand", "color", "category"]


@dataclass(frozen=True)
class Data(SourceConfig):
    """The collection, and what of it the classifier has never met."""

    unit: Unit = "category"
    """What is cold as a whole."""
    cold_share: float = 0.25
    """Share of the judged products that are cold."""
    independent_share: float = 0.25
    """Share of the training queries that only the checker learns from."""
    held_out_share: float = 0.1
    """Share of the training queries for each of test and validation, where the data
    have no such split."""
    official_split: bool = True
    """Keep the split that the data have, if any; without it queries are dealt out
    afresh."""
    fully_judged: bool = False
    """Only queries whose whole list of products was judged."""
    fields: tuple[Field, ...] = ("title", "brand", "color")
    """What generator and classifier read of a product, in this order."""


@dataclass(frozen=True)
class Generator:
    """Supervised fine-tuning: product and label in, query out."""

    optimizer: OptimizerConfig
    init: Path | None = None
    """A Hugging Face folder to start from instead of the run's pretrained model."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Its instruction has the slots {label} and {product}; None: a default one."""
    rows_per_query: int | None = None
    """Most rows of each query to train on, drawn at random; with many of them a small
    model learns queries by heart and reads no product. None: all."""
    selections: int = 0
    """Times that some words of each product's text, cold ones' too, join the rows as a
    query of the best label: what a text alone can teach of products that no query
    names."""
    validation_rows: int = 256
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    seed: int = 0


@dataclass(frozen=True)
class QueryClassifier:
    """The classifier that synthetic queries are for; it reads query and product."""

    rows: int | None = None
    """Most real rows to train on; None: all."""
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 1e-3
    patience: int | None = None
    """Epochs without a better validation PR-AUC after which it stops; None: it never
    does. The best epoch is kept either way."""
    init: Path | None = None
    """A Hugging Face folder to start from instead of the run's pretrained model."""
    model: str | None = None
    """A preset of `jaxqr.models` to start from scratch instead."""
    max_tokens: int = 48
    """Most tokens of query and product text together."""
    order: Literal["query-product", "product-query"] = "query-product"
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: every class has the same weight in total."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    seed: int = 0


@dataclass(frozen=True)
class PPO:
    """The generator against the classifier, once per cycle."""

    optimizer: OptimizerConfig
    """`num_steps` minibatches per cycle."""
    alpha: float = 0.9
    """Share of the classifier's loss in the terminal reward; the rest is P_gen's."""
    kl_coef: float = 0.85
    """beta: weight of the KL to the fine-tuned generator, per nat."""
    pgen_sign: PgenSign = "formula"
    """Whether P_gen counts as in the paper's formula or as its prose says."""
    pgen: Literal["per-token", "sum"] = "per-token"
    max_loss: float = 5.0
    """The classifier's loss is clipped here, in nats."""
    rollouts: int = 128
    """Queries per rollout."""
    epochs: int = 2
    """How often each rollout is used."""
    clip: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 0.1
    entropy_coef: float = 0.0
    max_kl: float | None = None
    """A minibatch further than this from the policy that drew is left out."""
    kl_target: float | None = None
    """Nats per query that an adaptive `kl_coef` aims at; None: it stays."""
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    lag: int = 0
    """How many rounds off the policy queries may be: so many are drawn while others are
    scored."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    seed: int = 0


@dataclass(frozen=True)
class Synthesis:
    """The synthetic queries of a cycle."""

    rows: int = 3000
    """Drafts; duplicates, empty ones and real queries are left out."""
    labels: Literal["prior", "uniform"] = "prior"
    """How the labels are drawn: as often as in training, or all alike."""
    products: Literal["cold", "all"] = "cold"
    """What queries are written for."""
    confirmed: bool = False
    """Keep only queries whose label the checker confirms."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    seed: int = 0


@dataclass(frozen=True)
class Adversarial:
    """All stages of a run, in order."""

    data: Data
    pretrain: Pretrain | None
    """The model that generator and classifier start from; None: give both an
    `init`."""
    generator: Generator
    classifier: QueryClassifier
    ppo: PPO
    synthesis: Synthesis = field(default_factory=Synthesis)
    prompted: Path | None = None
    """Folder of an instruct model that writes queries without any training, as a
    baseline."""
    encoder: Path | None = None
    """Folder of a pretrained encoder for BERTScore; None: no BERTScore."""
    cycles: int = 4
    continued: bool = False
    """Each cycle's classifier goes on from the last one's, instead of starting over."""
    accumulate: bool = False
    """Each cycle's classifier learns from the synthetic queries of all cycles so
    far."""
    seeds: tuple[int, ...] = (0,)
    """Each is a run of its own over the same data; tables average over them."""
