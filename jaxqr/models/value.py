"""A value head on a language model: what a state is worth to the policy.

The state in which token `t` is chosen is the hidden state at `t - 1`, the one that
predicts the token. Its value is a linear function of it, so policy and values share
everything below their heads (Ziegler et al. 2019, section 2.1)::

    params = init_value(model, params)              # a collection of its own, `value`
    features, values, tokens, mask = ValueModel(model).completion(params, pairs)

The model itself does not read the collection: generation goes on as before, and
`models.save_pretrained` leaves it out.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from safetensors.numpy import load_file, save_file

from jaxqr.types import Features, Pairs, Params

COLLECTION = "value"
FILE = "value.safetensors"


class ValueModel(NamedTuple):
    """A language model whose parameters have a value head.

    Attributes:
        model: one of `jaxqr.models`, decoder-only or encoder-decoder.
    """

    model: Any

    def completion(
        self, params: Params, batch: Pairs
    ) -> tuple[Features, Float[Array, "BN _"], Int[Array, "BN _"], Bool[Array, "BN _"]]:
        """Features, values, tokens and mask of the window that trains, [BN 1+T].

        `values[b, t]` is float32 and belongs to token `t`; column 0 is 0.
        """
        features, tokens, mask = self.model.apply(params, batch, method="completion")
        head = params[COLLECTION]
        hidden = features.hidden[:, :-1].astype(jnp.float32)
        values = hidden @ head["kernel"] + head["bias"]
        return features, jnp.pad(values, ((0, 0), (1, 0))), tokens, mask


def init_value(model: Any, params: Params) -> Params:
    """The parameters with a value head of zeros: every state is worth 0 at first.

    Args:
        model: a language model of `jaxqr.models`.
        params: its parameters, with adapters or without.

    Returns:
        The same parameters, and the collection `value` with `kernel` [D] and `bias` [].
    """
    token = jnp.zeros((1, 1), jnp.int32)
    one = Pairs(token, token == 0, token, token == 0)

    def hidden(params):
        return model.apply(params, one, method="completion")[0].hidden

    width = jax.eval_shape(hidden, params).shape[-1]
    return {**params, COLLECTION: {"kernel": jnp.zeros(width), "bias": jnp.zeros(())}}


def without_value(params: Params) -> Params:
    """The parameters of the model alone."""
    return {name: x for name, x in params.items() if name != COLLECTION}


def save_value(folder: Path, params: Params) -> None:
    """Writes the value head to `value.safetensors`, which transformers does not read.

    Parameters without a value head write nothing.
    """
    if COLLECTION in params:
        head = {name: jax.device_get(x) for name, x in params[COLLECTION].items()}
        partial = folder / f".{FILE}.partial"
        try:
            save_file(head, partial)
            partial.replace(folder / FILE)
        finally:
            partial.unlink(missing_ok=True)


def load_value(folder: Path, params: Params) -> Params:
    """The parameters with the value head that `save_value` wrote.

    Args:
        folder: where it was written; without the file, `params` are returned as given.
        params: with a value head, whose shapes the file must have.

    Raises:
        ValueError: the file holds the head of another model.
    """
    path = folder / FILE
    if not path.exists():
        return params
    stored, head = load_file(path), params[COLLECTION]
    found = {name: x.shape for name, x in stored.items()}
    if found != (asked := {name: x.shape for name, x in head.items()}):
        raise ValueError(
            f"{path} holds a value head of shapes {found}, the model has one of {asked}"
            ": delete the file to begin with a fresh head"
        )
    loaded = {
        name: jax.device_put(stored[name], x.sharding) for name, x in head.items()
    }
    return {**params, COLLECTION: loaded}
