"""The axis alphabet, and the arrays that travel between modules.

========  =================================================================
`B`       rows of a batch
`S`       source (prompt) tokens, or slots of a cache
`T`       target tokens
`V`       vocabulary
`D`       width of the model
`H`, `K`  query heads, key/value heads
`C`       channels per head
`F`       feed-forward width
`N`       candidates per query
`Q`       queries
`M`       products per query
========  =================================================================

The same letters stand in signatures (`Float[Array, "B T"]`) and in einsums.

One alignment holds everywhere: index `t` of a per-token array describes
`tokens[:, t]`, which the hidden state at `t - 1` predicts. Column 0 is never
predicted and is 0. Masks are explicit, True where a token counts, and never
derived from token ids: the end-of-text token may be the padding token too.

Pytrees are `NamedTuple`s; a batch may hold numpy arrays on the host and JAX
arrays on the device.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, Key, PyTree

Params = PyTree[Any]


class Features(NamedTuple):
    """What a language model hands to the vocabulary: logits, not multiplied out.

    `logits[b, t] = hidden[b, t] @ unembed.T + bias` is the distribution of token
    `t + 1`. Only `jaxqr.vocab` carries out the product, in chunks.
    """

    hidden: Float[Array, "B T D"]
    unembed: Float[Array, "V D"]
    bias: Float[Array, " V"] | None


class Prompts(NamedTuple):
    """Source texts, padded on the left so that all rows end in one column."""

    tokens: Int[Array, "B S"]
    mask: Bool[Array, "B S"]


class Pairs(NamedTuple):
    """Source texts and the texts that follow them.

    `source` is padded on the left, `target` on the right. The end-of-text token
    closes every complete target and is inside `target_mask`. Plain text is a pair
    whose source is the beginning-of-text token alone. Decoder-only models read
    source and target as one sequence, encoder-decoders encode the source.
    """

    source: Int[Array, "B S"]
    source_mask: Bool[Array, "B S"]
    target: Int[Array, "B T"]
    target_mask: Bool[Array, "B T"]


class Preferences(NamedTuple):
    """Two targets of one source; `weight` 0 drops the row (a tie, a failed judge)."""

    source: Int[Array, "B S"]
    source_mask: Bool[Array, "B S"]
    chosen: Int[Array, "B T"]
    chosen_mask: Bool[Array, "B T"]
    rejected: Int[Array, "B T"]
    rejected_mask: Bool[Array, "B T"]
    weight: Float[Array, " B"]


class Labelled(NamedTuple):
    """Encoder input with one class per row; `segments` tells its two texts apart."""

    tokens: Int[Array, "B S"]
    mask: Bool[Array, "B S"]
    segments: Int[Array, "B S"]
    label: Int[Array, " B"]


class Generated(NamedTuple):
    """Sampled targets, padded on the right; `mask` includes the end-of-text token.

    `logps` are the model's own log-probabilities of the tokens, at temperature 1
    and before any truncation of the distribution; 0 outside `mask`.
    """

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    logps: Float[Array, "B T"]


class TrainState(NamedTuple):
    """All that a train step changes."""

    params: Params
    opt_state: PyTree[Any]
    key: Key[Array, ""]
    step: Int[Array, ""]
