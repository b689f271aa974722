"""Prompt templates of several slots: their ids, their cuts, their files."""

import json
import logging
import random
import shutil

import pytest
from tokenizer_folders import TURN, rendered, theirs, write_all, write_unigram

from jaxqr.data.prompt_ids import _longest_first
from jaxqr.data.prompts import QUERY, PromptTemplate, Slot, parse
from jaxqr.data.tokenize import Tokenizer

# An adversarial generator's prompt, and one of three slots whose literals are short.
GENERATE = "Write a search query for which this product is {label}: {product}"
SHORT = "{query}\n{title:end} ({label})\n"
ROWS = [
    {"label": "exact", "product": "red running shoe for men"},
    {"label": "no match", "product": "crème brûlée set"},
    {"label": "exact", "product": "shoe"},
    {"label": "exact", "product": "日本語の靴 👟🏽"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    write_all(root)
    return root


def ids_of_whole(folder, texts):
    return theirs(folder)(texts, add_special_tokens=False)["input_ids"]


# Ids


@pytest.mark.parametrize("name", ["base", "gpt2", "own", "t5", "t5-class"])
@pytest.mark.parametrize(
    "instruction", [GENERATE, "{product}\n{label}\n", "is: {product} {label}"]
)
def test_the_ids_are_those_of_the_whole_text(folders, name, instruction):
    tokenizer = Tokenizer.load(folders / name).with_prompt("prefix", instruction)
    # To T5 emoji and newlines are unknown, and neighboring unknown signs one token.
    rows = ROWS[:3] if name.startswith("t5") else ROWS
    texts = [instruction.format(**row) for row in rows]
    assert [tokenizer.prompt.fill(row) for row in rows] == texts
    expected = ids_of_whole(folders / name, texts)
    assert tokenizer.source(rows, 999) == [[*ids, tokenizer.eos] for ids in expected]


@pytest.mark.parametrize("name", ["base", "gpt2", "own"])
def test_a_completion_with_slots_is_bos_text_newline(folders, name):
    tokenizer = Tokenizer.load(folders / name).with_prompt("completion", GENERATE)
    texts = [GENERATE.format(**row) + "\n" for row in ROWS]
    expected = ids_of_whole(folders / name, texts)
    assert tokenizer.source(ROWS, 999) == [[tokenizer.bos, *ids] for ids in expected]


def test_a_chat_with_slots_is_what_the_template_makes(folders):
    tokenizer = Tokenizer.load(folders / "instruct").with_prompt("chat", GENERATE)
    expected = [rendered(folders / "instruct", GENERATE.format(**row)) for row in ROWS]
    assert tokenizer.source(ROWS, 999) == expected


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_a_chat_with_slots_of_sentencepiece(tmp_path, scheme):
    template = "{{ '[INST] ' + messages[0]['content'] + ' [/INST]' }}"
    write_unigram(tmp_path, template=template)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"first"', f'"{scheme}"'))
    tokenizer = Tokenizer.load(tmp_path).with_prompt("chat", "{label} {product}\n")
    rows = [{"label": "red", "product": "blue lamp"}, {"label": "a", "product": "shoe"}]
    whole = [f"{row['label']} {row['product']}\n" for row in rows]
    assert tokenizer.source(rows, 99) == [rendered(tmp_path, text) for text in whole]


def test_a_slot_is_no_special_token_and_a_literal_is(folders):
    folder = folders / "instruct"
    tokenizer = Tokenizer.load(folder).with_prompt(
        "prefix", TURN + " {label}: {product}"
    )
    texts = {"label": f"exact{TURN}", "product": f"{TURN}red <|end_of_text|>"}
    (ids,) = tokenizer.source([texts], 999)
    turn = theirs(folder).convert_tokens_to_ids(TURN)
    assert [i for i, token in enumerate(ids) if token == turn] == [0, len(ids) - 1]
    assert theirs(folder).decode(ids[:-1]) == tokenizer.prompt.fill(texts)


def test_one_slot_reads_a_text_or_a_mapping(folders):
    tokenizer = Tokenizer.load(folders / "gpt2").with_prompt("prefix", "is {product}?")
    assert tokenizer.prompt.parts == ("is ", Slot("product", "end"), "?")
    assert tokenizer.source(["red shoe"], 99) == tokenizer.source(
        [{"product": "red shoe"}], 99
    )
    made = tokenizer.pairs([({"product": "red"}, "blue")], max_source=9, max_target=9)
    (source,), (target,) = tokenizer.source(["red"], 9), tokenizer.target(["blue"], 9)
    assert made == [(source, target)]


@pytest.mark.parametrize(
    ("instruction", "source", "told"),
    [
        (GENERATE, "red", r"slots label, product, but the text 'red' was given: give"),
        (GENERATE, {"label": "a"}, "no text for product: the slots .* label, product"),
        (GENERATE, {"label": "a", "product": "b", "qeury": "c"}, "no slot called qeur"),
        (GENERATE, {"lable": "a"}, "for label, product; no slot called lable: the slo"),
        ("rewrite: ", {"product": "a"}, "no text for query; no slot called product"),
    ],
)
def test_a_source_that_does_not_fit(folders, instruction, source, told):
    tokenizer = Tokenizer.load(folders / "gpt2").with_prompt("prefix", instruction)
    with pytest.raises(ValueError, match=told):
        tokenizer.source([source], 999)


# Exactness


def test_what_runs_into_a_slot_is_told_once(folders, caplog):
    tokenizer = Tokenizer.load(folders / "own").with_prompt("prefix", "i{query}")
    assert not caplog.records  # a prompt that is not used is no reason to warn
    for _ in range(2):
        tokenizer.source(["n"], 9)
        tokenizer = Tokenizer(tokenizer._tokenizer, tokenizer.prompt)
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "jaxqr.data.tokenize")
    told = record.getMessage()
    assert "'i', Slot(name='query', cut='beginning')" in told
    assert (
        "'n' in its slots, from token 0 on it is ['Ġ', 'i', 'Ġ', 'n'] instead" in told
    )
    assert "Training and serving agree" in told


def test_what_does_not_run_into_a_slot_is_not_told(folders, caplog):
    for name, kind, instruction in (
        ("own", "completion", None),
        ("gpt2", "completion", GENERATE),
        ("base", "prefix", "rewrite:\n"),
        ("t5", "prefix", None),
        ("instruct", "chat", None),
        ("instruct", "chat", SHORT),
    ):
        tokenizer = Tokenizer.load(folders / name).with_prompt(kind, instruction)
        tokenizer.source([dict.fromkeys(tokenizer.prompt.names, "red")], 999)
    assert not caplog.records


# Lengths


def cut_by_hand(lengths, room):
    """The longest loses a token at a time, of equally long ones the last."""
    lengths = list(lengths)
    while sum(lengths) > room:
        longest = max(range(len(lengths)), key=lambda i: (lengths[i], i))
        lengths[longest] -= 1
    return lengths


def test_the_longest_text_loses_first():
    rng = random.Random(0)
    for _ in range(300):
        lengths = [rng.choice([0, 1, 3, 8, 9, 30]) for _ in range(rng.randint(1, 4))]
        for room in range(sum(lengths) + 2):
            assert _longest_first(lengths, room) == cut_by_hand(lengths, room)
    assert _longest_first([10**9, 3], 7) == [4, 3]


@pytest.mark.parametrize("name", ["gpt2", "base", "own", "t5"])
def test_each_slot_loses_its_own_end(folders, name):
    tokenizer = Tokenizer.load(folders / name).with_prompt(
        "prefix", "{query}\n{title} ({label})\n"
    )
    texts = {
        "query": "a very long query about red shoes",
        "title": "red running shoe for men and women",
        "label": "no match at all",
    }
    (whole,) = tokenizer.source([texts], 999)
    (bare,) = tokenizer.source([texts | {"query": "", "title": ""}], 999)
    (without_query,) = tokenizer.source([texts | {"query": ""}], 999)
    query = len(whole) - len(without_query)
    title = len(without_query) - len(bare)
    start = query + len(tokenizer._template.slots[1].before)
    for room in range(len(bare) + 2, len(whole) + 1):
        (cut,) = tokenizer.source([texts], room)
        one, two = cut_by_hand([query, title], room - len(bare))
        assert cut == whole[query - one : start + two] + whole[start + title :]


def test_what_is_never_cut_needs_room(folders):
    tokenizer = Tokenizer.load(folders / "gpt2").with_prompt("prefix", GENERATE)
    row = {"label": "a label of many words", "product": "red shoe"}
    short = {"label": "a", "product": "red shoe"}
    empty = row | {"product": ""}
    (bare,), (literals,) = (
        tokenizer.source([texts], 999)
        for texts in (empty, {"label": "", "product": ""})
    )
    # The space before an empty product is one of its tokens.
    least = len(bare)
    (cut,) = tokenizer.source([row], least)
    assert len(cut) == least
    with pytest.raises(
        ValueError,
        match=rf"max_tokens={least - 1} has no room for the prefix prompt with what "
        r"is never cut of it: label 'a label of many words'\. Raise max_tokens \(the "
        rf"run's source length\) to {least} at",
    ):
        tokenizer.source([short, row], least - 1)
    fixed = len(literals) - 2  # a space is left of an empty label and product
    with pytest.raises(
        ValueError, match=rf"the label and the product: .*takes {fixed}"
    ):
        tokenizer.source([short], fixed)


def test_a_template_that_is_never_cut(folders):
    tokenizer = Tokenizer.load(folders / "gpt2").with_prompt("prefix", "{label}")
    (ids,) = tokenizer.source(["red shoe"], 99)
    assert tokenizer.source(["red shoe"], len(ids)) == [ids]
    for most in (0, len(ids) - 1):
        with pytest.raises(ValueError, match=rf"max_tokens={most} .* label"):
            tokenizer.source(["red shoe"], most)


# Instructions


def test_braces():
    assert parse("") == ()
    assert parse("no slot") == ("no slot",)
    assert parse("{{a}} {product:never}{{") == ("{a} ", Slot("product", "never"), "{")
    assert parse("{query}{label}{title}") == (
        QUERY,
        Slot("label", "never"),
        Slot("title", "end"),
    )


@pytest.mark.parametrize(
    "instruction",
    ["{", "}", "{}", "{0}", "{a b}", "{a.b}", "{a[0]}", "{a!r}", "{a:middle}", "{a:>9}",
     '{"query": 1}', "{a"],
)  # fmt: skip
def test_braces_that_are_no_slot(folders, instruction):
    tokenizer = Tokenizer.load(folders / "gpt2")
    with pytest.raises(ValueError, match=r"are not understood.* as \{product\}.*\{\{"):
        tokenizer.with_prompt("prefix", instruction)


def test_braces_in_the_text_of_a_row_are_text(folders):
    tokenizer = Tokenizer.load(folders / "gpt2").with_prompt("prefix", "as {{}}: {q}")
    text = "{label} {{}} {0}"
    assert tokenizer.prompt.fill(text) == "as {}: " + text
    (expected,) = ids_of_whole(folders / "gpt2", ["as {}: " + text])
    assert tokenizer.source([text], 99) == [[*expected, tokenizer.eos]]


@pytest.mark.parametrize("kind", ["prefix", "chat", "completion"])
def test_a_slot_occurs_once(folders, kind):
    tokenizer = Tokenizer.load(folders / "instruct")
    with pytest.raises(ValueError, match=r"a slot occurs twice.* query, query"):
        tokenizer.with_prompt(kind, "{query} and {query:end}")


def test_neighbors_are_joined():
    one = PromptTemplate("prefix", ("a", "", "b ", QUERY, "", ""))
    assert one == PromptTemplate("prefix", ("ab ", QUERY))
    assert one.names == ("query",)
    assert hash(one) == hash(PromptTemplate("prefix", ("ab ", QUERY)))


# Files


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gpt2", "completion"), ("instruct", "chat"), ("t5", "prefix"), ("own", "prefix")],
)
def test_a_saved_template_is_the_same(folders, tmp_path, name, kind):
    tokenizer = Tokenizer.load(folders / name).with_prompt(kind, GENERATE)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.prompt == tokenizer.prompt
    for most in (999, 80):
        assert loaded.source(ROWS, most) == tokenizer.source(ROWS, most)
    loaded.check_same(tokenizer)
    other = tokenizer.with_prompt(kind, GENERATE.replace("product}", "product:never}"))
    with pytest.raises(
        ValueError, match=r"the prompt is .*'end'.* and .*'never'.*Trai"
    ):
        tokenizer.check_same(other)


@pytest.mark.parametrize(
    ("name", "saved", "now"),
    [
        ("gpt2", ("completion", "", "\n"), ("completion", None)),
        ("t5", ("prefix", "rewrite query: ", ""), ("prefix", None)),
        ("own", ("prefix", "{braces} ", ""), ("prefix", "{{braces}} ")),
    ],
)
def test_prompts_of_earlier_versions_load(folders, tmp_path, name, saved, now):
    shutil.copytree(folders / name, tmp_path, dirs_exist_ok=True)
    fields = dict(zip(("kind", "before", "after"), saved, strict=True))
    (tmp_path / "prompt.json").write_text(json.dumps(fields))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.prompt == tokenizer.with_prompt(*now).prompt
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).prompt == tokenizer.prompt
