"""Every function of `vocab` against full logits in float64, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxqr import vocab
from jaxqr.types import Features

B, T, D, V = 3, 7, 5, 11


def features(seed: int, *, bias: bool = True, vocabulary: int = V) -> Features:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return Features(
        draw(B, T, D), draw(vocabulary, D), draw(vocabulary) if bias else None
    )


def full_logq(f: Features, temperature: float = 1.0) -> np.ndarray:
    """[B, T, V] log-probabilities in float64, by the definition."""
    hidden, unembed = np.float64(f.hidden), np.float64(f.unembed)
    bias = 0.0 if f.bias is None else np.float64(f.bias)
    return log_softmax((hidden @ unembed.T + bias) / temperature, axis=-1)


def shifted(values: np.ndarray) -> np.ndarray:
    """Column t is computed from position t - 1; column 0 is 0."""
    return np.concatenate([np.zeros((B, 1)), values[:, :-1]], axis=1)


TOKENS = jnp.asarray(np.random.default_rng(9).integers(0, V, (B, T)))


@pytest.mark.parametrize("chunk", [1, B * 2, B * T, 1000])
@pytest.mark.parametrize("bias", [True, False])
def test_token_logps_are_the_log_softmax_of_the_previous_position(chunk, bias):
    f = features(0, bias=bias)
    expected = np.take_along_axis(
        full_logq(f, 0.7)[:, :-1], np.asarray(TOKENS)[:, 1:, None], axis=-1
    )[..., 0]
    got = vocab.token_logps(f, TOKENS, temperature=0.7, chunk=chunk)
    np.testing.assert_allclose(got[:, 1:], expected, atol=1e-5)
    assert np.all(got[:, 0] == 0)


@pytest.mark.parametrize("bias", [True, False])
def test_token_logps_gradient_is_that_of_full_logits(bias):
    f = features(1, bias=bias)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(B, T)), jnp.float32)

    def chunked(f):
        logps = vocab.token_logps(f, TOKENS, temperature=1.3, chunk=2 * B)
        return jnp.sum(weights * logps)

    def direct(f):
        logits = jnp.einsum("btd,vd->btv", f.hidden, f.unembed)
        if f.bias is not None:
            logits += f.bias[None, None]
        logq = jax.nn.log_softmax(logits / 1.3)[:, :-1]
        chosen = jnp.take_along_axis(logq, TOKENS[:, 1:, None], axis=-1)[..., 0]
        return jnp.sum(weights[:, 1:] * chosen)

    got, expected = jax.grad(chunked)(f), jax.grad(direct)(f)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, expected
    )


def test_token_logps_gradient_keeps_low_precision_dtypes():
    f = jax.tree.map(lambda x: x.astype(jnp.bfloat16), features(3))
    grads = jax.grad(lambda f: vocab.token_logps(f, TOKENS).sum())(f)
    assert jax.tree.map(lambda x: x.dtype, grads) == jax.tree.map(lambda x: x.dtype, f)


def test_entropy():
    logq = full_logq(features(4))
    expected = shifted(-(np.exp(logq) * logq).sum(-1))
    np.testing.assert_allclose(
        vocab.entropy(features(4), chunk=2 * B), expected, atol=1e-5
    )


def kl(p, q):
    return (np.exp(p) * (p - q)).sum(-1)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_divergence_by_definition(kind):
    student, teacher = features(5), features(6, bias=False)
    q, p = full_logq(student, 1.5), full_logq(teacher, 1.5)
    m = np.log(0.3 * np.exp(p) + 0.7 * np.exp(q))
    expected = {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "jsd": 0.3 * kl(p, m) + 0.7 * kl(q, m),
    }[kind]
    got = vocab.divergence(
        student, teacher, kind=kind, beta=0.3, temperature=1.5, chunk=2 * B
    )
    np.testing.assert_allclose(got, shifted(expected), atol=1e-5)


def test_divergence_of_a_model_with_itself_is_zero_and_stationary():
    f = features(7)
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        value, grads = jax.value_and_grad(
            lambda s, kind=kind: vocab.divergence(s, f, kind=kind).sum()
        )(f)
        assert abs(value) < 1e-5
        assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-5


def test_jsd_endpoints_are_the_two_divergences():
    """JSD / beta -> KL(p || q) as beta -> 0, JSD / (1 - beta) -> KL(q || p) at 1."""
    student, teacher = (
        jax.tree.map(lambda x: 0.5 * x, f) for f in (features(8), features(9))
    )
    small = 1e-2
    jsd = lambda beta: np.asarray(  # noqa: E731
        vocab.divergence(student, teacher, kind="jsd", beta=beta)
    )
    forward = vocab.divergence(student, teacher, kind="forward_kl")
    reverse = vocab.divergence(student, teacher, kind="reverse_kl")
    np.testing.assert_allclose(jsd(small) / small, forward, rtol=0.05, atol=1e-3)
    np.testing.assert_allclose(jsd(1 - small) / small, reverse, rtol=0.05, atol=1e-3)


def test_divergence_trains_the_student_only():
    student, teacher = features(10), features(11)
    grads = jax.grad(lambda t: vocab.divergence(student, t, kind="forward_kl").sum())(
        teacher
    )
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_divergence_gradient_by_finite_differences():
    student, teacher = features(12), features(13)
    direction = features(14).hidden

    def loss(step):
        moved = student._replace(hidden=student.hidden + step * direction)
        return vocab.divergence(moved, teacher, kind="reverse_kl", chunk=B).sum()

    numeric = (loss(jnp.float32(1e-2)) - loss(jnp.float32(-1e-2))) / 2e-2
    assert jax.grad(loss)(jnp.float32(0.0)) == pytest.approx(float(numeric), rel=1e-2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kind": "kl"}, "not one of"),
        ({"kind": "jsd", "beta": 1.0}, "strictly between"),
    ],
)
def test_divergence_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        vocab.divergence(features(0), features(0), **kwargs)
    with pytest.raises(ValueError, match=r"predict .* load both with"):
        vocab.divergence(features(0), features(0, vocabulary=V + 1))


@pytest.mark.parametrize("name", ["token_logps", "entropy", "divergence"])
def test_no_array_of_all_logits(name):
    """Forwards and backwards, temporaries stay far below one [B, T, V] array."""
    b, t, d, v = 4, 128, 8, 8192
    shapes = Features(
        jax.ShapeDtypeStruct((b, t, d), jnp.float32),
        jax.ShapeDtypeStruct((v, d), jnp.float32),
        jax.ShapeDtypeStruct((v,), jnp.float32),
    )

    def loss(f, tokens):
        if name == "token_logps":
            return vocab.token_logps(f, tokens, chunk=32).sum()
        if name == "entropy":
            return vocab.entropy(f, chunk=32).sum()
        return vocab.divergence(f, jax.tree.map(jnp.sin, f), chunk=32).sum()

    tokens = jax.ShapeDtypeStruct((b, t), jnp.int32)
    compiled = jax.jit(jax.grad(loss)).lower(shapes, tokens).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries < b * t * v * 4 / 2
