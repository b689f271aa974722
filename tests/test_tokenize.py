"""The layout of texts, and tokenizer folders of three kinds."""

import json

import numpy as np
import pytest
import tiny
from tokenizer_folders import let_log, write_gpt2, write_wordpiece

from jaxqr.data.encoding import valid_unicode
from jaxqr.data.tokenize import (
    EncoderRow,
    Row,
    Tokenizer,
    pad_left,
    pad_pairs,
    pad_prompts,
    pad_right,
    train_tokenizer,
)

TEXTS = [
    "red trainer",
    "nintenfo swich",
    'crème brûlée 3/4" bolt',
    "日本語の靴",
    "👟🏽 sneakers ☂️",
    "don't , stop !",
    "a\u0301 é",
    "",
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


def decoded(tokenizer, rows):
    return tokenizer.decode(*pad_right(rows, max(map(len, rows)), tokenizer.eos))


# The layout


def test_a_prompt_is_bos_query_newline(tokenizer):
    (ids,), (newline,) = tokenizer.encode(["red shoe"]), tokenizer.encode(["\n"])
    assert tokenizer.source(["red shoe"], 16) == [[tokenizer.bos, *ids, newline[-1]]]
    assert tokenizer.source([""], 16) == [[tokenizer.bos, newline[-1]]]


def test_a_long_query_loses_its_beginning(tokenizer):
    query = "a very long query about small red shoes"
    (whole,) = tokenizer.source([query], 99)
    for room in (3, 4, 7, len(whole) - 1):
        (cut,) = tokenizer.source([query], room)
        assert len(cut) == room
        assert cut == [whole[0], *whole[len(whole) - room + 1 :]]
    assert tokenizer.source([query], len(whole)) == [whole]


def test_a_target_ends_with_eos_if_it_is_complete(tokenizer):
    (ids,) = tokenizer.encode(["trainer in red"])
    assert tokenizer.target(["trainer in red"], len(ids) + 1) == [[*ids, tokenizer.eos]]
    assert tokenizer.target(["trainer in red"], len(ids)) == [ids]
    assert tokenizer.target(["trainer in red"], 2) == [ids[:2]]
    assert tokenizer.target([""], 8) == [[tokenizer.eos]]


def test_rows_of_pairs_and_of_plain_text(tokenizer):
    (source,), (target,) = tokenizer.source(["red"], 8), tokenizer.target(["blue"], 8)
    made = tokenizer.pairs(iter([("red", "blue")]), max_source=8, max_target=8)
    assert made == [Row(source, target)]
    assert tokenizer.plain(["blue"], max_target=8) == [Row([tokenizer.bos], target)]


def test_nothing_gives_nothing(tokenizer):
    assert tokenizer.encode([]) == []
    assert tokenizer.source([], 8) == tokenizer.target([], 8) == []
    assert tokenizer.pairs([], max_source=8, max_target=8) == []
    assert tokenizer.plain([], max_target=8) == []
    assert tokenizer.encoder([], [], max_tokens=8) == []
    empty = np.zeros((0, 4), np.int32)
    assert tokenizer.decode(empty, empty > 0) == []


def test_padding_may_be_the_end_of_text(tokenizer):
    eos = tokenizer.eos
    assert tokenizer.bos == eos == 0
    rows = tokenizer.pairs(
        [("red", "blue"), ("red sofa", "")], max_source=8, max_target=8
    )
    batch = pad_pairs(rows, 8, 8, eos)
    for i, row in enumerate(rows):
        assert batch.source[i, batch.source_mask[i]].tolist() == row.source
        assert batch.target[i, batch.target_mask[i]].tolist() == row.target
        assert batch.target[i, len(row.target) - 1] == eos
        assert batch.target_mask[i, : len(row.target)].all()
    assert batch.source_mask[:, -1].all()
    assert not batch.target_mask[:, -1].any()
    assert tokenizer.decode(batch.target, batch.target_mask) == ["blue", ""]


def test_padding_by_hand():
    tokens, mask = pad_left([[1, 2], [3], []], 3, 9)
    assert tokens.tolist() == [[9, 1, 2], [9, 9, 3], [9, 9, 9]]
    assert mask.tolist() == [[False, True, True], [False, False, True], [False] * 3]
    tokens, mask = pad_right([[1, 2], [3], []], 3, 9)
    assert tokens.tolist() == [[1, 2, 9], [3, 9, 9], [9, 9, 9]]
    assert mask.tolist() == [[True, True, False], [True, False, False], [False] * 3]
    assert (tokens.dtype, mask.dtype) == (np.int32, bool)
    prompts = pad_prompts([[4, 5]], 3, 9)
    assert (prompts.tokens.tolist(), prompts.mask.sum()) == ([[9, 4, 5]], 2)


# Texts


def test_any_text_survives(tokenizer):
    assert decoded(tokenizer, tokenizer.target(TEXTS, 99)) == TEXTS


def test_whitespace_is_folded(tokenizer):
    assert decoded(tokenizer, tokenizer.target(["  red \t\n sofa "], 99)) == [
        "red sofa"
    ]


def test_what_is_outside_the_mask_is_not_read(tokenizer):
    (ids,) = tokenizer.target(["red sofa"], 99)
    tokens = np.array([ids + tokenizer.encode(["lamp"])[0]])
    mask = np.arange(tokens.shape[1])[None] < len(ids)
    assert tokenizer.decode(tokens, mask) == ["red sofa"]


def test_a_text_cannot_spell_a_special_token(tokenizer):
    texts = ["red<|endoftext|>sofa", "[SEP] lamp [CLS]"]
    for ids in tokenizer.source(texts, 99):
        assert ids.count(tokenizer.bos) == 1
    targets = tokenizer.target(texts, 99)
    assert [ids.count(tokenizer.eos) for ids in targets] == [1, 1]
    assert decoded(tokenizer, targets) == texts
    (row,) = tokenizer.encoder(["red [SEP] sofa"], ["[SEP]"], max_tokens=64)
    assert row.tokens.count(row.tokens[-1]) == 2


# Texts as they come


LONE = {
    "half an emoji": ("red \ud83d shoes", "red \ufffd shoes"),
    "its other half": ("\udc5fred", "\ufffdred"),
    "halves in the wrong order": ("\udc5f\ud83d", "\ufffd\ufffd"),
    "a byte that was no UTF-8": ("caf\udce9", "caf\ufffd"),
    "both halves": ("red \ud83d\udc5f", "red 👟"),
}


@pytest.mark.parametrize(("text", "read"), LONE.values(), ids=LONE)
def test_a_lone_surrogate_is_read_as_a_replacement_character(tokenizer, text, read):
    assert valid_unicode(text) == read
    texts, expected = ["sofa", text, "", text], ["sofa", read, "", read]
    assert tokenizer.encode(texts) == tokenizer.encode(expected)
    assert tokenizer.source(texts, 32) == tokenizer.source(expected, 32)
    assert decoded(tokenizer, tokenizer.target(texts, 99)) == expected
    assert tokenizer.plain(texts, max_target=9) == tokenizer.plain(
        expected, max_target=9
    )
    assert tokenizer.encoder(texts, texts[::-1], max_tokens=24) == tokenizer.encoder(
        expected, expected[::-1], max_tokens=24
    )
    pairs = tokenizer.pairs([(text, text)], max_source=32, max_target=32)
    assert pairs == tokenizer.pairs([(read, read)], max_source=32, max_target=32)


@pytest.mark.parametrize(("text", "read"), LONE.values(), ids=LONE)
def test_a_lone_surrogate_in_a_template(tokenizer, tmp_path, text, read):
    one = tokenizer.with_prompt("prefix", text + "\n{title}\n")
    assert one.prompt == tokenizer.with_prompt("prefix", read + "\n{title}\n").prompt
    assert one.source([text], 99) == one.source([read], 99)
    one.save(tmp_path)
    assert Tokenizer.load(tmp_path).prompt == one.prompt


def test_a_tokenizer_is_trained_on_any_text():
    texts = [
        *(text for text, _ in LONE.values()),
        "\x00",
        "",
        "  \t\n",
        "e" + "\u0301" * 99,
    ]
    trained = train_tokenizer(texts, 300)
    clean = train_tokenizer(map(valid_unicode, texts), 300)
    assert trained.encode(TEXTS) == clean.encode(TEXTS)


ODD = {
    "no text": "",
    "whitespace": " \t\u3000\u00a0\u200b\n" * 2000,
    "NUL": "red\x00shoes\x00",
    "control characters": "".join(map(chr, [*range(32), *range(127, 160)])) + "red",
    "marks of direction": "\u200f\u062d\u0630\u0627\u0621\u200e\u202e",
    "combining marks": "e" + "\u0301" * 5000 + " red",
    "a long word": "a" * 50_000,
    "many words": "red shoes " * 10_000,
    "many emoji": "👟🏽" * 20_000,
    "no characters": "\uffff\ufffe\ufdd0\U0010ffff",
    "private use": "\ue000\U000f0000",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_texts_in_a_batch_with_others(tmp_path_factory, tokenizer, text):
    folder = tmp_path_factory.mktemp("wordpiece")
    write_wordpiece(folder)
    for one in (tokenizer, Tokenizer.load(folder)):
        rows = one.encoder(["red", text, "shoe"], [text, text, "red"], max_tokens=32)
        assert all(len(row.tokens) == len(row.segments) <= 32 for row in rows)
        assert rows[2] == one.encoder(["shoe"], ["red"], max_tokens=32)[0]
        assert one.encode(["red", text])[0] == one.encode(["red"])[0]
    first, odd = tokenizer.source(["red", text], 32)
    assert len(odd) <= 32
    assert [first] == tokenizer.source(["red"], 32)
    (whole,) = tokenizer.target([text], 10**6)
    assert tokenizer.target([text], 32) == [whole[:32]]
    assert decoded(tokenizer, [whole]) == [" ".join(text.split())]


def test_a_long_text_is_no_reason_for_a_warning(tmp_path, caplog, monkeypatch):
    let_log(monkeypatch)
    write_gpt2(tmp_path, ["red shoe"])
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 8}))
    tokenizer = Tokenizer.load(tmp_path)
    assert [len(ids) for ids in tokenizer.source(["red shoe " * 99], 16)] == [16]
    assert not caplog.records


