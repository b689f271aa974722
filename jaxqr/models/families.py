"""The families of models: how each maps to Hugging Face's names, as data.

A new family is its module, a table of tensors and a row of `FAMILIES`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn

from jaxqr.models.bert import Bert, BertConfig
from jaxqr.models.gpt2 import GPT2, GPT2Config
from jaxqr.models.llama import Llama, LlamaConfig, RopeScaling
from jaxqr.models.t5 import T5, T5Config

Shape = tuple[int, ...]


class TensorMap(NamedTuple):
    """One parameter of ours and one tensor of theirs; `{i}` is the layer."""

    ours: str
    theirs: str
    transpose: bool = False
    vocabulary: bool = False
    """Whether its rows are tokens, of which ours may be rounded up."""

    def stored(self, shape: Shape, vocab_size: int) -> Shape:
        """Their shape, of ours."""
        if self.vocabulary:
            return (vocab_size, *shape[1:])
        return shape[::-1] if self.transpose else shape


def _matrix(ours: str, theirs: str) -> TensorMap:
    return TensorMap(f"{ours}/kernel", f"{theirs}.weight", transpose=True)


def _tokens(ours: str, theirs: str) -> TensorMap:
    return TensorMap(f"{ours}/embedding", f"{theirs}.weight", vocabulary=True)


def _scale(ours: str, theirs: str) -> TensorMap:
    return TensorMap(f"{ours}/scale", f"{theirs}.weight")


def _linear(ours: str, theirs: str, *, transpose: bool = True) -> Iterator[TensorMap]:
    yield TensorMap(f"{ours}/kernel", f"{theirs}.weight", transpose)
    yield TensorMap(f"{ours}/bias", f"{theirs}.bias")


def _norm(ours: str, theirs: str) -> Iterator[TensorMap]:
    yield _scale(ours, theirs)
    yield TensorMap(f"{ours}/bias", f"{theirs}.bias")


_conv1d = partial(_linear, transpose=False)  # GPT-2 stores its kernels as [in, out]

GPT2_TENSORS = (
    _tokens("wte", "wte"),
    TensorMap("wpe/embedding", "wpe.weight"),
    *_norm("h_{i}/ln_1", "h.{i}.ln_1"),
    *_conv1d("h_{i}/c_attn", "h.{i}.attn.c_attn"),
    *_conv1d("h_{i}/attn_proj", "h.{i}.attn.c_proj"),
    *_norm("h_{i}/ln_2", "h.{i}.ln_2"),
    *_conv1d("h_{i}/c_fc", "h.{i}.mlp.c_fc"),
    *_conv1d("h_{i}/mlp_proj", "h.{i}.mlp.c_proj"),
    *_norm("ln_f", "ln_f"),
    _matrix("score", "score"),
)

LLAMA_TENSORS = (
    _tokens("embed", "embed_tokens"),
    _scale("layer_{i}/attn_norm", "layers.{i}.input_layernorm"),
    *(
        _matrix(f"layer_{{i}}/{name}", f"layers.{{i}}.self_attn.{name}")
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    ),
    _scale("layer_{i}/mlp_norm", "layers.{i}.post_attention_layernorm"),
    *(
        _matrix(f"layer_{{i}}/{name}", f"layers.{{i}}.mlp.{name}")
        for name in ("gate_proj", "up_proj", "down_proj")
    ),
    _scale("norm", "norm"),
    _tokens("lm_head", "lm_head"),
    _matrix("score", "score"),
)


def _t5_stack(
    name: str, *parts: tuple[str, str, tuple[str, ...]]
) -> Iterator[TensorMap]:
    """One stack, of the parts of its layers: our name, theirs, and the linear maps."""
    first = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias"
    yield TensorMap(f"{name}_bias/embedding", f"{first}.weight")
    for place, (ours, theirs, maps) in enumerate(parts):
        layer = f"{name}.block.{{i}}.layer.{place}"
        yield _scale(f"{name}_{{i}}/{ours}_norm", f"{layer}.layer_norm")
        for map_ in maps:
            yield _matrix(f"{name}_{{i}}/{ours}/{map_}", f"{layer}.{theirs}.{map_}")
    yield _scale(f"{name}_norm", f"{name}.final_layer_norm")


_QKVO = ("q", "k", "v", "o")
_SELF = ("attn", "SelfAttention", _QKVO)
_CROSS = ("cross", "EncDecAttention", _QKVO)
_MLP = ("mlp", "DenseReluDense", ("wi", "wi_0", "wi_1", "wo"))

_T5_SHARED = tuple(
    f"{name}.weight"
    for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
)
"""Names of the embedding that the encoder and the decoder read with."""

T5_TENSORS = (
    _tokens("shared", "shared"),
    *_t5_stack("encoder", _SELF, _MLP),
    *_t5_stack("decoder", _SELF, _CROSS, _MLP),
    _tokens("lm_head", "lm_head"),
    *_linear("classifier", "classifier"),
)

BERT_TENSORS = (
    TensorMap("word/embedding", "embeddings.word_embeddings.weight"),
    TensorMap("position/embedding", "embeddings.position_embeddings.weight"),
    TensorMap("segment/embedding", "embeddings.token_type_embeddings.weight"),
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

    tensors: tuple[TensorMap, ...]
    """Every parameter; those that a config does not call for are passed over."""

    architecture: Callable[[Any], tuple[str, str]]
    """The transformers class to write for, and its prefix of tensor names."""

    prefix: str
    """What a model with a head puts before the names of the model inside it."""

    heads: tuple[str, ...]
    """Beginnings of tensor names that never have the prefix."""

    classifier: str
    """The beginning of the names of its classification head's tensors."""

    fresh: tuple[str, ...]
    """Beginnings of tensor names that may be missing, and drawn from a key."""

    parts: tuple[str, ...]
    """Beginnings of tensor names that not every config calls for."""

    ties: Callable[[Any], Mapping[str, str]]
    """Of a config: other names that a tensor may be stored under, alone or as well."""

    ignored: str
    """A pattern of stored tensors that hold no parameter of ours."""

    fixed: Mapping[str, tuple[Any, ...]]
    """Settings of config.json that the module has built in; the first is written."""

    derived: tuple[str, ...]
    """Config fields that config.json has under no name of their own, or in another
    form."""

    read: Callable[[Mapping[str, Any], Mapping[str, Shape]], dict[str, Any]]
    """The derived fields, from the settings of config.json and the shapes of the stored
    tensors."""

    written: Callable[[Any], dict[str, Any]]
    """Settings of config.json that are no field of the config."""


