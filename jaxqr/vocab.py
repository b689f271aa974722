"""The only code that sees the vocabulary axis, a chunk of positions at a time.

Every function takes `Features` and returns one number per token, `[B, T]`, in the
alignment of `jaxqr.types`: column `t` belongs to `tokens[:, t]`, is computed from
`hidden[:, t - 1]`, and column 0 is 0. The array `[B, T, V]` of all logits never
exists, neither forwards nor backwards: positions are worked off `chunk` tokens at a
time (`chunk // B` columns, so that a sharded batch axis stays sharded), logits are
recomputed for the gradient, and float32 is accumulated whatever the model computes in.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxqr.types import Features

CHUNK = 512
"""Tokens whose logits exist at once. 512 x 50,257 float32 logits are 98 MiB."""

MAX_NATS = 1e6
"""What a token costs that the other distribution excludes, where it is infinite."""

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
Scalar = float | int | Float[Array, ""]


def token_logps(
    features: Features,
    tokens: Int[Array, "B T"],
    *,
    temperature: Scalar = 1.0,
    chunk: int = CHUNK,
) -> Float[Array, "B T"]:
    r"""Log-probabilities of the given tokens.

    .. math:: \log \mathrm{softmax}(z_{t-1} / \tau)[x_t], \quad z = h W^\top + b

    The gradient is derived by hand: with the row's log-normalizer kept from the
    forward pass it needs one exponential per logit and no scatter over `V`.

    Args:
        features: what the model returned for `tokens`.
        tokens: token ids; column 0 is not predicted.
        temperature: tau > 0; not differentiated.
        chunk: tokens whose logits exist at once.

    Returns:
        Natural-log probabilities, float32; column 0 is 0.

    >>> import jax.numpy as jnp
    >>> features = Features(jnp.zeros((1, 3, 2)), jnp.ones((4, 2)), None)
    >>> token_logps(features, jnp.array([[0, 1, 2]])).round(4).tolist()
    [[0.0, -1.386299967765808, -1.386299967765808]]
    """
    temperature = jnp.float32(temperature)
    hidden, targets = features.hidden[:, :-1], tokens[:, 1:]
    logps = _token_logps(
        hidden, features.unembed, features.bias, targets, temperature, chunk
    )
    return _first_column_zero(logps, features)


def entropy(features: Features, *, chunk: int = CHUNK) -> Float[Array, "B T"]:
    r"""Entropy of the next-token distribution, in nats.

    .. math:: H_t = -\sum_v q_t(v) \log q_t(v)

    Returns:
        Column `t` is the entropy of the distribution that token `t` is drawn from.

    >>> import jax.numpy as jnp
    >>> features = Features(jnp.zeros((1, 2, 2)), jnp.ones((4, 2)), None)
    >>> entropy(features).round(4).tolist()
    [[0.0, 1.386299967765808]]
    """

    def rows(hidden, unembed, bias):
        logq = jax.nn.log_softmax(_logits(hidden, unembed, bias))
        return -_expectation(logq, logq)

    values = _by_chunk(rows, chunk, features.hidden[:, :-1])
    return _first_column_zero(values(features.unembed, features.bias), features)


def divergence(
    student: Features,
    teacher: Features,
    *,
    kind: str = "reverse_kl",
    beta: float = 0.5,
    temperature: Scalar = 1.0,
    chunk: int = CHUNK,
) -> Float[Array, "B T"]:
    r"""Divergence between two models' next-token distributions, in nats.

    With q the student, p the teacher, both at the given temperature:

    - `forward_kl`: KL(p || q), the usual distillation loss (Hinton et al. 2015);
    - `reverse_kl`: KL(q || p), mode-seeking (Gu et al. 2024, eq. 1);
    - `jsd`: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q
      (Agarwal et al. 2024, eq. 1). Its gradient tends to forward KL's (times beta)
      as beta -> 0 and to reverse KL's (times 1 - beta) as beta -> 1; at exactly 0 or
      1 it is 0 everywhere and therefore refused.

    No factor tau^2 is applied. Gradients reach the student only.

    Args:
        student: features of the model that is trained.
        teacher: features at the same positions over the same vocabulary.
        kind: which divergence.
        beta: weight of the teacher in the mixture of `jsd`, in (0, 1).
        temperature: divides both models' logits.
        chunk: tokens whose logits exist at once.

    Returns:
        One value per token, float32; column 0 is 0.

    Raises:
        ValueError: unknown `kind`, `beta` outside (0, 1), or different vocabularies.

    >>> import jax.numpy as jnp
    >>> flat = Features(jnp.zeros((1, 2, 2)), jnp.ones((2, 2)), None)
    >>> sure = Features(jnp.ones((1, 2, 2)), jnp.array([[9.0, 9], [0, 0]]), None)
    >>> divergence(flat, sure, kind="forward_kl").round(3).tolist()
    [[0.0, 0.6930000185966492]]
    """
    if kind not in DIVERGENCES:
        raise ValueError(f"kind={kind!r} is not one of {DIVERGENCES}")
    if kind == "jsd" and not 0 < beta < 1:
        raise ValueError(
            f"beta={beta} must lie strictly between 0 and 1 for kind='jsd'"
        )
    if student.unembed.shape[0] != teacher.unembed.shape[0]:
        raise ValueError(
            f"student and teacher predict {student.unembed.shape[0]} and "
            f"{teacher.unembed.shape[0]} tokens; load both with the `num_tokens` of "
            "their common tokenizer"
        )
    teacher = jax.lax.stop_gradient(teacher)

    def rows(hidden, unembed, bias, teacher_unembed, teacher_bias):
        q = _log_softmax(hidden[0], unembed, bias, temperature)
        p = _log_softmax(hidden[1], teacher_unembed, teacher_bias, temperature)
        if kind == "forward_kl":
            return _kl(p, q)
        if kind == "reverse_kl":
            return _kl(q, p)
        # logaddexp has no gradient where both are -inf; 0 stands in, uncounted.
        neither = jnp.isneginf(p) & jnp.isneginf(q)
        mixture = jnp.logaddexp(
            jnp.where(neither, 0, p) + jnp.log(beta),
            jnp.where(neither, 0, q) + jnp.log1p(-beta),
        )
        return beta * _kl(p, mixture) + (1 - beta) * _kl(q, mixture)

    hidden = (student.hidden[:, :-1], teacher.hidden[:, :-1])
    values = _by_chunk(rows, chunk, hidden)(
        student.unembed, student.bias, teacher.unembed, teacher.bias
    )
    return _first_column_zero(values, student)


def next_logits(features: Features) -> Float[Array, "B V"]:
    """Logits after the last position: what a sampler draws one token per row from."""
    return _logits(features.hidden[:, -1], features.unembed, features.bias)


def _logits(hidden, unembed, bias) -> Array:
    logits = jnp.einsum(
        "...d,vd->...v", hidden, unembed, preferred_element_type=jnp.float32
    )
    return logits if bias is None else logits + _along_last(bias, logits)


def _along_last(vector, like):
    """`vector` with the leading axes of `like`: rank promotion is explicit."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _log_softmax(hidden, unembed, bias, temperature):
    return jax.nn.log_softmax(_logits(hidden, unembed, bias) / temperature)


