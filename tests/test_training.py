"""Models in and out of the experiments: how they compute, what their prompts are."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny

from experiments import training
from experiments.training import Optimisation, PromptConfig
from jaxqr import models
from jaxqr.train import sharding

FAMILIES = {"gpt2": tiny.GPT2, "llama": tiny.LLAMA, "t5": tiny.T5}


def folder_of(name, folder, **fields):
    """A folder as another project would leave it: without `prompt.json`."""
    model = models.build(dataclasses.replace(FAMILIES[name].config, **fields))
    params = models.init(model, jax.random.key(0))
    tiny.tokenizer().save(folder)
    (folder / "prompt.json").unlink()
    models.save_pretrained(folder, model, params)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_follows_the_model(name, tmp_path):
    folder = folder_of(name, tmp_path)
    kind = "prefix" if name == "t5" else "completion"
    model, params, tokenizer = training.load_model(folder)
    assert tokenizer.prompt.kind == kind
    # It is kept, and what is kept counts, unless something else is asked for.
    asked = PromptConfig("prefix", "find: ")
    _, _, tokenizer = training.load_model(folder, prompting=asked)
    assert tokenizer.prompt.parts[0] == "find: "
    training.export(folder, model, params, tokenizer)
    assert training.load_model(folder)[2].prompt == tokenizer.prompt
    asked = PromptConfig("prefix", "search: ")
    assert training.load_model(folder, prompting=asked)[2].prompt.parts[0] == "search: "
    with pytest.raises(ValueError, match="no chat template"):
        training.load_model(folder, prompting=PromptConfig("chat"))


def test_a_model_computes_as_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST", 64)
    folder = folder_of("llama", tmp_path, vocab_size=302)
    how = Optimisation(
        1, 1, 1e-3, fsdp=2, dtype="bfloat16", remat="dots", lora_rank=2, lora_alpha=3.0
    )
    model, params, _ = training.load_model(folder, how)
    config = model.config
    assert (config.dtype, config.remat) == ("bfloat16", "dots")
    assert (config.lora_rank, config.lora_alpha) == (2, 3.0)
    # Ids beyond the tokenizer's are never predicted; the table splits evenly.
    assert (config.num_tokens, config.vocab_size) == (tiny.VOCAB, 302)
    table = params["params"]["embed"]["embedding"]
    assert table.shape == (384, 32)
    assert {s.data.shape for s in table.addressable_shards} == {(192, 32)}
    assert len(table.sharding.device_set) == 8
    assert params["lora"]

    # A frozen one has no adapters and stores nothing to recompute.
    model, params, _ = training.load_model(folder, how, frozen=True)
    config = model.config
    assert (config.dtype, config.remat, config.lora_rank) == ("bfloat16", "none", 0)
    assert "lora" not in params

    # And without a word it is plain.
    model, params, _ = training.load_model(folder)
    assert model.config.dtype == "float32"
    assert params["params"]["embed"]["embedding"].shape == (302, 32)


def test_a_stage_computes_again_as_it_did(tmp_path):
    folder_of("t5", tmp_path / "model")
    how = Optimisation(3, 4, 1e-3, dtype="bfloat16", lora_rank=2)
    settings = {"optimisation": dataclasses.asdict(how), "k": 3}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    model, params, _, again = training.load_stage(tmp_path)
    assert again == how
    assert (model.config.dtype, model.config.lora_rank) == ("bfloat16", 0)
    assert params.keys() == {"params"}


def test_folders_that_do_not_fit_their_tokenizer(tmp_path):
    folder = folder_of("gpt2", tmp_path / "ends", eos_token_id=7)
    with pytest.raises(ValueError, match=r"ends texts with token 7, the tokenizer.* 0"):
        training.load_model(folder)
    folder = folder_of("gpt2", tmp_path / "several", eos_token_id=(7, tiny.EOS))
    model, _, tokenizer = training.load_model(folder)
    assert model.config.eos_token_id == (7, 0)
    assert tokenizer.eos == 0
    folder = folder_of("t5", tmp_path / "few", vocab_size=290)
    with pytest.raises(ValueError, match="tokenizer has 300 ids, the model 290"):
        training.load_model(folder)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder: give the"):
        training.load_model(tmp_path / "nowhere")


def test_folders_that_write_no_text(tmp_path):
    """Refused before anything is read."""
    for name, fields in (("t5", {"num_labels": 4}), ("llama", {"num_labels": 4})):
        folder = folder_of(name, tmp_path / name, **fields)
        with pytest.raises(ValueError, match="classifier, which writes no text"):
            training.load_model(folder)
    tiny.tokenizer().save(tmp_path / "bert")
    bert = models.build(dataclasses.replace(tiny.BERT.config, num_labels=0))
    params = models.init(bert, jax.random.key(0))
    models.save_pretrained(tmp_path / "bert", bert, params)
    with pytest.raises(ValueError, match="Bert encoder, which writes no text"):
        training.load_model(tmp_path / "bert")


def test_adapters_want_a_pretrained_model():
    with pytest.raises(ValueError, match="lora_rank=2: adapters need a pretrained"):
        training.fresh_model("gpt2-tiny", tiny.tokenizer(), lora_rank=2)


@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny", "t5-tiny", "bert-tiny"])
def test_fresh_models_have_the_tokenizers_ids(name):
    model = training.fresh_model(name, tiny.tokenizer())
    config = vars(model.config)
    assert config["vocab_size"] == tiny.VOCAB
    ids = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    assert {config.get(name, tiny.EOS) for name in ids} == {tiny.EOS}
    labelled = training.fresh_model(name, tiny.tokenizer(), num_labels=4)
    assert labelled.config.num_labels == 4
    assert np.array_equal(labelled.config.vocab_size, tiny.VOCAB)
