"""Which parameters of a model are trained: its adapters, or all of them."""

from collections.abc import Mapping

from jaxqr.models.value import COLLECTION
from jaxqr.types import Params


def partition(params: Params) -> tuple[Params, Params]:
    """Split a model's parameters into those that are trained and the frozen base.

    With a collection `lora` (Hu et al. 2021), that collection is trained, with the
    value head if there is one, and the other collections are the base. Otherwise
    everything is trained and the base is `{}`. Arrays are not copied; `combine` is the
    inverse.

    Args:
        params: what `models.init` or `models.load_pretrained` returned.

    Returns:
        The trained parameters and the base. Both are dicts of collections.

    >>> partition({"params": 1, "lora": 2})
    ({'lora': 2}, {'params': 1})
    >>> partition({"params": 1})
    ({'params': 1}, {})
    """
    if not isinstance(params, Mapping) or "lora" not in params:
        return params, {}
    trained = {name: x for name, x in params.items() if name in ("lora", COLLECTION)}
    return trained, {name: x for name, x in params.items() if name not in trained}


def combine(trained: Params, base: Params) -> Params:
    """Merge trained parameters with their base: the inverse of `partition`.

    Args:
        trained: the first part, possibly with new values.
        base: the second part; `{}` where everything is trained.

    Returns:
        The parameters that `model.apply` takes.

    >>> combine({"lora": 2}, {"params": 1})
    {'params': 1, 'lora': 2}
    >>> combine({"params": 1}, {})
    {'params': 1}
    """
    return {**base, **trained} if base else trained