def _kl(p, q):
    """KL(p || q) of two arrays of log-probabilities over the last axis.

    A token that only q excludes counts `MAX_NATS` nats.
    """
    return _expectation(p, jnp.minimum(p - q, MAX_NATS))


def _expectation(p, values):
    """Sum of `exp(p) * values`; a token that p excludes contributes 0."""
    return jnp.sum(jnp.exp(p) * jnp.where(jnp.isneginf(p), 0.0, values), axis=-1)


def _first_column_zero(values, features: Features):
    """`[B, T - 1]` -> `[B, T]`, for the T of `features`; an empty row stays empty."""
    return jnp.pad(values, ((0, 0), (1, 0)))[:, : features.hidden.shape[1]]


def _by_chunk(rows: Callable, chunk: int, columns: Any) -> Callable:
    """Maps `rows(columns[c, D], *weights) -> [c]` over all positions, in chunks.

    `columns` is a pytree of [B, T, ...] arrays. The result takes the weights and
    returns [B, T]. Chunks are checkpointed: the backward pass computes each again.
    """
    pieces, length = _split(columns, chunk)

    def mapped(*weights):
        def one(_, piece):
            return None, jax.checkpoint(rows)(piece, *weights)

        return _join(jax.lax.scan(one, None, pieces)[1], columns, length)

    return mapped


