"""The families of models: how each maps to Hugging Face's names, as data.

A new family is its module, a table of tensors and a row of `FAMILIES`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn

from jaxqr.models.bert import Bert, BertConfig
from jaxqr.models.gpt2 import GPT2, GPT2Config

Shape = tuple[int, ...]


class Tensor(NamedTuple):
    """One parameter of ours and one tensor of theirs; `{i}` is the layer."""

    ours: str
    theirs: str
    transpose: bool = False

    def shape(self, shape: Shape) -> Shape:
        """Turn our shape into theirs, or theirs into ours."""
        return shape[::-1] if self.transpose else shape


def _linear(ours: str, theirs: str, *, transpose: bool = True) -> Iterator[Tensor]:
    yield Tensor(f"{ours}/kernel", f"{theirs}.weight", transpose)
    yield Tensor(f"{ours}/bias", f"{theirs}.bias")


def _norm(ours: str, theirs: str) -> Iterator[Tensor]:
    yield Tensor(f"{ours}/scale", f"{theirs}.weight")
    yield Tensor(f"{ours}/bias", f"{theirs}.bias")


_conv1d = partial(_linear, transpose=False)  # GPT-2 stores its kernels as [in, out]

GPT2_TENSORS = (
    Tensor("wte/embedding", "wte.weight"),
    Tensor("wpe/embedding", "wpe.weight"),
    *_norm("h_{i}/ln_1", "h.{i}.ln_1"),
    *_conv1d("h_{i}/c_attn", "h.{i}.attn.c_attn"),
    *_conv1d("h_{i}/attn_proj", "h.{i}.attn.c_proj"),
    *_norm("h_{i}/ln_2", "h.{i}.ln_2"),
    *_conv1d("h_{i}/c_fc", "h.{i}.mlp.c_fc"),
    *_conv1d("h_{i}/mlp_proj", "h.{i}.mlp.c_proj"),
    *_norm("ln_f", "ln_f"),
)

BERT_TENSORS = (
    Tensor("word/embedding", "embeddings.word_embeddings.weight"),
    Tensor("position/embedding", "embeddings.position_embeddings.weight"),
    Tensor("segment/embedding", "embeddings.token_type_embeddings.weight"),
    *_norm("norm", "embeddings.LayerNorm"),
    *_linear("layer_{i}/query", "encoder.layer.{i}.attention.self.query"),
    *_linear("layer_{i}/key", "encoder.layer.{i}.attention.self.key"),
    *_linear("layer_{i}/value", "encoder.layer.{i}.attention.self.value"),
    *_linear("layer_{i}/attn_proj", "encoder.layer.{i}.attention.output.dense"),
    *_norm("layer_{i}/attn_norm", "encoder.layer.{i}.attention.output.LayerNorm"),
    *_linear("layer_{i}/mlp_fc", "encoder.layer.{i}.intermediate.dense"),
    *_linear("layer_{i}/mlp_proj", "encoder.layer.{i}.output.dense"),
    *_norm("layer_{i}/mlp_norm", "encoder.layer.{i}.output.LayerNorm"),
    *_linear("pooler", "pooler.dense"),
    *_linear("classifier", "classifier"),
)


class Family(NamedTuple):
    """How one `model_type` maps to a config, a module and its parameters."""

    config: type
    """A dataclass whose fields have the names of config.json."""

    module: Callable[..., nn.Module]
    """Called with a config."""

    tensors: tuple[Tensor, ...]
    """Every parameter; those that a config does not call for are passed over."""

    architecture: Callable[[Any], tuple[str, str]]
    """The transformers class to write for, and its prefix of tensor names."""

    prefix: str
    """What a model with a head puts before the names of the model inside it."""

    heads: tuple[str, ...]
    """Beginnings of tensor names that never have the prefix."""

    fresh: tuple[str, ...]
    """Beginnings of tensor names that may be missing, and drawn from a key."""

    ties: Callable[[Any], Mapping[str, str]]
    """Of a config: tensors that may be stored as well, and must then equal another."""

    ignored: str
    """A pattern of stored tensors that hold no parameter of ours."""

    fixed: Mapping[str, tuple[Any, ...]]
    """Settings of config.json that the module has built in; the first is written."""

    read: Callable[[Mapping[str, Any], Mapping[str, Shape]], dict[str, Any]]
    """Config fields that config.json has under no name of their own: they follow from
    its settings and from the shapes of the stored tensors."""

    written: Callable[[Any], dict[str, Any]]
    """Settings of config.json that are no field of the config."""


def _gpt2_architecture(config: GPT2Config) -> tuple[str, str]:
    return "GPT2LMHeadModel", "transformer."


def _bert_architecture(config: BertConfig) -> tuple[str, str]:
    if config.num_labels:
        return "BertForSequenceClassification", "bert."
    return "BertModel", ""


def _bert_read(
    settings: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    del settings
    return {
        "add_pooler": "pooler.dense.weight" in shapes,
        "num_labels": shapes.get("classifier.weight", (0,))[0],
    }


def _bert_written(config: BertConfig) -> dict[str, Any]:
    """The entries from which transformers counts its classes."""
    if not config.num_labels:
        return {}
    names = [f"LABEL_{i}" for i in range(config.num_labels)]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


FAMILIES = {
    "gpt2": Family(
        config=GPT2Config,
        module=GPT2,
        tensors=GPT2_TENSORS,
        architecture=_gpt2_architecture,
        prefix="transformer.",
        heads=(),
        fresh=(),
        ties=lambda config: {"lm_head.weight": "wte.weight"},
        ignored=r"h\.\d+\.attn\.(masked_)?bias",
        fixed={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
            "tie_word_embeddings": (True,),
        },
        read=lambda settings, shapes: {},
        written=lambda config: {},
    ),
    "bert": Family(
        config=BertConfig,
        module=Bert,
        tensors=BERT_TENSORS,
        architecture=_bert_architecture,
        prefix="bert.",
        heads=("classifier.",),
        fresh=("pooler.", "classifier."),
        ties=lambda config: {},
        ignored=r"embeddings\.position_ids|cls\..*",  # cls: the heads of pretraining
        fixed={
            "hidden_act": ("gelu",),
            "position_embedding_type": ("absolute",),
            "is_decoder": (False,),
        },
        read=_bert_read,
        written=_bert_written,
    ),
}


def family_of(config: Any) -> tuple[str, Family]:
    """Return the `model_type` and the family of a config.

    Raises:
        ValueError: if it is not a config of ours.
    """
    for model_type, family in FAMILIES.items():
        if type(config) is family.config:
            return model_type, family
    names = ", ".join(family.config.__name__ for family in FAMILIES.values())
    raise ValueError(
        f"no model for {type(config).__module__}.{type(config).__name__}: "
        f"expected one of jaxqr.models: {names}"
    )
