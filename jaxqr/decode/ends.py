"""Which tokens end a row."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def end_tokens(model: Any, vocabulary: int) -> tuple[int, ...]:
    """`model.config.eos_token_id`, one or several; the first fills finished rows.

    Args:
        model: a language model of `jaxqr.models`.
        vocabulary: the number of tokens that it predicts. Of several end tokens,
            those beyond it are left out.

    Raises:
        ValueError: if there is none that the model predicts: no row would ever end.
    """
    given = model.config.eos_token_id
    ends = (given,) if isinstance(given, int) else tuple(given or ())
    ends = tuple(end for end in ends if 0 <= end < vocabulary)
    if not ends:
        raise ValueError(
            f"eos_token_id={given!r} ends no row: set it in the model's config to one "
            f"of the {vocabulary} tokens that the model predicts, or to a tuple of them"
        )
    return ends


def is_end(tokens: Int[Array, "*rows"], ends: tuple[int, ...]) -> Bool[Array, "*rows"]:
    """Where `tokens` are any of `ends`."""
    return jnp.isin(tokens, jnp.array(ends))
