"""The settings of every stage; what several stages share is defined once, at the top.

A run is a `Run`, one of the files in `experiments/presets`. Every stage's folder keeps
its settings in `config.json`; other stages read them from there (`runs.read`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Fixed, arg

Role = Literal["teacher", "student"]
Model = Literal["gpt2-tiny", "llama-tiny", "t5-tiny"]

# Shared by several stages


@dataclass(frozen=True)
class Lengths:
    """Most tokens of each kind of text, in all stages of a run."""

    source: int = 32
    """A prompt: the query and the texts around it."""
    target: int = 24
    """A rewrite, end of text included."""
    corpus: int = 128
    """A plain text: pretraining, and MiniLLM's corpus."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How long, in which batches and how fast a stage trains (AdamW)."""

    num_steps: int
    batch_size: int
    learning_rate: float
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    """Share of the steps over which the rate rises from 0."""
    weight_decay: float = 0.01
    evaluate_every: int = 0
    """Steps; each evaluation comes after a checkpoint. 0: before and after only."""
    checkpoint_every: int = 0
    """Further checkpoints."""


@dataclass(frozen=True)
class ComputeConfig:
    """How a model computes, and on how many devices it is."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters and softmax are float32."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass computes again to save memory: nothing, each block, or
    all of it but its matrix products."""
    fsdp: int = 1
    """Devices that share one copy of the parameters; the rest split the batch."""


@dataclass(frozen=True)
class LoraConfig:
    """Adapters, trained instead of the model and merged into it when a stage ends."""

    rank: int = 0
    """0: no adapters, the whole model is trained."""
    alpha: float = 16.0
    """Adapters are scaled by `alpha / rank`."""


@dataclass(frozen=True)
class PromptConfig:
    """How a query is put to a model that another project trained."""

    kind: Literal["completion", "chat", "prefix"] | None = None
    """None: what the folder's `prompt.json` says; without one `prefix` for an
    encoder-decoder, `chat` for a tokenizer with a chat template, else `completion`."""
    instruction: str | None = None
    """The chat's text above the query, or the prefix; None: a default of the kind."""


@dataclass(frozen=True)
class Weights:
    """Weights of the reward's parts."""

    relevance: float = 1.0
    diversity: float = 1.0
    click: float = 1.0
    add_to_cart: float = 1.0
    purchase: float = 1.0


@dataclass(frozen=True)
class ElasticConfig:
    """An Elasticsearch server.

    Credentials come from the environment: JAXQR_ES_API_KEY, or JAXQR_ES_USER and
    JAXQR_ES_PASSWORD.
    """

    url: str | None = None
    """Such as http://localhost:9200."""
    cloud_id: str | None = None
    """An Elastic Cloud deployment, instead of a URL."""
    ca_certs: Path | None = None
    """Certificates to trust, for https."""
    index: str | None = None
    """None: jaxqr- and the run's name."""
    fields: tuple[str, ...] = ("text",)
    """What is searched, with boosts as in title^2: `text`, or a product's own fields;
    of an existing index, any."""
    match_type: Literal["best_fields", "most_fields", "cross_fields"] = "best_fields"
    """How the scores of several fields become one."""
    id_field: str = "id"
    """The keyword field with the product ids."""
    existing: bool = False
    """Search the index as it is, instead of indexing the catalogue."""
    timeout: float = 10.0
    """Seconds of one request."""
    retries: int = 4
    """How often a request that failed for now is sent again."""


@dataclass(frozen=True)
class LLMConfig:
    """A language model on a server that speaks OpenAI's protocol.

    Its key comes from the environment variable JAXQR_LLM_API_KEY.
    """

    url: str | None = None
    """Such as http://localhost:8000/v1."""
    model: str | None = None
    """Its name on the server."""
    cache: Path | None = None
    """File of its answers; None: `llm.sqlite` in the run's folder."""
    budget: int | None = None
    """Tokens, read and written, after which nothing is asked any more."""
    both_orders: bool = False
    """Show every list in two orders, and average."""
    concurrency: int = 8
    """Requests at a time."""
    timeout: float = 20.0
    """Seconds of one request."""
    retries: int = 4
    """How often a request that failed for now is sent again."""


@dataclass(frozen=True)
class LogsConfig:
    """Logs of shoppers, as User Behavior Insights (`jaxqr/data/ubi.py`)."""

    folder: Path | None = None
    """With `ubi_queries` and `ubi_events`; None: `logs` in the run's folder."""
    weight: float = 1.0
    """Of the logs; the rest is that of simulated shoppers, who answer alone for lists
    that the logs do not know. 1: the logs alone."""
    min_impressions: float = 10.0
    """Debiased impressions below which a product is not known for a query."""
    min_coverage: float = 0.5
    """Share of a list's views that its known products must have."""
    strength: float = 10.0
    """Impressions of the average product that each begins with."""


