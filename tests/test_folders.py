"""Hugging Face folders as people have them: read as transformers does, or refused.

A refusal is one or two lines that say what is wrong and what to do.
"""

import json
from functools import cache
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import golden
import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from jaxqr import models

KEY = jax.random.key(1)


def edit_config(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def refusal(folder, kind=ValueError, **options):
    """The message with which a folder is refused: short, and with the folder in it."""
    with pytest.raises(kind) as caught:
        models.load_pretrained(folder, **options)
    message = str(caught.value)
    assert message.count("\n") <= 1
    assert len(message.replace(str(folder), "FOLDER")) < 600, message
    assert str(folder) in message
    return message


def write(folder, name, weights=None):
    return golden.write_folder(name, folder / name, weights)


def same(folder, usual):
    """Whether a folder loads to what is usual, bit for bit."""
    model, params = models.load_pretrained(folder)
    tiny.assert_same_bits(params, usual[1])
    return model == usual[0]


@cache
def whole(name):
    """What the golden folder loads to, of a Llama with its embeddings tied."""
    with TemporaryDirectory() as temporary:
        return models.load_pretrained(tied(name, Path(temporary), TIES[name][:1]))


# Tied tensors

LLAMA = {"tie_word_embeddings": True}
T5_NAMES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
TIES = {
    "gpt2": ("transformer.wte.weight", ("lm_head.weight",)),
    "llama": ("model.embed_tokens.weight", ("lm_head.weight",)),
    "t5": ("shared.weight", (*T5_NAMES, "lm_head.weight")),
    "t5_v1_1": ("shared.weight", T5_NAMES),
}
KEPT = [
    (name, kept)
    for name, (usual, others) in TIES.items()
    for count in sorted({1, 2, len(others) + 1})
    for kept in combinations((usual, *others), count)
]


def tied(name, folder, kept, spoilt=None):
    """A golden folder in which the tied tensor has these names alone."""
    weights = golden.tensors(name)
    usual, others = TIES[name]
    tensor = weights[usual]
    weights = {k: v for k, v in weights.items() if k not in (usual, *others)}
    weights |= {k: tensor + (k == spoilt) for k in kept}
    golden.write_folder(name, folder, weights)
    if name == "llama":
        edit_config(folder, **LLAMA)
    return folder


@pytest.mark.parametrize(("name", "kept"), KEPT)
def test_a_tied_tensor_under_any_of_its_names(tmp_path, name, kept):
    assert same(tied(name, tmp_path, kept), whole(name))


@pytest.mark.parametrize(("name", "kept"), [k for k in KEPT if len(k[1]) > 1])
def test_tied_tensors_that_differ(tmp_path, name, kept):
    folder = tied(name, tmp_path, kept, spoilt=kept[-1])
    message = refusal(folder)
    short = [k.removeprefix("transformer.").removeprefix("model.") for k in kept]
    assert f"{short[-1]} differs from " in message
    assert message.split(" differs from ")[1].split(";")[0] in short


def test_a_tied_tensor_that_is_not_there_at_all(tmp_path):
    for name in ("gpt2", "llama", "t5"):
        message = refusal(tied(name, tmp_path / name, ()))
        assert "(1 missing)" in message


@pytest.mark.parametrize(
    "kept", [("shared.weight",), T5_NAMES[1:], ("lm_head.weight",)]
)
def test_t5_1_1_with_one_embedding(tmp_path, kept):
    """transformers 5 ties it, unless both embeddings are there."""
    weights = golden.tensors("t5_v1_1")
    table = weights.pop("shared.weight")
    del weights["lm_head.weight"]
    folder = golden.write_folder("t5_v1_1", tmp_path, weights | {kept[0]: table})
    model, params = models.load_pretrained(folder)
    assert (model.config.tied, model.config.scale_decoder_outputs) == (True, False)
    np.testing.assert_array_equal(params["params"]["shared"]["embedding"], table)


def test_a_tied_classifier(tmp_path):
    """T5ForTokenClassification, as `save_model` writes it."""
    config = models.preset("t5-tiny", vocab_size=64, d_model=16, d_kv=8, num_labels=3)
    model = models.build(config)
    params = models.init(model, KEY)
    models.save_pretrained(tmp_path, model, params)
    weights = load_file(tmp_path / "model.safetensors")
    table = weights.pop("transformer.shared.weight")
    weights["transformer.encoder.embed_tokens.weight"] = table
    save_file(weights, tmp_path / "model.safetensors")
    tiny.assert_same_bits(models.load_pretrained(tmp_path)[1], params)


# Parts


def parts(folder, held, index=None):
    """GPT-2 in parts: file -> names; `index` in place of the one that is right."""
    golden.write_folder("gpt2", folder)
    (folder / "model.safetensors").unlink()
    weights = golden.tensors("gpt2")
    for file, names in held.items():
        save_file({k: weights.get(k, np.zeros(2)) for k in names}, folder / file)
    right = {name: file for file, names in held.items() for name in names}
    text = json.dumps({"weight_map": right if index is None else index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NAMES = sorted(golden.tensors("gpt2"))
HELD = {A: NAMES[::2], B: NAMES[1::2]}
RIGHT = {name: file for file, names in HELD.items() for name in names}


def test_an_index_counts_and_nothing_else(tmp_path):
    usual = whole("gpt2")
    # Files of an earlier save, and another copy of a tensor in another part.
    folder = parts(tmp_path / "stale", HELD)
    stale = {k: v + 1 for k, v in golden.tensors("gpt2").items()}
    save_file(stale, folder / "model-00001-of-00003.safetensors")
    assert same(folder, usual)
    twice = {k: golden.tensors("gpt2")[k] for k in HELD[A]} | {
        NAMES[1]: stale[NAMES[1]]
    }
    save_file(twice, folder / A)
    assert same(folder, usual)
    # The index has a name that no file has, and nobody needs, or lacks one.
    index = RIGHT | {"lm_head.weight": A, "transformer.h.0.attn.bias": B}
    assert same(parts(tmp_path / "more", HELD, index), usual)
    index = {k: v for k, v in RIGHT.items() if k != NAMES[3]}
    assert same(parts(tmp_path / "less", HELD, index), usual)
    # One file as well as an index: the file, as in transformers.
    folder = parts(tmp_path / "both", {A: NAMES})
    save_file(stale, folder / A)
    save_file(golden.tensors("gpt2"), folder / "model.safetensors")
    assert same(folder, usual)


def test_parts_that_are_not_whole(tmp_path):
    held = {A: HELD[A], B: HELD[B][1:]}
    message = refusal(parts(tmp_path / "a", held, RIGHT))
    assert f"{NAMES[1].removeprefix('transformer.')}: expected" in message
    held = HELD | {B: [*HELD[B], "other.weight"]}
    assert "other.weight: expected none, found (2,)" in refusal(
        parts(tmp_path / "b", held)
    )
    held = {A: HELD[A], B: [*HELD[B], NAMES[0]]}
    unsure = {k: v for k, v in RIGHT.items() if k != NAMES[0]}
    message = refusal(parts(tmp_path / "c", held, unsure))
    assert f"stores {NAMES[0]} in {A} and in {B}" in message
    folder = parts(tmp_path / "d", HELD, RIGHT | {NAMES[0]: "model-3.safetensors"})
    assert "names model-3.safetensors" in refusal(folder, FileNotFoundError)
    for index in ({}, [], None):
        text = json.dumps({"weight_map": index})
        (folder / "model.safetensors.index.json").write_text(text)
        assert "names no files" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "is a JSON list, expected an object" in refusal(folder)
    (folder / "model.safetensors.index.json").unlink()
    message = refusal(folder, FileNotFoundError)
    assert f"only {A}, {B}: download model.safetensors.index.json too" in message


def test_a_tensor_with_and_without_its_prefix(tmp_path):
    weights = golden.tensors("gpt2")
    weights["ln_f.bias"] = weights["transformer.ln_f.bias"]
    folder = write(tmp_path, "gpt2", weights)
    assert "ln_f.bias twice, as ln_f.bias and as transformer.ln_f.bias" in refusal(
        folder
    )


# Files that hold something else


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (["pytorch_model.bin"], "pickled weights are not read: load the folder with"),
        (
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"],
            "pickled",
        ),
        (["tf_model.h5"], "TensorFlow's weights are not read"),
        (["flax_model.msgpack"], "Flax's weights are not read"),
        (["model-q4_k_m.gguf"], "GGUF weights are quantized"),
        (["model.fp16.safetensors"], "rename it to model.safetensors"),
        (["training_args.bin"], "download the folder's safetensors files"),
        ([], "download the folder's safetensors files"),
    ],
)
def test_weights_in_other_files(tmp_path, files, advice):
    folder = write(tmp_path, "gpt2")
    (folder / "model.safetensors").unlink()
    for file in files:
        (folder / file).write_bytes(b"...")
    message = refusal(folder, FileNotFoundError)
    assert advice in message
    assert files[:1] != ["pytorch_model.bin"] or "only pytorch_model.bin" in message
    with pytest.raises(FileNotFoundError, match="neither"):
        models.load_config(folder)


def test_a_gguf_file_alone(tmp_path):
    (tmp_path / "model-q4_k_m.gguf").write_bytes(b"GGUF")
    message = refusal(tmp_path, FileNotFoundError)
    assert "there is model-q4_k_m.gguf: GGUF weights are quantized" in message


def test_adapters_without_their_base(tmp_path):
    folder = write(tmp_path, "gpt2")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "PEFT adapter" in refusal(folder)
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink()
    save_file({"lora_A.weight": np.zeros(2)}, folder / "adapter_model.safetensors")
    assert "merge_and_unload" in refusal(folder)


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n"
)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_pointers_of_git(tmp_path, file):
    folder = write(tmp_path, "gpt2")
    (folder / file).write_bytes(POINTER)
    assert f"{file} is a Git LFS pointer, not the file itself: run" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>", b"\x80\x02}q\x00."])