# Pairs for encoders


def test_an_encoder_reads_two_segments(tokenizer):
    rows = tokenizer.encoder(["red"], ["red sofa"], max_tokens=64, labels=[3])
    (first,), (second,) = tokenizer.encode(["red"]), tokenizer.encode(["red sofa"])
    tokens = [1, *first, 2, *second, 2]  # [CLS] and [SEP] follow the end of text
    segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert rows == [EncoderRow(tokens, segments, 3)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("red", "sofa " * 30),
        ("red " * 30, "sofa"),
        ("red " * 30, ""),
        ("", "sofa " * 9),
    ],
)
def test_an_encoder_cuts_the_longer_text(tokenizer, first, second):
    (row,) = tokenizer.encoder([first], [second], max_tokens=12)
    assert len(row.tokens) == len(row.segments) == 12
    assert (row.tokens[0], row.tokens[-1]) == (1, 2)
    kept = row.tokens[1 : row.segments.index(1) - 1]
    (short,) = tokenizer.encode([first])
    assert kept == short[: len(kept)]
    if first == "red":
        assert kept == short


# Folders


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(str(tmp_path))
    for name in ("vocab_size", "bos", "eos"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    assert loaded.target(TEXTS, 99) == tokenizer.target(TEXTS, 99)
    assert loaded.source(TEXTS, 9) == tokenizer.source(TEXTS, 9)
    texts = (TEXTS[:4], TEXTS[4:])
    assert loaded.encoder(*texts, max_tokens=24) == tokenizer.encoder(
        *texts, max_tokens=24
    )


def test_a_wordpiece_folder_serves_encoders(tmp_path):
    write_wordpiece(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    (row,) = tokenizer.encoder(["Red"], ["blue shoes?"], max_tokens=16, labels=[1])
    assert row == EncoderRow([2, 5, 3, 8, 6, 7, 1, 3], [0, 0, 0, 1, 1, 1, 1, 1], 1)
    (row,) = tokenizer.encoder(["[SEP]"], ["red"], max_tokens=16)
    assert row.tokens.count(3) == 2
    with pytest.raises(ValueError, match="no token for a newline"):
        tokenizer.source(["red"], 8)


def test_a_gpt2_folder_serves_language_models(tmp_path):
    write_gpt2(tmp_path, [text for pair in tiny.PAIRS for text in pair])
    tokenizer = Tokenizer.load(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    eos, newline = vocabulary["<|endoftext|>"], vocabulary["Ċ"]
    assert (tokenizer.bos, tokenizer.eos) == (eos, eos)
    assert tokenizer.vocab_size == len(vocabulary)
    (source,) = tokenizer.source(["red shoe"], 16)
    assert (source[0], source[-1], source.count(eos)) == (eos, newline, 1)
    assert decoded(tokenizer, tokenizer.target(TEXTS, 99)) == TEXTS


def test_a_folder_without_a_tokenizer(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=r"holds none of tokenizer\.json"):
            Tokenizer.load(folder)


# Training


def test_training_repeats(tokenizer):
    texts = [text for pair in tiny.PAIRS for text in pair]
    assert train_tokenizer(texts, tiny.VOCAB).encode(TEXTS) == tokenizer.encode(TEXTS)
    assert len(tokenizer.encode(["in"])[0]) == 1  # what is frequent is one token


def test_a_vocabulary_holds_the_bytes():
    with pytest.raises(ValueError, match=r"vocab_size=258 is too small.*need 259"):
        train_tokenizer(["red"], 258)
    smallest = train_tokenizer([], 259)
    assert smallest.vocab_size == 259
    assert decoded(smallest, smallest.target(TEXTS, 99)) == TEXTS
