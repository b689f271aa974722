"""Attention against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqr.models import layers
from jaxqr.models.layers import KeyValues


def reference(queries, keys, values, attend):
    """Attention of every row, query and head on its own."""
    out = np.zeros_like(queries)
    group = queries.shape[2] // keys.shape[2]
    for b, t, h in np.ndindex(queries.shape[:3]):
        seen = attend[b, t]
        scores = keys[b, seen, h // group] @ queries[b, t, h] / queries.shape[3] ** 0.5
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights / weights.sum() @ values[b, seen, h // group]
    return out


def over_a_cache(queries, keys, values, attend):
    """`cached_attention`, with the slots before the heads as `attention` has them."""
    past = KeyValues(keys.swapaxes(1, 2), values.swapaxes(1, 2))
    return layers.cached_attention(queries, past, attend)


@pytest.mark.parametrize("attention", [layers.attention, over_a_cache])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention(attention, length, kv_heads):
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(2, length, 4, 8)).astype(np.float32)
    keys, values = rng.normal(size=(2, 2, 5, kv_heads, 8)).astype(np.float32)
    attend = rng.random((2, length, 5)) < 0.6
    attend[:, :, 1] = True
    out = attention(*map(jnp.array, (queries, keys, values, attend)))
    expected = reference(queries, keys, values, attend)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("attention", [layers.attention, over_a_cache])
def test_attention_that_sees_nothing_is_the_mean(attention):
    key = jax.random.key(0)
    queries, values = jnp.ones((1, 3, 2, 4)), jax.random.normal(key, (1, 5, 2, 4))
    out = attention(queries, values, values, jnp.zeros((1, 3, 5), bool))
    expected = jnp.broadcast_to(values.mean(axis=1, keepdims=True), out.shape)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_what_is_read_is_remembered_from_the_slot_on():
    past, new = jnp.zeros((2, 1, 4, 3)), jnp.ones((2, 1, 1, 3))
    attend = jnp.ones((2, 1, 4), bool)
    _, (keys, values) = layers.attend_and_remember(
        new, new, 2 * new, attend, KeyValues(past, past), jnp.array(2)
    )
    assert keys[:, 0, :, 0].tolist() == [[0, 0, 1, 0]] * 2
    assert values[:, 0, :, 0].tolist() == [[0, 0, 2, 0]] * 2


def test_an_id_outside_the_table_shows():
    table = layers.Embedding(3, 2, "float32", 0.02)
    params = {"params": {"embedding": jnp.ones((3, 2))}}
    assert jnp.isnan(table.apply(params, jnp.array([[3]]))).all()
