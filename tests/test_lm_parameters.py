"""Which of a language model's parameters are trained, and how it computes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from tiny import EOS

from jaxqr import models, sharding
from jaxqr.decode import Sampling
from jaxqr.lm import LM, fresh_model

FAMILIES = {"gpt2": tiny.GPT2, "llama": tiny.LLAMA, "t5": tiny.T5}
SAMPLING = Sampling(16, 8)
GREEDY = SAMPLING._replace(temperature=0.0)
QUERIES = [query for query, _ in tiny.TRAIN]


def folder_of(name, folder, **fields):
    """A folder as another project would leave it: without `prompt.json`."""
    model = models.build(dataclasses.replace(FAMILIES[name].config, **fields))
    params = models.init(model, jax.random.key(0))
    tiny.tokenizer().save(folder)
    (folder / "prompt.json").unlink()
    models.save_pretrained(folder, model, params)
    return folder


# Folders


def test_a_model_computes_as_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST", 64)
    folder = folder_of("llama", tmp_path, vocab_size=302)
    lm = LM.load(
        folder, dtype="bfloat16", mesh=sharding.make_mesh(2), remat="dots",
        lora_rank=2, lora_alpha=3.0,
    )  # fmt: skip
    config = lm.model.config
    assert (config.dtype, config.remat) == ("bfloat16", "dots")
    assert (config.lora_rank, config.lora_alpha) == (2, 3.0)
    # Ids beyond the tokenizer's are never predicted; the table splits evenly.
    assert (config.num_tokens, config.vocab_size) == (tiny.VOCAB, 302)
    table = lm.params["params"]["embed"]["embedding"]
    assert table.shape == (384, 32)
    assert {s.data.shape for s in table.addressable_shards} == {(192, 32)}
    assert len(table.sharding.device_set) == 8
    trained, base = lm.partition()
    assert (trained.keys(), base.keys()) == ({"lora"}, {"params"})

    # And without a word it is plain.
    lm = LM.load(folder)
    config = lm.model.config
    assert (config.dtype, config.remat, config.lora_rank) == ("float32", "none", 0)
    assert lm.params["params"]["embed"]["embedding"].shape == (302, 32)
    trained, base = lm.partition()
    assert trained is lm.params
    assert base == {}


def test_fresh_adapters_depend_on_the_seed_and_change_nothing(tmp_path):
    folder = folder_of("gpt2", tmp_path)
    plain, one, same, other = (
        LM.load(folder, lora_rank=rank, seed=seed)
        for rank, seed in ((0, 0), (2, 1), (2, 1), (2, 3))
    )
    tiny.assert_same_bits(one.params, same.params)
    tiny.assert_same_bits(one.params["params"], plain.params["params"])
    differs = jax.tree.map(
        lambda x, y: bool((x != y).any()), one.params["lora"], other.params["lora"]
    )
    assert any(jax.tree.leaves(differs))
    stats = [lm.token_stats(tiny.PAIRS[:3]) for lm in (plain, one)]
    tiny.assert_same_bits(*stats)


def test_adapters_want_a_pretrained_model():
    with pytest.raises(ValueError, match="lora_rank=2: adapters need a pretrained"):
        fresh_model("gpt2-tiny", tiny.tokenizer(), lora_rank=2)


@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny", "t5-tiny", "bert-tiny"])
def test_fresh_models_have_the_tokenizers_ids(name):
    model = fresh_model(name, tiny.tokenizer())
    config = vars(model.config)
    assert config["vocab_size"] == tiny.VOCAB
    ids = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    assert {config.get(name, EOS) for name in ids} == {EOS}
    labeled = fresh_model(name, tiny.tokenizer(), num_labels=4)
    assert labeled.config.num_labels == 4
    assert labeled.config.vocab_size == tiny.VOCAB


# What is trained


def test_other_trained_parameters_leave_the_base_as_it_is(tmp_path):
    """In a model with adapters, and they are merged into what is saved."""
    lm = LM.load(folder_of("gpt2", tmp_path / "folder"), lora_rank=2, lora_alpha=3.0)
    trained, base = lm.partition()
    moved = jax.tree.map(lambda x: x + 0.3, trained)
    after = lm.with_params(moved)
    assert after.partition() == (moved, base)
    assert after.params["params"] is lm.params["params"]
    assert lm.partition()[0] is not moved  # the first is as it was
    tiny.assert_same_bits(models.combine(moved, base), after.params)

    after.save(tmp_path / "merged")
    merged = LM.load(tmp_path / "merged")
    assert merged.params.keys() == {"params"}
    assert "lora" not in json.loads((tmp_path / "merged/config.json").read_text())
    before, changed, again = (
        x.token_stats(tiny.PAIRS[:3]) for x in (lm, after, merged)
    )
    assert np.abs(changed.nll - before.nll).max() > 0.1
    for one, other in zip(changed, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_all_parameters_are_replaced_where_all_are_trained():
    lm, other = tiny.lm(0), tiny.params(1)
    assert lm.partition() == (lm.params, {})
    tiny.assert_same_bits(lm.with_params(other).params, other)


# Rewrites


def texts(rewrites):
    return [[rewrite.text for rewrite in of_query] for of_query in rewrites]


def test_the_sampler_is_not_told_how_long_prompts_are():
    assert Sampling(32, 5, 0.5, 3, 0.9).arguments() == {
        "max_new_tokens": 5,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
    }
    assert Sampling(temperature=0.0).arguments()["temperature"] == 0


# Likelihood


def kl(p, q):
    return np.sum(np.exp(p) * (p - q), axis=-1)
