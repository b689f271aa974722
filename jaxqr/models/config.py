"""What the configs of all families have in common; Hugging Face has no names for it."""

from dataclasses import dataclass
from typing import Literal, get_args

Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "full", "dots"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """How a model computes, and what is trained of it."""

    num_labels: int = 0
    """Classes of a classification head; 0: no such head."""
    dtype: Dtype = "float32"
    """Dtype of the computation; parameters and softmax are float32."""
    remat: Remat = "none"
    """What the backward pass computes again instead of storing it: nothing, each block
    as a whole, or all of a block but its matrix products (`dots`)."""
    lora_rank: int = 0
    """Rank of the adapters of every linear map of the blocks, and of BERT's pooler (Hu
    et al. 2021). With adapters, they and a classification head are all that is
    trained."""
    lora_alpha: float = 16.0
    """The product of a map's two adapters is scaled by `lora_alpha / lora_rank`."""

    def __post_init__(self) -> None:
        for name, kinds in (("dtype", get_args(Dtype)), ("remat", get_args(Remat))):
            if (value := getattr(self, name)) not in kinds:
                raise ValueError(f"{name}={value!r} is not one of {kinds}")
        for name in ("num_labels", "lora_rank"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name}={value}: expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(ModelConfig):
    """How many of the vocabulary's rows there are, and how many count.

    Some folders round the vocabulary up beyond the tokenizer's, each to another
    number. Over the ids that exist, models with one tokenizer can be compared.
    """

    num_tokens: int | None = None
    """Ids that exist; the others are never predicted. None: all of `vocab_size`."""
    vocab_multiple: int = 1
    """Embeddings have a multiple of this many rows, so that they split evenly over a
    mesh. The rows beyond `vocab_size` are zero, never predicted and never exported."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_tokens", "vocab_multiple"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value}: expected 1 or more")
        count, rows = self.num_tokens, vars(self).get("vocab_size")
        if count is not None and rows is not None and count > rows:
            raise ValueError(
                f"num_tokens={count} is more than vocab_size={rows}: the "
                "tokenizer has ids that the model has no embedding of; give the "
                "tokenizer of this model"
            )
