"""Every family against transformers: stored logits, and live ones where torch is."""

import json
from functools import partial

import golden
import jax
import numpy as np
import pytest
import tiny

from jaxqr import models
from jaxqr.types import Pairs

TOLERANCE = 1e-4
RNG = np.random.default_rng(0)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def logits_of(features):
    return np.asarray(features.hidden @ features.unembed.T)


def padded(rows, length, tokens=tiny.VOCAB):
    """Random texts; one is padded on the left, one on the right."""
    mask = np.ones((rows, length), bool)
    mask[1, : length // 4] = False
    mask[2, length - length // 3 :] = False
    return RNG.integers(4, tokens, mask.shape).astype(np.int32), mask


# Stored


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logits_are_the_stored_ones(name, tmp_path):
    arrays = golden.load(name)
    model, params = models.load_pretrained(golden.write_folder(name, tmp_path))
    tokens = arrays["tokens"].astype(np.int32)
    features = golden.apply(model, params, tokens, np.ones(tokens.shape, bool))
    assert features.bias is None
    assert_close(logits_of(features), arrays["logits"])
    if name == "llama":
        assert model.config.eos_token_id == (0, 3)
        assert model.config.rope_scaling.original_max_position_embeddings == 16
        # Without the scaling it is another model.
        plain = models.build(models.LlamaConfig(**vars(model.config) | {
            "rope_scaling": None
        }))  # fmt: skip
        features = golden.apply(plain, params, tokens, np.ones(tokens.shape, bool))
        assert np.abs(logits_of(features) - arrays["logits"]).max() > 0.1


@pytest.mark.parametrize("name", ["t5", "t5_v1_1"])
def test_t5s_logits_are_the_stored_ones(name, tmp_path):
    arrays = golden.load(name)
    model, params = models.load_pretrained(golden.write_folder(name, tmp_path))
    assert model.config.tied is model.config.scale_decoder_outputs is (name == "t5")
    source, target = (arrays[k].astype(np.int32) for k in ("source", "target"))
    pairs = Pairs(source, arrays["mask"], target, np.ones(target.shape, bool))
    features, _, _ = golden.apply(model, params, pairs, method="completion")
    assert_close(logits_of(features)[:, :-1], arrays["logits"])


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "t5_v1_1", "bert"])
def test_stored_folders_come_out_as_they_went_in(name, tmp_path):
    first = golden.write_folder(name, tmp_path / "first")
    model, params = models.load_pretrained(first)
    models.save_pretrained(tmp_path / "second", model, params)
    again, loaded = models.load_pretrained(tmp_path / "second")
    assert again == model
    tiny.assert_same_bits(loaded, params)
    from safetensors.numpy import load_file

    stored = load_file(tmp_path / "second" / "model.safetensors")
    before = golden.tensors(name)
    assert stored.keys() == before.keys()
    assert all((stored[key] == before[key]).all() for key in before)


# Live

SCALED = {"rope_theta": 500_000.0}
LLAMAS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": None},
    "wide heads": {"head_dim": 16},
    "3.1": SCALED | {"rope_scaling": models.RopeScaling(8.0, 1.0, 4.0, 64)},
    "3.2": SCALED | {
        "rope_scaling": models.RopeScaling(32.0, 1.0, 4.0, 64),
        "tie_word_embeddings": True,
    },
}  # fmt: skip
T5S = {
    "1.0": {
        "feed_forward_proj": "relu", "tied": True, "scale_decoder_outputs": True,
    },
    "1.1": {},
    "uneven": {"num_decoder_layers": 3, "num_heads": 3},
}  # fmt: skip


def gpt2(**fields):
    ids = {"vocab_size": tiny.VOCAB, "bos_token_id": 2, "eos_token_id": 2}
    return models.preset("gpt2-tiny", n_positions=64, **ids | fields)


def llama(**fields):
    return models.preset(
        "llama-tiny",
        **{
            "vocab_size": tiny.VOCAB, "hidden_size": 32, "intermediate_size": 48,
            "max_position_embeddings": 256, "tie_word_embeddings": False,
            "eos_token_id": (2, 3),
        } | fields,
    )  # fmt: skip


def t5(**fields):
    sizes = {"vocab_size": tiny.VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48}
    return models.preset("t5-tiny", **sizes | fields)


