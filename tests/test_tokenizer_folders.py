"""Tokenizer folders as people have them: what loads, what is told, what is saved."""

import json
import logging
import shutil
from importlib.util import find_spec

import pytest
import tiny
from tokenizer_folders import (
    change,
    ids_of,
    let_log,
    rendered,
    theirs,
    write_all,
    write_gpt2,
)

from jaxqr.data.rows import pad_right
from jaxqr.data.tokenize import Tokenizer

TEXTS = ["red shoe", "crème brûlée", "日本語の靴", "<|eot_id|> </s>", "  a\nb", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    write_all(root)
    return root


# SentencePiece


def write_sentencepiece(path, kind):
    """A model of letters, a few words and the bytes; kind 1 is unigram, 2 BPE."""
    if find_spec("sentencepiece"):  # a process can hold one of the two
        from sentencepiece import sentencepiece_model_pb2 as proto
    else:
        from transformers.utils import sentencepiece_model_pb2_new as proto

    model = proto.ModelProto()  # pyright: ignore
    words = [
        "▁",
        "▁red",
        "▁shoe",
        "▁rewrite",
        "▁query",
        ":",
        "s",
        *"abcdefghijklmnopqrtuvw",
    ]
    for text, type_ in (("<pad>", 3), ("</s>", 3), ("<unk>", 2)):
        model.pieces.add(piece=text, score=0.0, type=type_)
    for i, text in enumerate(words):
        model.pieces.add(piece=text, score=-1.0 - i / 100)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=6)
    trainer = model.trainer_spec
    trainer.model_type, trainer.byte_fallback = kind, True
    trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, -1
    model.normalizer_spec.name = "identity"
    path.write_bytes(model.SerializeToString())


SENTENCEPIECE = pytest.mark.parametrize(
    ("name", "kind", "tokenizer_class"),
    [("spiece.model", 1, "T5Tokenizer"), ("tokenizer.model", 2, "LlamaTokenizer")],
)


def write_sentencepiece_folder(folder, name, kind, tokenizer_class):
    write_sentencepiece(folder / name, kind)
    config = {
        "tokenizer_class": tokenizer_class,
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_ids": 0,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@SENTENCEPIECE
def test_a_sentencepiece_model_alone_loads(tmp_path, name, kind, tokenizer_class):
    pytest.importorskip("sentencepiece")
    write_sentencepiece_folder(tmp_path, name, kind, tokenizer_class)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos == 1
    (ids,) = tokenizer.with_prompt("prefix").source(["red shoes"], 99)
    assert theirs(tmp_path).decode(ids) == "rewrite query: red shoes</s>"
    tokenizer.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").exists()
    tokenizer.check_same(Tokenizer.load(tmp_path / "saved"))


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="it is installed")
@SENTENCEPIECE
def test_a_missing_package_is_named(
    tmp_path, caplog, monkeypatch, name, kind, tokenizer_class
):
    let_log(monkeypatch)
    write_sentencepiece_folder(tmp_path, name, kind, tokenizer_class)
    with pytest.raises(
        ValueError,
        match=rf"^\S+: reading {name} needs the package sentencepiece, .*"
        r"pip install sentencepiece\. Or .*save_pretrained.*tokenizer\.json$",
    ):
        Tokenizer.load(tmp_path)
    assert not caplog.records  # transformers' own lines about it


@pytest.mark.skipif(find_spec("tiktoken") is not None, reason="it is installed")
def test_a_file_of_tiktoken_needs_tiktoken(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer"}'
    )
    with pytest.raises(ValueError, match=r"tokenizer\.model needs the package tiktok"):
        Tokenizer.load(tmp_path)


def test_transformers_speaks_as_loud_as_before(folders, tmp_path):
    from transformers.utils import logging as theirs_

    before = theirs_.get_verbosity()
    write_sentencepiece_folder(tmp_path, "spiece.model", 1, "T5Tokenizer")
    Tokenizer.load(folders / "gpt2")
    (tmp_path / "spiece.model").write_bytes(b"\xffno model")
    with pytest.raises(ValueError, match=rf"^{tmp_path}: "):
        Tokenizer.load(tmp_path)
    assert theirs_.get_verbosity() == before != logging.ERROR