@dataclass(frozen=True)
class ServiceConfig:
    """Reward servers (`experiments.reward_server`) to ask instead of searching here.

    Their token comes from the environment variable JAXQR_TOKEN.
    """

    urls: tuple[str, ...] = ()
    """Such as http://localhost:8765; none: search and judge in this process."""
    batch_size: int = 64
    """Rows of one request."""
    timeout: float = 60.0
    """Seconds of one request."""
    retries: int = 4
    """How often a request that failed for now is sent again."""


@dataclass(frozen=True)
class SystemConfig:
    """The search engine, M1 and the shoppers that score rewrites."""

    engine: Literal["embedded", "elastic"] = "embedded"
    """`embedded`: BM25 inside the process, with Elasticsearch's defaults; `elastic`: an
    Elasticsearch server."""
    elastic: Annotated[ElasticConfig, arg(name="engine")] = field(
        default_factory=ElasticConfig
    )
    text: Literal["title", "title-brand-color"] = "title-brand-color"
    """What is searched of a product."""
    judge: Literal["simulated", "llm", "local", "logged"] = "simulated"
    """Who clicks: `simulated` shoppers, a language model that plays them, on a server
    (`llm`) or in this process (`local`), or real shoppers, as they are `logged`."""
    logs: LogsConfig = field(default_factory=LogsConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    local: Path | None = None
    """Hugging Face folder of the instruct model that is the `local` judge."""
    anchors: int = 30
    """Fixed lists that tell whether a language model that judges still answers as when
    the run began, and whether the query's words in a title win it over; 0: none."""
    service: ServiceConfig = field(default_factory=ServiceConfig)
    relevance: Path | None = None
    """A finished `relevance` folder of another run, as M1; None: this run's."""
    list: Literal["rewrite", "served"] = "rewrite"
    """Which list is scored: that of the rewrite alone, as in MiniELM; or the one that
    is served, of the query and, with less weight, the rewrite's terms."""
    served_weight: float = 0.5
    """Of the rewrite's terms in what is served; a term of the query weighs 1."""
    k: int = 20
    """Products of each list that are judged."""
    weights: Weights = field(default_factory=Weights)
    shoppers: int = 100
    """Simulated shoppers of each pool."""
    pool_seed: int = 0
    """The shoppers that training pleases."""
    guard_seed: int = 1
    """The shoppers that only the evaluation asks."""
    timeout: float = 120.0
    """Seconds after which the scores of a batch are given up."""
    retries: int = 2
    """How often a batch is scored again whose scoring failed."""


@dataclass(frozen=True)
class SourceConfig:
    """Where a run's data comes from, and how its texts become tokens."""

    source: Literal["shop", "esci", "wands", "home-depot", "category", "tables"] = (
        "shop"
    )
    """The synthetic shop, a release (of ESCI, an extract will do), clicks in and out
    of a category, or your own tables."""
    folder: Path | None = None
    """Folder of the release's files, or of your tables."""
    products: int = 6000
    """Size of the synthetic shop's catalogue."""
    types: int | None = None
    """Types of product in it; None lets the size decide."""
    intents: int = 800
    """What the synthetic shop's shoppers may want."""
    vocab_size: int = 2048
    """Vocabulary of the tokenizer that is trained."""
    tokenizer: Path | None = None
    """A Hugging Face tokenizer folder to use instead."""
    lengths: Lengths = field(default_factory=Lengths)
    seed: int = 0


# The stages, in the order of a run


@dataclass(frozen=True)
class Folds:
    """Cross-validation over the fully judged queries (`experiments.cross_validate`).

    No language model is trained on them before the online stage. One fold is tested,
    one is for validation, and the others are for M1 to learn from.
    """

    count: int = 0
    """0: none; fully judged queries are split like all others."""
    test: int = 0
    validation: int = 1


@dataclass(frozen=True)
class Prepare(SourceConfig):
    """Where the data comes from and how pairs are mined from it."""

    k: int = 2
    """Products that two queries must share to be a pair."""
    labels: tuple[str, ...] | None = None
    """Labels under which a product counts as shared; None: the collection's own."""
    max_degree: int = 100
    """Products relevant to more queries than this make no pairs."""
    titles: int = 0
    """Titles of relevant products, most of each training query, to train on as well."""
    named: int = 0
    """Times that some words of each title are a query, to be answered by the title."""
    verify: bool = False
    """Keep pairs only that a language model (`llm`) calls equivalent."""
    llm: LLMConfig = field(default_factory=LLMConfig)
    official_split: bool = True
    """Keep official test queries, and what they are paired with, out of training.
    Without it the pairs are dealt out afresh, by connected component all the same."""
    folds: Folds = field(default_factory=Folds)


@dataclass(frozen=True)
class Relevance:
    """Fine-tuning of M1."""

    optimizer: OptimizerConfig
    init: Path | None = None
    """A Hugging Face folder, of an encoder or any language model, instead of `model`
    from scratch."""
    model: str = "bert-tiny"
    """A preset of `jaxqr.models`, of any family."""
    negatives: float = 0.5
    """Random products per judged row, labelled with the lowest gain."""
    max_tokens: int = 48
    """Most tokens of query and product text together."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    seed: int = 0


@dataclass(frozen=True)
class Pretrain:
    """A language model of the shop's text, from scratch."""

    role: Fixed[Role]
    model: str
    """A preset of `jaxqr.models`."""
    optimizer: OptimizerConfig
    denoise: int = 4
    """Corrupted spans to restore per plain text."""
    select: int = 0
    """Times that some words of each plain text are to be chosen."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    seed: int = 0


@dataclass(frozen=True)
class Visits:
    """Logs that simulated shoppers leave in the synthetic shop."""

    n: int = 60_000
    """Visits: a shopper, a query, and the list that the search engine shows."""
    k: int = 40
    """Length of the lists."""
    shuffled: float = 0.2
    """Share of lists in a random order, which tells position from merit."""
    shoppers: int = 1000
    seed: int = 7


@dataclass(frozen=True)
class SFT:
    """Supervised fine-tuning of one model on query pairs."""

    role: Fixed[Role]
    optimizer: OptimizerConfig
    init: Path | None = None
    """A Hugging Face folder to start from instead of the run's pretrained model."""
    layers: int | None = None
    """Keep so many of its layers, evenly spaced; None: all."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    validation_pairs: int = 256
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    seed: int = 0


Method = Literal[
    "minillm-paper", "minillm-lmops", "forward_kl", "reverse_kl", "jsd", "on-policy"
]


@dataclass(frozen=True)
class Distill:
    """Distillation of the run's SFT teacher into its SFT student."""

    optimizer: OptimizerConfig
    name: str = "distill"
    """The stage's folder; the online stage starts from `distill`."""
    method: Method = "minillm-lmops"
    alpha: float = 0.2
    """The teacher's share in MiniLLM's sampling mixture."""
    rollouts: int = 256
    """MiniLLM's rollouts per collection."""
    inner_epochs: int = 4
    """How often MiniLLM uses each rollout."""
    corpus_weight: float = 1.0
    """Weight of MiniLLM's language-model loss."""
    validation_pairs: int = 256
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    seed: int = 0


@dataclass(frozen=True)
class OnlineDPO:
    """Online DPO, or another online method, from a stage of the run."""

    optimizer: OptimizerConfig
    name: str = "online"
    """The stage's folder."""
    start: str = "distill"
    """The stage whose model is the first policy, and the frozen reference."""
    method: Literal["dpo", "grpo", "rloo"] = "dpo"
    """`dpo` prefers the best of a query's candidates to the worst; `grpo` and `rloo`
    are policy gradients, of each candidate against the query's others."""
    reference: Literal["none", "frozen"] = "frozen"
    """DPO's: `none` is MiniELM's eq. 2; `frozen` stays near the start."""
    beta: float = 0.1
    """DPO's."""
    kl_coef: float = 0.01
    """Of policy gradients: weight of the KL to the start, per nat, in the reward."""
    candidates: int = 2
    temperature: float = 1.0
    top_p: float = 1.0
    lag: int = 1
    """How many updates off the policy candidates may be: so many batches are drawn
    while others are scored. 0: each update waits for its scores."""
    evaluation_queries: int = 200
    """Most validation queries of the curve."""
    system: SystemConfig = field(default_factory=SystemConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    seed: int = 0


@dataclass(frozen=True)
class RewardServer:
    """The reward of a run as a service."""

    host: str = "127.0.0.1"
    """Others than this machine's own need a token."""
    port: int = 8765
    """0: any that is free."""
    workers: int = 1
    """Requests that are scored at a time."""
    queue: int = 16
    """Requests that wait; further ones are turned away."""
    max_body: int = 8 << 20
    """Bytes of a request."""
    system: SystemConfig = field(default_factory=SystemConfig)


@dataclass(frozen=True)
class Evaluate:
    """Evaluation of a run's finished stages on test queries."""

    pairs: int = 10_000
    """Most test pairs in the offline table."""
    queries: int = 500
    """Most test queries in the online table."""
    online: str = "online"
    """The online stage that is evaluated."""
    rewrites: int = 10
    """Beams of each query that may have a part in what is served."""
    harm: float = 0.1
    """Share of queries that may be served worse than alone."""
    gate_queries: int = 300
    """Most validation queries that the gate is fitted on."""
    encoder: Path | None = None
    """Hugging Face folder of a sentence encoder, such as all-MiniLM-L6-v2, that tells
    which of a query's first products to take words of; None: M1 does."""
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """All stages of a run, in order."""

    prepare: Prepare
    relevance: Relevance
    pretrain_teacher: Pretrain | None
    """None: the models are pretrained already."""
    sft_teacher: SFT
    pretrain_student: Pretrain | None
    sft_student: SFT
    distill: Distill
    online: OnlineDPO
    visits: Visits | None = None
    """None: nobody leaves logs."""
    evaluate: Evaluate = field(default_factory=Evaluate)