@pytest.fixture
def both(tmp_path):
    """Makes a model here, and the same one in transformers, through a folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def make(config, cls):
        model = models.build(config)
        # T5's unscaled attention turns larger weights into a chaos of its own.
        params = tiny.scrambled(models.init(model, jax.random.key(0)), 0.15)
        models.save_pretrained(tmp_path / "ours", model, params)
        theirs, loading = getattr(transformers, cls).from_pretrained(
            tmp_path / "ours", output_loading_info=True
        )
        assert not any(loading.values())
        # And back, from the folder that transformers writes.
        theirs.save_pretrained(tmp_path / "theirs")
        again, loaded = models.load_pretrained(tmp_path / "theirs")
        tiny.assert_same_bits(loaded, params)
        return again, loaded, partial(outputs, torch, theirs.eval())

    return make


def outputs(torch, model, **inputs):
    with torch.no_grad():
        tensors = {k: torch.tensor(np.asarray(v)).long() for k, v in inputs.items()}
        return model(**tensors).logits.numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("version", LLAMAS)
def test_llamas_logits_are_live_torchs(both, version):
    model, params, theirs = both(llama(**LLAMAS[version]), "LlamaForCausalLM")
    tokens, mask = padded(3, 200)  # three times the original context of 3.1 and 3.2
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    expected = theirs(input_ids=tokens, attention_mask=mask, position_ids=positions)
    ours = logits_of(golden.apply(model, params, tokens, mask))
    assert_close(ours[mask], expected[mask])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("version", T5S)
def test_t5s_logits_are_live_torchs(both, version):
    model, params, theirs = both(t5(**T5S[version]), "T5ForConditionalGeneration")
    source, mask = padded(3, 200)  # beyond the largest distance, 128
    target, _ = padded(3, 150)
    pairs = Pairs(source, mask, target, np.ones(target.shape, bool))
    features, window, _ = golden.apply(model, params, pairs, method="completion")
    expected = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=window)
    assert_close(logits_of(features), expected)


@pytest.mark.filterwarnings("ignore")
def test_gpt2s_logits_are_live_torchs(both):
    model, params, theirs = both(gpt2(), "GPT2LMHeadModel")
    tokens, mask = padded(3, 60)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    expected = theirs(input_ids=tokens, attention_mask=mask, position_ids=positions)
    ours = logits_of(golden.apply(model, params, tokens, mask))
    assert_close(ours[mask], expected[mask])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "cls"), [(gpt2, "GPT2"), (llama, "Llama")])
def test_classes_are_live_torchs(both, make, cls):
    """Theirs tell padding by its id, which stands at no other place here."""
    model, params, theirs = both(make(num_labels=3), f"{cls}ForSequenceClassification")
    tokens, mask = padded(3, 40)
    mask[1] = True
    pad = model.config.eos_token_id
    pad = pad[0] if isinstance(pad, tuple) else pad
    tokens = np.where(mask, tokens, pad)
    expected = theirs(input_ids=tokens, attention_mask=mask)
    ours = golden.apply(model, params, tokens, mask, mask * 0, method="classify")
    assert_close(ours, expected)


@pytest.mark.filterwarnings("ignore")
def test_t5s_classes_are_live_torchs(both):
    model, params, theirs = both(t5(num_labels=3), "T5ForTokenClassification")
    tokens, mask = padded(3, 40)
    by_token = theirs(input_ids=tokens, attention_mask=mask)
    expected = (by_token * mask[..., None]).sum(axis=1) / mask.sum(axis=1)[:, None]
    ours = golden.apply(model, params, tokens, mask, mask * 0, method="classify")
    assert_close(ours, expected)


def test_both_spellings_of_the_rotary_settings(tmp_path):
    """`rope_scaling` of the hub's folders, `rope_parameters` of transformers 5."""
    folder = golden.write_folder("llama", tmp_path)
    expected, _ = models.load_pretrained(folder)
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    rope = settings.pop("rope_parameters")
    settings |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    file.write_text(json.dumps(settings))
    assert models.load_pretrained(folder)[0] == expected
    rope["type"] = rope.pop("rope_type")
    file.write_text(json.dumps(settings))
    assert models.load_pretrained(folder)[0] == expected
    rope["type"] = "yarn"
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"config\.json: rope_type 'yarn'; supported"):
        models.load_pretrained(folder)