def _split(columns, chunk: int):
    """[B, T, ...] leaves -> [chunks, B * c, ...] with c = chunk // B columns each."""
    rows, width = jax.tree.leaves(columns)[0].shape[:2]
    length = min(max(1, chunk // max(1, rows)), max(1, width))
    count = -(-width // length)

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, count * length - width)) + ((0, 0),) * (x.ndim - 2))
        x = x.reshape(rows, count, length, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0).reshape(count, rows * length, *x.shape[3:])

    return jax.tree.map(split, columns), length


def _join(pieces, columns, length: int):
    """The inverse of `_split` for one value per position."""
    rows, width = jax.tree.leaves(columns)[0].shape[:2]
    values = pieces.reshape(len(pieces), rows, length, *pieces.shape[2:])
    values = jnp.moveaxis(values, 0, 1)
    values = values.reshape(rows, len(pieces) * length, *values.shape[3:])
    return values[:, :width]


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _token_logps(hidden, unembed, bias, targets, temperature, chunk):
    return _token_logps_forward(hidden, unembed, bias, targets, temperature, chunk)[0]


def _token_logps_forward(hidden, unembed, bias, targets, temperature, chunk):
    columns = (hidden, targets)
    pieces, length = _split(columns, chunk)

    def one(_, piece):
        h, x = piece
        logits = _logits(h, unembed, bias) / temperature
        log_normalizer = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, x[:, None], axis=-1)[:, 0]
        return None, (chosen - log_normalizer, log_normalizer)

    logps, log_normalizers = jax.lax.scan(one, None, pieces)[1]
    logps = _join(logps, columns, length)
    kept = (hidden, unembed, bias, targets, temperature, log_normalizers)
    return logps, kept


def _token_logps_backward(chunk, kept, cotangent):
    # d logp / d logits = onehot(x) - softmax. The one-hot part is a gather and a
    # scatter of rows, far cheaper than an array over V; the scan does the other.
    hidden, unembed, bias, targets, temperature, log_normalizers = kept
    weight = cotangent / temperature
    pieces, length = _split((hidden, weight), chunk)

    def one(grads, piece):
        (h, g), log_normalizer = piece
        logits = _logits(h, unembed, bias) / temperature
        dz = -g[:, None] * jnp.exp(logits - log_normalizer[:, None])
        grad_bias = None if bias is None else grads[1] + jnp.sum(dz, axis=0)
        dz = dz.astype(h.dtype)
        # [D, V]: on a CPU this product is 1.5 times faster than its transpose.
        grad_unembed = grads[0] + _einsum("nd,nv->dv", h, dz)
        return (grad_unembed, grad_bias), _einsum("nv,vd->nd", dz, unembed)

    zeros = (
        jnp.zeros(unembed.shape[::-1], jnp.float32),
        None if bias is None else jnp.zeros(bias.shape, jnp.float32),
    )
    (grad_unembed, grad_bias), grad_h = jax.lax.scan(
        one, zeros, (pieces, log_normalizers)
    )
    weight = weight[..., None]
    grad_h = _join(grad_h, (hidden,), length) + weight * unembed[targets]
    grad_unembed = grad_unembed.T.at[targets].add(weight * hidden)
    if grad_bias is not None:
        grad_bias = grad_bias.at[targets].add(weight[..., 0])
    grads = jax.tree.map(
        lambda g, x: g.astype(x.dtype),
        (grad_h, grad_unembed, grad_bias),
        (hidden, unembed, bias),
    )
    return *grads, None, jnp.zeros_like(temperature)


_einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)
_token_logps.defvjp(_token_logps_forward, _token_logps_backward)
