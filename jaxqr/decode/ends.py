"""Which tokens end a row."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def end_tokens(model: Any) -> tuple[int, ...]:
    """`model.config.eos_token_id`, one or several; the first fills finished rows.

    Raises:
        ValueError: if there is none.
    """
    ends = model.config.eos_token_id
    ends = (ends,) if isinstance(ends, int) else tuple(ends or ())
    if not ends:
        raise ValueError(
            f"eos_token_id={model.config.eos_token_id!r} ends no row: set it in the "
            "model's config to the token that does, or to a tuple of them"
        )
    return ends


def is_end(tokens: Int[Array, "*rows"], ends: tuple[int, ...]) -> Bool[Array, "*rows"]:
    """Where `tokens` are any of `ends`."""
    return jnp.isin(tokens, jnp.array(ends))
