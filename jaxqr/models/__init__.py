"""Language models and encoders in flax, with Hugging Face folders in and out.

A model is a module without state, and its parameters are a pytree beside it::

    model = models.build(models.preset("gpt2-mini", vocab_size=8192))
    params = models.init(model, jax.random.key(0))
    features = model.apply(params, tokens, mask)

Every language model has these methods, decoder-only or not:

- `apply(params, tokens, mask)`: `types.Features` of a plain sequence;
- `apply(params, pairs, method="completion")`: features, tokens and mask of the
  window that trains, `[BN, 1+T]`: one column that is not predicted, then the target;
- `apply(params, prompts, max_new_tokens, method="prefill")`: features of the last
  column, `[B, 1, D]`, and a cache;
- `apply(params, cache, tokens, method="step")`: features that predict the token
  after `tokens` `[B]`, and the cache that has read them. `cache.repeat(n)` and
  `cache.take(rows)` repeat and reorder its rows, within the rows of one prompt.

The features are in the dtype of the computation, and parameters in float32.
"""

import dataclasses
from typing import Any

from jaxqr.models.bert import BertConfig
from jaxqr.models.convert import load_pretrained, save_pretrained
from jaxqr.models.families import family_of
from jaxqr.models.gpt2 import GPT2Config
from jaxqr.models.layers import init

__all__ = [
    "PRESETS",
    "BertConfig",
    "GPT2Config",
    "build",
    "init",
    "load_pretrained",
    "preset",
    "save_pretrained",
]

Config = GPT2Config | BertConfig

PRESETS: dict[str, Config] = {
    "gpt2-tiny": GPT2Config(n_embd=128, n_layer=2, n_head=4, initializer_range=0.08),
    "gpt2-3x192": GPT2Config(n_embd=192, n_layer=3, n_head=4, initializer_range=0.07),
    "gpt2-mini": GPT2Config(n_embd=256, n_layer=4, n_head=4, initializer_range=0.06),
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "bert-tiny": BertConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        initializer_range=0.08,
    ),
    "bert-mini": BertConfig(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        initializer_range=0.06,
    ),
}
"""Sizes by name; the vocabulary is the original's unless it is set."""


def preset(name: str, **overrides: Any) -> Config:
    """Return the config of a preset, with some fields changed.

    Raises:
        ValueError: if there is no such preset.

    >>> preset("gpt2-tiny", vocab_size=512).n_embd
    128
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}: choose from {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[name], **overrides)


def build(config: Any) -> Any:
    """Return the module for a config.

    Raises:
        ValueError: if it is not a config of ours.
    """
    return family_of(config)[1].module(config)
