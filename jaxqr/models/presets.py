"""Sizes by name: the papers' models, and small ones that learn on two CPU cores."""

import dataclasses
from typing import Any

from jaxqr.models.bert import BertConfig
from jaxqr.models.gpt2 import GPT2Config
from jaxqr.models.llama import LlamaConfig, RopeScaling
from jaxqr.models.t5 import T5Config

Config = GPT2Config | LlamaConfig | T5Config | BertConfig


def _llama3(width: int, layers: int, inner: int, **fields: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        bos_token_id=128_000,
        eos_token_id=128_001,
        **fields,
    )


def _small_llama(width: int, layers: int, **fields: Any) -> LlamaConfig:
    """As Llama 3.2: tied, two query heads to a key/value head."""
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=-(-8 * width // 3 // 32) * 32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=width**-0.5,
        **fields,
    )


def _t5(width: int, layers: int, heads: int, **fields: Any) -> T5Config:
    """Version 1.0."""
    sizes: dict[str, Any] = {"d_model": width, "d_ff": 4 * width} | fields
    return T5Config(num_layers=layers, num_heads=heads, **sizes)


def _t5_v1_1(
    width: int, layers: int, heads: int, inner: int, **fields: Any
) -> T5Config:
    """Version 1.1, which FLAN-T5 continues."""
    return _t5(
        width,
        layers,
        heads,
        d_ff=inner,
        feed_forward_proj="gated-gelu",
        tied=False,
        scale_decoder_outputs=False,
        **fields,
    )


PRESETS: dict[str, Config] = {
    "gpt2-tiny": GPT2Config(n_embd=128, n_layer=2, n_head=4, initializer_range=0.08),
    "gpt2-3x192": GPT2Config(n_embd=192, n_layer=3, n_head=4, initializer_range=0.07),
    "gpt2-mini": GPT2Config(n_embd=256, n_layer=4, n_head=4, initializer_range=0.06),
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "llama-tiny": _small_llama(128, 2),
    "llama-3x192": _small_llama(192, 3),
    "llama-3.2-1b": _llama3(
        2048,
        16,
        8192,
        rope_scaling=RopeScaling(factor=32.0),
        tie_word_embeddings=True,
    ),
    "llama-3.1-8b": _llama3(4096, 32, 14_336, rope_scaling=RopeScaling(factor=8.0)),
    "t5-tiny": _t5_v1_1(128, 2, 4, 256, d_kv=32),
    "t5-3x192": _t5_v1_1(192, 3, 4, 384, d_kv=48),
    "t5-base": _t5(768, 12, 12),
    "t5-large": _t5(1024, 24, 16),
    "t5-v1.1-base": _t5_v1_1(768, 12, 12, 2048),
    "t5-v1.1-large": _t5_v1_1(1024, 24, 16, 2816),
    "flan-t5-small": _t5_v1_1(512, 8, 6, 1024),
    "flan-t5-base": _t5_v1_1(768, 12, 12, 2048),
    "flan-t5-large": _t5_v1_1(1024, 24, 16, 2816),
    "flan-t5-xl": _t5_v1_1(2048, 24, 32, 5120),
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

    A token id of the original that a smaller vocabulary does not have, such as GPT-2's
    end of text 50256, is None unless it is set. Decoding asks for an end of text.

    Raises:
        ValueError: if there is no such preset, or a token id that is set is not in the
            vocabulary.

    >>> small = preset("gpt2-tiny", vocab_size=512, bos_token_id=0)
    >>> small.n_embd, small.bos_token_id, small.eos_token_id
    (128, 0, None)
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}: choose from {', '.join(PRESETS)}")
    config = dataclasses.replace(PRESETS[name], **overrides)
    absent: dict[str, None] = {}
    for field, ids in vars(config).items():
        if not field.endswith("token_id") or ids is None:
            continue
        many = ids if isinstance(ids, tuple) else (ids,)
        if all(0 <= id < config.vocab_size for id in many):
            continue
        if field in overrides:
            raise ValueError(
                f"{field}={ids} is not in a vocabulary of {config.vocab_size} tokens: "
                f"expected an id from 0 to {config.vocab_size - 1}"
            )
        absent[field] = None
    return dataclasses.replace(config, **absent)