# Folders that transformers cannot read


def name_class(folder, name, **fields):
    change(folder, "tokenizer_config.json", tokenizer_class=name, **fields)


def foreign(folder):
    auto_map = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    name_class(folder, "OwnTokenizer", auto_map=auto_map)
    code = "raise SystemExit('this code must not run')"
    (folder / "tokenization_own.py").write_text(code)


def foreign_without_json(folder):
    foreign(folder)
    (folder / "tokenizer.json").rename(folder / "vocab.json")


def newer_class(folder):
    name_class(folder, "NewestTokenizer")
    (folder / "tokenizer.json").rename(folder / "vocab.json")


def other_files(folder):
    """GPT-2's class, but a vocabulary of BERT's."""
    name_class(folder, "GPT2Tokenizer")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[UNK]\nred\n")


def no_end(folder):
    name_class(folder, "PreTrainedTokenizerFast", eos_token=None, sep_token=None)


def slow(folder):
    name_class(folder, "ByT5Tokenizer")
    (folder / "tokenizer.json").rename(folder / "vocab.json")


def writes(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("alter", "told"),
    [
        (
            foreign,
            r"OwnTokenizer is code of its own.* take auto_map and tokenizer_class",
        ),
        (
            foreign_without_json,
            r"OwnTokenizer is code of its own.*: load the tokenizer",
        ),
        (newer_class, r"transformers [\d.]+ has no class NewestTokenizer: install the"),
        (other_files, r"GPT2Tokenizer found no vocabulary in it: load the tokenizer"),
        (no_end, r"neither a token for the end of a text nor a separator: set eos_tok"),
        (
            slow,
            r"ByT5Tokenizer does not run on the tokenizers library.*tokenizer\.json",
        ),
        (
            writes("tokenizer.json", b'{"version": "1.0"'),
            r"tokenizer\.json is not JSON",
        ),
        (writes("tokenizer.json", b""), r"tokenizer\.json is not JSON: .*once more$"),
        (
            writes("tokenizer.json", b'{"model": 1}'),
            r"cannot read this tokenizer: KeyE",
        ),
        (writes("tokenizer_config.json", b"{"), r"tokenizer_config\.json is not JSON"),
        (writes("tokenizer_config.json", b"[]"), r"is a list, expected a JSON object"),
        (
            writes("tokenizer_config.json", b'{"a": "\xe9"}'),
            r"is not JSON: 'utf-8' cod",
        ),
        (
            writes("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n"),
            r"tokenizer\.json is a Git LFS pointer: get the file with git lfs pull$",
        ),
    ],
)
def test_a_folder_that_cannot_be_read(folders, tmp_path, alter, told):
    shutil.copytree(folders / "base", tmp_path, dirs_exist_ok=True)
    alter(tmp_path)
    with pytest.raises(ValueError, match=rf"^{tmp_path}: .*{told}") as raised:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_of_a_newer_library(folders, tmp_path):
    shutil.copytree(folders / "base", tmp_path, dirs_exist_ok=True)
    change(tmp_path, "tokenizer.json", model={"type": "NewModel", "vocab": {}})
    with pytest.raises(ValueError, match=r"update transformers if a newer version wro"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_an_unknown_token(folders, tmp_path):
    shutil.copytree(folders / "t5", tmp_path, dirs_exist_ok=True)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    model["vocab"].append(["\n", -9.0])
    change(tmp_path, "tokenizer.json", model=model | {"unk_id": None})
    tokenizer = Tokenizer.load(tmp_path).with_prompt("prefix")
    assert tokenizer.source(["red"], 32)
    with pytest.raises(ValueError, match=r"cannot encode every text: .*give another"):
        tokenizer.source(["red", "日"], 32)
    del model["vocab"][-1]  # not even a newline, which every folder is asked for
    change(tmp_path, "tokenizer.json", model=model | {"unk_id": None})
    with pytest.raises(ValueError, match=rf"^{tmp_path}: .*cannot encode every text"):
        Tokenizer.load(tmp_path)


def test_an_unknown_class_with_a_tokenizer_json_loads(folders, tmp_path):
    shutil.copytree(folders / "gpt2", tmp_path, dirs_exist_ok=True)
    theirs(tmp_path).save_pretrained(tmp_path)
    name_class(tmp_path, "NewestTokenizer")
    Tokenizer.load(tmp_path).check_same(Tokenizer.load(folders / "gpt2"))


# Holes


def write_with_holes(folder, *, added=None):
    """The bytes, then nothing up to the end of text with the id 300."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {"</s>": 300}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    if added:
        tokenizer.add_tokens([added])
    tokenizer.save_pretrained(folder)


def test_a_vocabulary_with_holes(tmp_path):
    write_with_holes(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert len(theirs(tmp_path)) == 257
    assert (tokenizer.vocab_size, tokenizer.eos) == (301, 300)
    rows = tokenizer.target(["red shoe"], 99)
    assert max(rows[0]) < tokenizer.vocab_size
    # What a model may draw from a hole is no text.
    tokens, mask = pad_right([[*rows[0][:3], 280, *rows[0][3:]]], 16, 0)
    assert tokenizer.decode(tokens, mask) == ["red shoe"]
    tokenizer.save(tmp_path / "saved")
    loaded = Tokenizer.load(tmp_path / "saved")
    assert loaded.vocab_size == 301
    tokenizer.check_same(loaded)


def test_added_tokens_count(tmp_path):
    (tmp_path / "added").mkdir()
    (tmp_path / "bare").mkdir()
    write_with_holes(tmp_path / "added", added="<new>")
    write_with_holes(tmp_path / "bare")
    tokenizer = Tokenizer.load(tmp_path / "added")
    (new,) = ids_of(tmp_path / "added", "<new>")
    assert tokenizer.vocab_size == max(300, new) + 1
    with pytest.raises(ValueError, match=r"'<new>' is \d+ for the T .* absent for the"):
        tokenizer.check_same(Tokenizer.load(tmp_path / "bare"), mine="T")


def test_vocab_size_without_holes(folders, tmp_path):
    assert tiny.tokenizer().vocab_size == tiny.VOCAB
    for name in ("base", "gpt2", "t5", "bert"):
        assert Tokenizer.load(folders / name).vocab_size == len(theirs(folders / name))


# Saving


@pytest.mark.parametrize(
    "name", ["base", "instruct", "dated", "t5", "t5-class", "gpt2", "bert", "own"]
)
def test_a_tokenizer_is_taken_out_of_a_models_folder(folders, tmp_path, name):
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(folders / name, model)
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "config.json").write_text("{}")
    if name == "t5":
        Tokenizer.load(model).with_prompt("prefix", "{query} -> ").save(model)
    tokenizer = Tokenizer.load(model)
    tokenizer.save(out)
    loaded = Tokenizer.load(out)
    kept = {path.name for path in out.iterdir()}
    assert "tokenizer.json" in kept
    assert kept <= {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "chat_template.jinja", "prompt.json",
    }  # fmt: skip
    tokenizer.check_same(loaded)
    for field in ("vocab_size", "bos", "eos", "prompt", "has_chat_template"):
        assert getattr(loaded, field) == getattr(tokenizer, field)
    assert loaded.target(TEXTS, 99) == tokenizer.target(TEXTS, 99)
    pairs = (TEXTS[:3], TEXTS[3:])
    assert loaded.encoder(*pairs, max_tokens=20) == tokenizer.encoder(
        *pairs, max_tokens=20
    )
    if tokenizer.prompt:
        assert loaded.source(TEXTS, 99) == tokenizer.source(TEXTS, 99)
    if name == "instruct":
        assert rendered(out, "red") == rendered(model, "red")
    ours, own = theirs(out), theirs(model)
    assert ours(TEXTS)["input_ids"] == own(TEXTS)["input_ids"]


def test_saving_twice_changes_nothing(tmp_path):
    write_gpt2(tmp_path, ["red shoe"])
    Tokenizer.load(tmp_path).save(tmp_path / "one")
    Tokenizer.load(tmp_path / "one").save(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