def test_files_that_are_no_safetensors(tmp_path, content):
    folder = write(tmp_path, "gpt2")
    (folder / "model.safetensors").write_bytes(content)
    assert "not a whole safetensors file" in refusal(folder)


def test_files_that_are_no_json(tmp_path):
    folder = write(tmp_path, "gpt2")
    text = (folder / "config.json").read_text()
    for content in (b"", text[:40].encode(), text.encode("utf-16"), b"[1, 2]", b'"x"'):
        (folder / "config.json").write_bytes(content)
        assert "config.json is " in refusal(folder)
    # An editor's byte order mark is no fault.
    (folder / "config.json").write_bytes(text.encode("utf-8-sig"))
    assert models.load_config(folder).n_embd == 32


# Quantized weights


@pytest.mark.parametrize(
    "method", [{"quant_method": "gptq", "bits": 4}, {"load_in_8bit": True}, "fp8"]
)
def test_a_config_of_quantized_weights(tmp_path, method):
    folder = write(tmp_path, "gpt2")
    edit_config(folder, quantization_config=method)
    message = refusal(folder)
    assert "stored quantized (quantization_config in config.json: " in message
    assert "dequantize()" in message
    with pytest.raises(ValueError, match="quantized"):
        models.load_config(folder)
    edit_config(folder, quantization_config=None)
    assert models.load_config(folder).n_embd == 32