def _gpt2_architecture(config: GPT2Config) -> tuple[str, str]:
    head = "ForSequenceClassification" if config.num_labels else "LMHeadModel"
    return f"GPT2{head}", "transformer."


def _llama_architecture(config: LlamaConfig) -> tuple[str, str]:
    head = "ForSequenceClassification" if config.num_labels else "ForCausalLM"
    return f"Llama{head}", "model."


def _t5_architecture(config: T5Config) -> tuple[str, str]:
    if config.num_labels:
        return "T5ForTokenClassification", "transformer."
    return "T5ForConditionalGeneration", ""


def _bert_architecture(config: BertConfig) -> tuple[str, str]:
    if config.num_labels:
        return "BertForSequenceClassification", "bert."
    return "BertModel", ""


def _labels(head: str, shapes: Mapping[str, Shape]) -> dict[str, int]:
    return {"num_labels": shapes.get(head, (0,))[0]}


def _label_names(config: Any) -> dict[str, Any]:
    """The entries that transformers needs of a classifier."""
    if not config.num_labels:
        return {}
    names = [f"LABEL_{i}" for i in range(config.num_labels)]
    written = {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    if not hasattr(config, "pad_token_id"):  # whose last token is told by what is not
        ends = config.eos_token_id
        written["pad_token_id"] = ends[0] if isinstance(ends, tuple) else ends
    return written


def _llama_read(
    settings: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    """The rotary settings are `rope_parameters` since transformers 5.

    Raises:
        ValueError: a kind of scaling that Llama 3 does not have.
    """
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"rope_type {kind!r}; supported is 'default' or 'llama3'")
    theta = settings.get("rope_theta", rope.get("rope_theta", LlamaConfig.rope_theta))
    names = [field.name for field in dataclasses.fields(RopeScaling)]
    scaling = RopeScaling(**{name: rope[name] for name in names if name in rope})
    return {
        "rope_theta": float(theta),
        "rope_scaling": scaling if kind == "llama3" else None,
    } | _labels("score.weight", shapes)


def _llama_written(config: LlamaConfig) -> dict[str, Any]:
    """Both spellings of the rotary settings."""
    scaling = config.rope_scaling
    rope = {"rope_type": "default"}
    if scaling is not None:
        rope = {"rope_type": "llama3"} | dataclasses.asdict(scaling)
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if scaling else None,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
    } | _label_names(config)


