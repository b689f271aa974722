"""GPT-2 against torch, and the methods that every causal model shares."""

import dataclasses
from functools import partial

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqr import models
from jaxqr.types import Pairs, Prompts


@pytest.fixture(scope="module")
def golden_arrays():
    return golden.load("gpt2")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = golden.write_folder("gpt2", tmp_path_factory.mktemp("gpt2"))
    return models.load_pretrained(folder)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 97, (3, 8), np.int32)


@pytest.fixture(scope="module")
def hidden(gpt2, tokens):
    """Hidden states of the tokens without padding."""
    model, params = gpt2
    return golden.apply(model, params, tokens, np.ones(tokens.shape, bool)).hidden


def assert_close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_logits_are_torchs(gpt2, golden_arrays):
    model, params = gpt2
    tokens = golden_arrays["tokens"].astype(np.int32)
    features = golden.apply(model, params, tokens, np.ones(tokens.shape, bool))
    assert features.bias is None
    logits = features.hidden @ features.unembed.T
    assert_close(logits, golden_arrays["logits"], 1e-4)


@pytest.mark.parametrize("padding", [(3, 0), (0, 3), (2, 1)])
def test_padding_changes_nothing(gpt2, tokens, hidden, padding):
    model, params = gpt2
    around = ((0, 0), padding)
    padded = np.pad(tokens, around, constant_values=5)
    mask = np.pad(np.ones(tokens.shape, bool), around)
    out = golden.apply(model, params, padded, mask).hidden
    assert_close(out[mask], hidden.reshape(-1, hidden.shape[-1]))


def test_a_row_without_tokens_is_finite(gpt2, tokens):
    model, params = gpt2
    mask = np.ones(tokens.shape, bool)
    mask[1] = False

    def loss(params):
        return jnp.square(golden.apply(model, params, tokens, mask).hidden).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_a_cache_changes_nothing(gpt2, tokens):
    model, params = gpt2
    mask = np.ones(tokens.shape, bool)
    mask[1, :2] = False
    mask[2, :3] = False
    expected = golden.apply(model, params, tokens, mask).hidden

    prompts = Prompts(tokens[:, :4], mask[:, :4])
    features, cache = golden.apply(
        model, params, prompts, max_new_tokens=4, method="prefill"
    )
    assert_close(features.hidden, expected[:, 3:4])
    assert cache.layers[0].keys.shape == (3, 4, 8, 8)
    assert cache.position.tolist() == [4, 2, 1]

    step = jax.jit(partial(model.apply, params, method="step"))
    for t in range(4, 8):
        features, cache = step(cache, tokens[:, t])
        assert_close(features.hidden, expected[:, t : t + 1])
    assert step._cache_size() == 1
    assert cache.mask.tolist() == mask.tolist()
    assert cache.slot == 8
    assert cache.position.tolist() == [8, 6, 5]


def test_completion_is_the_end_of_the_sequence(gpt2, tokens):
    model, params = gpt2
    mask = np.ones(tokens.shape, bool)
    mask[1, :2] = False
    mask[2, 6:] = False
    pairs = Pairs(tokens[:, :3], mask[:, :3], tokens[:, 3:], mask[:, 3:])
    features, window, counted = golden.apply(model, params, pairs, method="completion")
    expected = golden.apply(model, params, tokens, mask).hidden[:, 2:]
    assert_close(features.hidden, expected)
    assert window.tolist() == tokens[:, 2:].tolist()
    assert not counted[:, 0].any()
    assert counted[:, 1:].tolist() == mask[:, 3:].tolist()


def test_targets_of_one_source_do_not_see_each_other(gpt2, tokens):
    """Read in one row with their source, they are what each is alone with it."""
    model, params = gpt2
    mask = np.ones(tokens.shape, bool)
    mask[1, :2] = False
    mask[2, 6:] = False
    source, source_mask = tokens[:, :3], mask[:, :3]
    targets = np.stack([tokens[:, 3:], tokens[:, 3:][::-1]], axis=1).reshape(6, 5)
    target_mask = np.stack([mask[:, 3:], mask[:, 3:][::-1]], axis=1).reshape(6, 5)
    both = Pairs(source, source_mask, targets, target_mask)
    hidden, window, counted = golden.apply(model, params, both, method="completion")
    for n in range(2):
        alone = Pairs(source, source_mask, targets[n::2], target_mask[n::2])
        expected = golden.apply(model, params, alone, method="completion")
        assert_close(hidden.hidden[n::2], expected[0].hidden)
        assert window[n::2].tolist() == expected[1].tolist()
        assert counted[n::2].tolist() == expected[2].tolist()
    odd = Pairs(source, source_mask, targets[:5], target_mask[:5])
    with pytest.raises(ValueError, match="5 targets for 3 sources"):
        model.apply(params, odd, method="completion")


