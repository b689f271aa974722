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
`N`       targets (candidates) per source; `BN` rows of them, row `b * N + n` is
          the n-th of source b
`Q`       queries
`M`       products per query
========  =================================================================

The same letters stand in signatures (`Float[Array, "B T"]`) and in einsums.

One alignment holds everywhere: index `t` of a per-token array describes
`tokens[:, t]`, which the hidden state at `t - 1` predicts. Column 0 is never
predicted and is 0. Masks are explicit, True where a token counts, and never
derived from token ids: the end-of-text token may be the padding token too.

Pytrees are `NamedTuple`s.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

Params = PyTree[Any]
AnyArray = Array | np.ndarray
"""What a batch holds: numpy arrays on the host, JAX arrays on the device."""


class Features(NamedTuple):
    """What a language model hands to the vocabulary: logits, not multiplied out.

    `logits[b, t] = hidden[b, t] @ unembed.T + bias` is the distribution of token
    `t + 1`. Only `jaxqr.vocab` carries out the product, in chunks.
    """

    hidden: Float[Array, "B T D"]
    unembed: Float[Array, "V D"]
    bias: Float[Array, " V"] | None


class PromptBatch(NamedTuple):
    """Source texts, padded on the left so that all rows end in one column."""

    tokens: Int[AnyArray, "B S"]
    mask: Bool[AnyArray, "B S"]


class Pairs(NamedTuple):
    """Source texts and the texts that follow them, N >= 1 to each source.

    `source` is padded on the left, `target` on the right. The end-of-text token
    closes every complete target and is inside `target_mask`. Plain text is a pair
    whose source is the beginning-of-text token alone. However many targets follow a
    source, a model reads the source once.
    """

    source: Int[AnyArray, "B S"]
    source_mask: Bool[AnyArray, "B S"]
    target: Int[AnyArray, "BN T"]
    target_mask: Bool[AnyArray, "BN T"]


class Preferences(NamedTuple):
    """Two targets of one source; `weight` 0 drops the row (a tie, a failed judge)."""

    source: Int[AnyArray, "B S"]
    source_mask: Bool[AnyArray, "B S"]
    chosen: Int[AnyArray, "B T"]
    chosen_mask: Bool[AnyArray, "B T"]
    rejected: Int[AnyArray, "B T"]
    rejected_mask: Bool[AnyArray, "B T"]
    weight: Float[AnyArray, " B"]


class LabeledBatch(NamedTuple):
    """Encoder input with one class per row; `segments` tells its two texts apart.

    `weight` is how much each row counts, of any scale; 0 drops it.
    """

    tokens: Int[AnyArray, "B S"]
    mask: Bool[AnyArray, "B S"]
    segments: Int[AnyArray, "B S"]
    label: Int[AnyArray, " B"]
    weight: Float[AnyArray, " B"]


class Generated(NamedTuple):
    """Sampled targets, padded on the right; `mask` includes the end-of-text token.

    `logps` are the model's own log-probabilities of the tokens, at temperature 1
    and before any truncation of the distribution; 0 outside `mask`.
    """

    tokens: Int[AnyArray, "B T"]
    mask: Bool[AnyArray, "B T"]
    logps: Float[AnyArray, "B T"]


class TrainState(NamedTuple):
    """All that a train step changes."""

    params: Params
    opt_state: PyTree[Any]
    key: Key[Array, ""]
    step: Int[Array, ""]
