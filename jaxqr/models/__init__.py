"""Language models and encoders in flax, with Hugging Face folders in and out.

A model is a module without state; its parameters are a separate pytree::

    model = models.build(models.preset("gpt2-mini", vocab_size=8192))
    params = models.init(model, jax.random.key(0))
    features = model.apply(params, tokens, mask)

Every language model has these methods, decoder-only or not:

- `apply(params, pairs, method="completion")`: features, tokens and mask of the
  window that trains, `[BN, 1+T]`: one column that is not predicted, then the target;
- `apply(params, prompts, max_new_tokens, method="prefill")`: features of the last
  column, `[B, 1, D]`, and a cache;
- `apply(params, cache, tokens, method="decode_step")`: features that predict the token
  after `tokens` `[B]`, and the cache that has read them. `cache.repeat(n)`
  repeats its rows, `cache.take(index)` reorders them, each prompt's by themselves.

Decoder-only models also read a plain sequence, `apply(params, tokens, mask)`. Every
model with `num_labels` in its config, an encoder or not, has
`apply(params, tokens, mask, segments, method="classify")`: logits of the classes.

Features are in the dtype of the computation, parameters in float32. Parameters are a
dict of collections: `params`, and `lora` where the config asks for adapters;
`partition` splits off what is trained, `combine` merges the two parts again.
"""

from typing import Any

from jaxqr.models.adapters import combine, partition
from jaxqr.models.bert import BertConfig
from jaxqr.models.config import LanguageModelConfig
from jaxqr.models.convert import load_config, load_pretrained, save_pretrained
from jaxqr.models.families import family_of
from jaxqr.models.gpt2 import GPT2Config
from jaxqr.models.layers import init
from jaxqr.models.llama import LlamaConfig, RopeScaling
from jaxqr.models.presets import PRESETS, preset
from jaxqr.models.t5 import T5Config

__all__ = [
    "PRESETS",
    "BertConfig",
    "GPT2Config",
    "LanguageModelConfig",
    "LlamaConfig",
    "RopeScaling",
    "T5Config",
    "build",
    "combine",
    "init",
    "load_config",
    "load_pretrained",
    "partition",
    "preset",
    "save_pretrained",
]


def build(config: Any) -> Any:
    """Return the module for a config.

    Raises:
        ValueError: if it is not a config of ours.
    """
    return family_of(config)[1].module(config)