def test_bfloat16_is_close(gpt2, tokens, hidden):
    model, params = gpt2
    config = dataclasses.replace(model.config, dtype="bfloat16")
    half = models.build(config)
    mask = np.ones(tokens.shape, bool)
    features = golden.apply(half, params, tokens, mask)
    assert features.hidden.dtype == features.unembed.dtype == jnp.bfloat16
    error = np.linalg.norm(features.hidden.astype(np.float32) - hidden)
    assert 0 < error < 0.03 * np.linalg.norm(hidden)
    _, cache = golden.apply(
        half, params, Prompts(tokens, mask), max_new_tokens=2, method="prefill"
    )
    assert cache.layers[0].keys.dtype == jnp.bfloat16
    features, _ = golden.apply(half, params, cache, tokens[:, 0], method="step")
    assert features.hidden.dtype == jnp.bfloat16

    def loss(params):
        return golden.apply(half, params, tokens, mask).hidden.astype(jnp.float32).sum()

    gradient = jax.eval_shape(jax.grad(loss), params)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_remat_changes_nothing(gpt2, tokens):
    model, params = gpt2
    mask = np.ones(tokens.shape, bool)

    pairs = Pairs(tokens[:, :3], mask[:, :3], tokens[:, 3:], mask[:, 3:])

    def gradient(model):
        def loss(params):
            hidden = model.apply(params, pairs, method="completion")[0].hidden
            return jnp.square(hidden).mean()

        return jax.jit(jax.grad(loss))

    remat = models.build(dataclasses.replace(model.config, remat="full"))
    assert "remat" in str(gradient(remat).trace(params).jaxpr)
    jax.tree.map(assert_close, gradient(remat)(params), gradient(model)(params))


def test_too_many_tokens(gpt2):
    model, params = gpt2
    tokens, mask = np.zeros((1, 25), np.int32), np.ones((1, 25), bool)
    with pytest.raises(ValueError, match=r"25 tokens .* 24 positions"):
        golden.apply(model, params, tokens, mask)
    prompts = Prompts(tokens[:, :20], mask[:, :20])
    with pytest.raises(ValueError, match=r"26 tokens .* 24 positions"):
        golden.apply(model, params, prompts, max_new_tokens=6, method="prefill")


def test_fresh_parameters_differ_by_key():
    model = models.build(models.preset("gpt2-tiny", vocab_size=64))
    one, same, other = (models.init(model, jax.random.key(k)) for k in (0, 0, 1))
    kernel = ("params", "h_0", "attn_proj", "kernel")

    def at(params):
        for name in kernel:
            params = params[name]
        return params

    assert (at(one) == at(same)).all()
    assert (at(one) != at(other)).any()
    # Scaled down by the square root of the 2 * 2 additions to the residual stream.
    assert_close(at(one).std(), 0.01, 0.05)


def test_configs_that_cannot_be():
    with pytest.raises(ValueError, match="128 does not split into 3 heads"):
        models.preset("gpt2-tiny", n_head=3)
    with pytest.raises(ValueError, match=r"no preset 'gpt5'.*gpt2-tiny"):
        models.preset("gpt5")
    with pytest.raises(ValueError, match=r"no model for builtins\.str: .*GPT2Config"):
        models.build("gpt2")


@pytest.mark.filterwarnings("ignore")
def test_logits_are_live_torchs(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = models.preset("gpt2-tiny", vocab_size=101, n_positions=16)
    model = models.build(config)
    params = models.init(model, jax.random.key(3))
    models.save_pretrained(tmp_path, model, params)
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(loading.values())
    tokens = np.random.default_rng(0).integers(0, 101, (2, 12))
    mask = np.ones_like(tokens)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    features = golden.apply(model, params, tokens.astype(np.int32), mask == 1)
    assert_close(features.hidden @ features.unembed.T, expected, 1e-4)
