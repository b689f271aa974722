"""Hugging Face folders: every spelling of a name, exact round trips, refusals."""

import json
import re
from functools import partial

import golden
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from jaxqr import models, sharding
from jaxqr.models import convert


def assert_equal(one, other):
    """The same parameters, bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Module and parameters of each golden folder."""
    folder = tmp_path_factory.mktemp("originals")
    return {
        name: models.load_pretrained(golden.write_folder(name, folder / name))
        for name in ("gpt2", "llama", "t5_v1_1", "bert")
    }


def edit_config(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_round_trip_is_exact(tmp_path, originals, name):
    model, params = originals[name]
    models.save_pretrained(tmp_path / "new" / "folder", model, params)
    again, loaded = models.load_pretrained(tmp_path / "new" / "folder")
    assert again == model
    assert_equal(loaded, params)
    written = {file.name for file in (tmp_path / "new" / "folder").iterdir()}
    assert written == {"config.json", "model.safetensors"}
    stored = load_file(tmp_path / "new" / "folder" / "model.safetensors")
    assert stored.keys() == golden.tensors(name).keys()


def test_round_trip_of_an_encoder_alone(tmp_path, originals):
    for pooler in (True, False):
        config = models.preset(
            "bert-tiny", vocab_size=11, num_hidden_layers=1, add_pooler=pooler
        )
        model = models.build(config)
        params = models.init(model, jax.random.key(0))
        models.save_pretrained(tmp_path, model, params)  # over the one before
        again, loaded = models.load_pretrained(tmp_path)
        assert again == model
        assert_equal(loaded, params)
        settings = json.loads((tmp_path / "config.json").read_text())
        assert settings["architectures"] == ["BertModel"]


def without_prefix(weights):
    return {k.removeprefix("transformer."): v for k, v in weights.items()}


def with_lm_head(weights):
    return weights | {"lm_head.weight": weights["transformer.wte.weight"].copy()}


def with_buffers(weights):
    buffers = {f"transformer.h.{i}.attn.bias": np.ones((1, 1, 2, 2)) for i in (0, 1)}
    return weights | buffers | {"transformer.h.0.attn.masked_bias": np.ones(1)}


@pytest.mark.parametrize("variant", [without_prefix, with_lm_head, with_buffers])
def test_spellings_of_gpt2(tmp_path, originals, variant):
    weights = variant(golden.tensors("gpt2"))
    folder = golden.write_folder("gpt2", tmp_path, weights)
    assert_equal(models.load_pretrained(folder)[1], originals["gpt2"][1])


def test_spellings_of_bert(tmp_path, originals):
    weights = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in golden.tensors("bert").items()
    }
    weights["bert.embeddings.position_ids"] = np.arange(24)[None]
    weights["cls.seq_relationship.bias"] = np.zeros(2, np.float32)
    folder = golden.write_folder("bert", tmp_path, weights)
    assert_equal(models.load_pretrained(folder)[1], originals["bert"][1])


def write_shards(folder):
    golden.write_folder("gpt2", folder)
    (folder / "model.safetensors").unlink()
    names = sorted(golden.tensors("gpt2"))
    index = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({k: golden.tensors("gpt2")[k] for k in part}, folder / file)
        index |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def test_shards(tmp_path, originals):
    write_shards(tmp_path)
    assert_equal(models.load_pretrained(tmp_path)[1], originals["gpt2"][1])
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names model-00002.*download"):
        models.load_pretrained(tmp_path)


def test_saving_in_several_files(tmp_path, originals):
    """As many as are needed, and none of an earlier save is left over."""
    model, params = originals["llama"]
    names = set()
    for shard_bytes in (10**9, 20_000, 40_000, 10**9):
        models.save_pretrained(tmp_path, model, params, shard_bytes=shard_bytes)
        files = {file.name: file for file in tmp_path.glob("*.safetensors")}
        names.add(len(files))
        if len(files) > 1:
            index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
            stored = {k: v for f in files.values() for k, v in load_file(f).items()}
            total = sum(x.nbytes for x in stored.values())
            assert index["metadata"]["total_size"] == total
            assert index["weight_map"].keys() == stored.keys()
            assert set(index["weight_map"].values()) == files.keys()
            largest = max(x.nbytes for x in stored.values())
            sizes = [f.stat().st_size for f in files.values()]
            assert max(sizes) < max(shard_bytes, largest) + 4000
        assert len([*tmp_path.iterdir()]) == len(files) + 1 + (len(files) > 1)
        again, loaded = models.load_pretrained(tmp_path)
        assert again == model
        assert_equal(loaded, params)
    assert len(names) == 3