def _t5_read(
    settings: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    """Version 1.0 ties and scales; `scale_decoder_outputs` is new in transformers 5.

    It ties version 1.1 too, where the folder has not both embeddings.
    """
    tie = settings.get("tie_word_embeddings") is not False
    scale = settings.get("scale_decoder_outputs", tie)
    both = "lm_head.weight" in shapes and any(name in shapes for name in _T5_SHARED)
    read = {"scale_decoder_outputs": scale, "tied": scale or (tie and not both)}
    if settings.get("decoder_start_token_id") is None:
        read["decoder_start_token_id"] = settings.get("pad_token_id") or 0
    return read | _labels("classifier.weight", shapes)


def _t5_written(config: T5Config) -> dict[str, Any]:
    return {
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tied,
        "scale_decoder_outputs": config.scale_decoder_outputs,
    } | _label_names(config)


FAMILIES = {
    "gpt2": Family(
        config=GPT2Config,
        module=GPT2,
        tensors=GPT2_TENSORS,
        architecture=_gpt2_architecture,
        prefix="transformer.",
        heads=("score.",),
        classifier="score.",
        fresh=("score.",),
        parts=("score.",),
        ties=lambda config: {"lm_head.weight": "wte.weight"},
        ignored=r"h\.\d+\.attn\.(masked_)?bias",
        fixed={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
            "tie_word_embeddings": (True,),
        },
        derived=("num_labels",),
        read=lambda settings, shapes: _labels("score.weight", shapes),
        written=_label_names,
    ),
    "llama": Family(
        config=LlamaConfig,
        module=Llama,
        tensors=LLAMA_TENSORS,
        architecture=_llama_architecture,
        prefix="model.",
        heads=("lm_head.", "score."),
        classifier="score.",
        fresh=("score.",),
        parts=("lm_head.", "score."),
        ties=lambda config: (
            {"lm_head.weight": "embed_tokens.weight"}
            if config.tie_word_embeddings
            else {}
        ),
        ignored=r".*rotary_emb\.inv_freq",
        fixed={
            "hidden_act": ("silu", "swish"),
            "attention_bias": (False,),
            "mlp_bias": (False,),
        },
        derived=("num_labels", "rope_theta", "rope_scaling"),
        read=_llama_read,
        written=_llama_written,
    ),
    "t5": Family(
        config=T5Config,
        module=T5,
        tensors=T5_TENSORS,
        architecture=_t5_architecture,
        prefix="transformer.",
        heads=("classifier.",),
        classifier="classifier.",
        fresh=("classifier.",),
        parts=("decoder.", "lm_head.", "classifier."),
        ties=lambda config: (
            dict.fromkeys(_T5_SHARED[1:], _T5_SHARED[0])
            | ({"lm_head.weight": _T5_SHARED[0]} if config.tied else {})
        ),
        # A bias of T5 1.0 that was never used, and the head of whole texts.
        ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative.*"
        r"|classification_head\..*",
        fixed={},
        derived=("num_labels", "tied", "scale_decoder_outputs"),
        read=_t5_read,
        written=_t5_written,
    ),
    "bert": Family(
        config=BertConfig,
        module=Bert,
        tensors=BERT_TENSORS,
        architecture=_bert_architecture,
        prefix="bert.",
        heads=("classifier.",),
        classifier="classifier.",
        fresh=("pooler.", "classifier."),
        parts=("pooler.", "classifier."),
        ties=lambda config: {},
        # The heads of pretraining and of question answering.
        ignored=r"embeddings\.position_ids|cls\..*|qa_outputs\..*",
        fixed={
            "hidden_act": ("gelu", "gelu_python"),
            "position_embedding_type": ("absolute",),
            "is_decoder": (False,),
        },
        derived=("num_labels", "add_pooler"),
        read=lambda settings, shapes: (
            {"add_pooler": "pooler.dense.weight" in shapes}
            | _labels("classifier.weight", shapes)
        ),
        written=_label_names,
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