def packed(name, weights, how):
    """One map of a model as tools store it."""
    stem, tensor = name.removesuffix(".weight"), weights.pop(name)
    match how:
        case "gptq":
            weights[f"{stem}.qweight"] = np.zeros((4, 96), np.int32)
            weights[f"{stem}.scales"] = np.zeros((1, 96), np.float16)
        case "int8":
            weights[name] = tensor.astype(np.int8)
            weights[f"{stem}.SCB"] = np.zeros(32, np.float32)
        case "nf4":
            weights[name] = np.zeros((tensor.size // 2, 1), np.uint8)
            weights[f"{name}.quant_state.bitsandbytes__nf4"] = np.zeros(9, np.uint8)
        case "fp8":
            weights[name] = tensor.astype(ml_dtypes.float8_e4m3fn)
        case "plain integers":
            weights[name] = tensor.astype(np.int64)
        case "bits":
            weights[name] = tensor > 0
    return weights


@pytest.mark.parametrize(
    "how", ["gptq", "int8", "nf4", "fp8", "plain integers", "bits"]
)
@pytest.mark.parametrize(
    ("name", "map_"),
    [
        ("gpt2", "transformer.h.1.mlp.c_fc.weight"),
        ("bert", "bert.encoder.layer.0.output.dense.weight"),
        ("llama", "lm_head.weight"),
    ],
)
def test_integers_are_never_read_as_floats(tmp_path, name, map_, how):
    weights = packed(map_, golden.tensors(name), how)
    message = refusal(write(tmp_path, name, weights))
    assert "the weights are stored quantized" in message
    assert "dequantize()" in message


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_every_float_is_read(tmp_path, name, dtype):
    narrow = {k: v.astype(dtype) for k, v in golden.tensors(name).items()}
    wide = {k: v.astype(np.float32) for k, v in narrow.items()}
    one, two = write(tmp_path / "1", name, narrow), write(tmp_path / "2", name, wide)
    edit_config(one, torch_dtype=np.dtype(dtype).name)
    assert same(one, models.load_pretrained(two))


# Heads

HEADED = {
    "bert": ("bert-tiny", {"hidden_size": 16, "intermediate_size": 32}, "classifier"),
    "gpt2": ("gpt2-tiny", {"n_embd": 16, "n_head": 2}, "score"),
    "llama": ("llama-tiny", {"hidden_size": 16, "intermediate_size": 32}, "score"),
    "t5": ("t5-tiny", {"d_model": 16, "d_kv": 8, "d_ff": 32}, "classifier"),
}


@pytest.mark.parametrize(
    ("name", "classes"),
    [("bert", 1), ("bert", 2), ("bert", 3), ("gpt2", 5), ("llama", 1), ("t5", 3)],
)
def test_a_classifier_of_other_classes_is_a_start(tmp_path, name, classes):
    preset, sizes, head = HEADED[name]
    config = models.preset(preset, vocab_size=64, num_labels=classes, **sizes)
    model = models.build(config)
    params = models.init(model, jax.random.key(0))
    models.save_pretrained(tmp_path, model, params)
    assert models.load_config(tmp_path).num_labels == classes

    plural = "class" if classes == 1 else "classes"
    message = refusal(tmp_path, num_labels=4)
    assert f"a classification head of {classes} {plural}, and num_labels=4" in message
    assert "`key=`" in message

    again, loaded = models.load_pretrained(tmp_path, num_labels=4, key=KEY)
    assert again.config.num_labels == 4
    fresh = models.init(again, KEY)["params"].pop(head)
    tiny.assert_same_bits(loaded["params"].pop(head), fresh)
    rest = {k: v for k, v in params["params"].items() if k != head}
    tiny.assert_same_bits(loaded["params"], rest)
    # With adapters, the head is trained with them.
    _, adapted = models.load_pretrained(tmp_path, num_labels=4, lora_rank=2, key=KEY)
    assert adapted["lora"][head]["kernel"].shape == (16, 4)
    # The same number of classes is the same head, key or no key.
    for options in ({}, {"key": KEY}):
        _, loaded = models.load_pretrained(tmp_path, num_labels=classes, **options)
        tiny.assert_same_bits(loaded, params)


def test_a_head_of_another_width_is_no_start(tmp_path):
    """Another number of classes is one thing, a head of another model another."""
    weights = golden.tensors("bert")
    weights["classifier.weight"] = np.zeros((4, 7), np.float32)
    message = refusal(write(tmp_path, "bert", weights), key=KEY)
    assert "classifier.weight: expected (4, 32), found (4, 7)" in message


def test_heads_of_other_tasks_are_left_out(tmp_path):
    encoder = {k: v for k, v in golden.tensors("bert").items() if "classifier" not in k}
    answers = {"qa_outputs.weight": np.zeros((2, 32), np.float32)}
    folder = write(tmp_path, "bert", encoder | answers)
    _, params = models.load_pretrained(folder, num_labels=4, key=KEY)
    usual, _ = models.load_pretrained(write(tmp_path / "usual", "bert"))
    assert params["params"]["classifier"]["kernel"].shape == (32, 4)
    assert usual.config.num_labels == 4


# Configs and tensors of two models


def of_another_model(name):
    return {
        "gpt2": golden.tensors("llama"),
        "llama": golden.tensors("t5"),
        "t5": golden.tensors("bert"),
        "bert": golden.tensors("gpt2"),
    }[name]


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bert"])
def test_tensors_of_another_family(tmp_path, name):
    message = refusal(write(tmp_path, name, of_another_model(name)))
    assert message.count("expected") == 5
    assert "found none" in message  # of the model
    assert "expected none" in message  # of the other
    assert " missing, " in message
    assert " more. Give a config.json and tensors of one model" in message


@pytest.mark.parametrize(
    "settings", [{"n_embd": 64}, {"n_layer": 12}, {"n_layer": 1}, {"vocab_size": 50257}]
)
def test_settings_of_another_size(tmp_path, settings):
    folder = write(tmp_path, "gpt2")
    edit_config(folder, **settings)
    message = refusal(folder)
    assert message.count("expected") <= 5
    assert "config.json describes" in message


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function 'relu'"),
        ("bert", {"hidden_act": "relu"}, "hidden_act 'relu'; supported is 'gelu'"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'; supported is 'silu'"),
        (
            "t5",
            {"feed_forward_proj": "gated-silu"},
            "feed_forward_proj is 'gated-silu'",
        ),
        ("llama", {"attention_bias": True}, "attention_bias True"),
        ("bert", {"position_embedding_type": "relative_key"}, "'relative_key'"),
        ("gpt2", {"n_embd": "32"}, "n_embd is '32': expected int"),
        ("gpt2", {"layer_norm_epsilon": "1e-5"}, "expected float"),
        ("gpt2", {"n_head": 5}, "32 does not split into 5 heads"),
        ("gpt2", {"model_type": "gpt_neox"}, "model_type 'gpt_neox'; supported are"),
        ("gpt2", {"model_type": None}, "model_type None; supported are"),
    ],
)
def test_settings_that_no_module_has(tmp_path, name, settings, said):
    folder = write(tmp_path, name)
    edit_config(folder, **settings)
    assert said in refusal(folder)
    with pytest.raises(ValueError, match=r"config\.json"):
        models.load_config(folder)


def test_settings_that_mean_the_same(tmp_path):
    for name, settings in (
        ("llama", {"hidden_act": "swish"}),
        ("bert", {"hidden_act": "gelu_python"}),
        ("gpt2", {"activation_function": "gelu_pytorch_tanh"}),
        ("t5", {"decoder_start_token_id": None, "tie_word_embeddings": None}),
        ("llama", {"initializer_range": None}),
    ):
        folder, usual = write(tmp_path / "1", name), write(tmp_path / "2", name)
        edit_config(folder, **settings)
        assert models.load_config(folder) == models.load_config(usual)


# Ids


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_a_tokenizer_with_more_ids_than_embeddings(tmp_path, name):
    folder = write(tmp_path, name)
    message = refusal(folder, num_tokens=98)
    assert "num_tokens=98 is more than vocab_size=97: the tokenizer has ids" in message
    assert "config.json" not in message  # which is not to blame
    assert models.load_pretrained(folder, num_tokens=97)[0].config.num_tokens == 97