@pytest.mark.parametrize("name", ["llama", "t5_v1_1"])
def test_every_device_reads_its_own_part(tmp_path, originals, name, monkeypatch):
    """Of tensors that are split, nothing is read twice and nothing as a whole."""
    read = []

    class Spy:
        def __init__(self, stored):
            self.stored = stored
            self.get_shape, self.get_dtype = stored.get_shape, stored.get_dtype

        def __getitem__(self, index):
            part = self.stored[index]
            read.append((self, part.size))
            return part

    opened = convert.open_tensors
    monkeypatch.setattr(
        convert,
        "open_tensors",
        lambda *args: {k: Spy(x) for k, x in opened(*args).items()},
    )
    monkeypatch.setattr(sharding, "SMALLEST", 64)
    mesh = sharding.make_mesh(4)
    model, params = originals[name]
    folder = tmp_path / "folder"
    models.save_pretrained(folder, model, params, shard_bytes=30_000)
    _, loaded = models.load_pretrained(
        folder, place=partial(sharding.placement, mesh=mesh), vocab_multiple=4
    )
    split = 0
    for x in jax.tree.leaves(loaded):
        assert x.sharding == sharding.placement(x, mesh)
        assert len(x.sharding.device_set) == 8
        split += not x.is_fully_replicated
    assert split > 10
    for spy in {spy for spy, _ in read}:
        sizes = [size for other, size in read if other is spy]
        whole = int(np.prod(spy.get_shape()))
        assert sum(sizes) == whole
        if len(spy.get_shape()) == 2 and whole >= 64:
            assert max(sizes) <= -(-whole // 4) + 32
    trimmed = jax.tree.map(lambda x, y: np.asarray(x)[: len(y)], loaded, params)
    assert_equal(trimmed, params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened(tmp_path, originals, dtype):
    weights = {k: v.astype(dtype) for k, v in golden.tensors("gpt2").items()}
    _, params = models.load_pretrained(golden.write_folder("gpt2", tmp_path, weights))
    expected = jax.tree.map(
        lambda x: np.asarray(x).astype(dtype).astype(np.float32), originals["gpt2"][1]
    )
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert_equal(params, expected)


def test_overrides(tmp_path, originals):
    folder = golden.write_folder("gpt2", tmp_path)
    model, params = models.load_pretrained(folder, dtype="bfloat16", remat="full")
    assert model.config.dtype == "bfloat16"
    assert model.config.remat == "full"
    assert_equal(params, originals["gpt2"][1])


def test_a_fresh_head(tmp_path, originals):
    head = ("bert.pooler.", "classifier.")
    encoder = golden.tensors("bert")
    encoder = {k: v for k, v in encoder.items() if not k.startswith(head)}
    folder = golden.write_folder("bert", tmp_path, encoder)
    model, params = models.load_pretrained(folder)
    assert (model.config.num_labels, model.config.add_pooler) == (0, False)
    with pytest.raises(
        ValueError, match=r"classifier.weight: expected \(5, 32\), fo.*key="
    ):
        models.load_pretrained(folder, num_labels=5)

    key = jax.random.key(7)
    model, headed = models.load_pretrained(folder, num_labels=5, key=key)
    fresh = models.init(model, key)["params"]
    for name in ("pooler", "classifier"):
        assert_equal(headed["params"].pop(name), fresh[name])
    assert_equal(headed, params)


def test_a_head_left_out(tmp_path, originals):
    folder = golden.write_folder("bert", tmp_path)
    _, params = models.load_pretrained(folder, num_labels=0, add_pooler=False)
    expected = dict(originals["bert"][1]["params"])
    del expected["pooler"], expected["classifier"]
    assert_equal(params["params"], expected)


def changed(name, value):
    weights = golden.tensors("gpt2")
    weights[name] = value
    return weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            changed("transformer.h.1.mlp.c_fc.weight", np.zeros((48, 32), np.float32)),
            r"h.1.mlp.c_fc.weight: expected \(32, 48\), found \(48, 32\)",
        ),
        (
            changed("extra.weight", np.zeros((2, 32), np.float32)),
            r"extra.weight: expected none, found \(2, 32\)",
        ),
        (
            changed("lm_head.weight", np.zeros((97, 32), np.float32)),
            "lm_head.weight differs from wte.weight",
        ),
        (
            {k: v for k, v in golden.tensors("gpt2").items() if "ln_f.bias" not in k},
            r"ln_f.bias: expected \(32,\), found none",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, weights, message):
    folder = golden.write_folder("gpt2", tmp_path, weights)
    with pytest.raises(ValueError, match=message):
        models.load_pretrained(folder, key=jax.random.key(0))


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist.*folder"):
        models.load_pretrained(tmp_path / "nowhere")
    folder = golden.write_folder("gpt2", tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"not a whole safetensors file.*again"):
        models.load_pretrained(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        models.load_pretrained(folder)
    edit_config(folder, activation_function="relu")
    with pytest.raises(ValueError, match=r"activation_function 'relu'.*'gelu_new'"):
        models.load_pretrained(folder)
    edit_config(folder, model_type="mamba")
    with pytest.raises(
        ValueError, match="model_type 'mamba'; supported are bert, gpt2, llama, t5"
    ):
        models.load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        models.load_pretrained(folder)


def test_params_of_another_model(tmp_path, originals):
    model, params = originals["gpt2"]
    wrong = {"params": params["params"] | {"ln_f": {"scale": jnp.ones(32)}}}
    with pytest.raises(ValueError, match=r"ln_f/bias differ"):
        models.save_pretrained(tmp_path / "folder", model, wrong)
    assert not (tmp_path / "folder").exists()


def test_a_failed_save_leaves_the_old_folder(tmp_path, originals, monkeypatch):
    model, params = originals["gpt2"]
    models.save_pretrained(tmp_path, model, params)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("jaxqr.models.convert.json.dumps", full_disk)
    doubled = jax.tree.map(lambda x: 2 * x, params)
    with pytest.raises(OSError, match="no space"):
        models.save_pretrained(tmp_path, model, doubled)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


SHALLOW = {
    "gpt2-tiny": {"n_layer": 5},
    "llama-tiny": {"num_hidden_layers": 5},
    "bert-tiny": {"num_hidden_layers": 5},
    "t5-tiny": {"num_layers": 5, "num_decoder_layers": 4},
}


@pytest.mark.parametrize("name", SHALLOW)
def test_some_layers_of_a_stored_model(tmp_path, name):
    model = models.build(models.preset(name, vocab_size=16, **SHALLOW[name]))
    params = models.init(model, jax.random.key(0))
    models.save_pretrained(tmp_path, model, params)
    fewer, kept = models.load_pretrained(tmp_path, layers=3)
    whole = flatten_dict(params["params"], sep="/")
    for ours, x in flatten_dict(kept["params"], sep="/").items():
        if found := re.fullmatch(r"(\w+)_(\d)/(.+)", ours):
            stack, i, rest = found.groups()
            # of 5 layers the outer ones and the middle; of 4 the 1.5th is rounded to 2
            ours = f"{stack}_{(0, 2, 3 if stack == 'decoder' else 4)[int(i)]}/{rest}"
        np.testing.assert_array_equal(x, whole[ours])
    assert jax.tree.structure(kept) == jax.tree.structure(
        models.init(models.build(fewer.config), jax.random.key(0))
    )
    for layers in (1, 6):
        with pytest.raises(ValueError, match=f"{layers} layers cannot be kept of "):
            models.load_pretrained(tmp_path, layers=layers)
