"""Kinds of prompt: the texts around a query.

- `completion`, for base models: BOS, the query, a newline;
- `chat`, for instruct models: the folder's own chat template around one message of
  the user, an instruction above the query, up to where the answer begins;
- `prefix`, for encoder-decoders such as T5: a prefix, the query, EOS.

The texts are what is kept and saved, not the template that wrote them: a template
may write today's date, but training and serving have to read the same prompt.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxqr.data.encoding import Encode

FILE = "prompt.json"

INSTRUCTIONS = {
    "completion": "",
    "chat": "Rewrite this query of a shop's customer so that the shop's search finds "
    "what the customer wants. Answer with the new query only.",
    "prefix": "rewrite query: ",
}
"""The kinds of prompt, and the instruction of each where none is given."""

# Stands for the query while the template is rendered: letters and digits only, so
# that no template escapes it.
QUERY = "Query7f3a9e51"

# What Llama's templates say the day is where they are not told. Teacher and student,
# and the same stage tomorrow, must not be told another one.
DATE = "26 Jul 2024"

# Any query of ordinary words, on which a layout is tried.
PROBE = "red shoes"


class PromptTemplate(NamedTuple):
    """The texts around a query.

    Attributes:
        kind: `completion`, BOS stands before the texts; `chat`, the texts say it all;
            or `prefix`, EOS stands behind them.
        before: text before the query; special tokens may be spelled out.
        after: text after the query, likewise.
    """

    kind: str
    before: str
    after: str

    def save(self, folder: str | Path) -> None:
        """Writes `prompt.json`."""
        text = json.dumps(self._asdict(), ensure_ascii=False, indent=2)
        (Path(folder) / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "PromptTemplate | None":
        """Reads `prompt.json`; None if there is none.

        Raises:
            ValueError: the file is not what `save` writes.
        """
        path = Path(folder) / FILE
        if not path.exists():
            return None
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        if (
            not isinstance(fields, dict)
            or fields.keys() != set(cls._fields)
            or not all(isinstance(text, str) for text in fields.values())
            or fields["kind"] not in INSTRUCTIONS
        ):
            raise ValueError(
                f"{path} holds {str(fields)[:200]}; expected the texts "
                f"{', '.join(cls._fields)}, of which the kind is one of "
                f"{', '.join(INSTRUCTIONS)}. Delete it to have the folder's default"
            )
        return cls(**fields)


def make(tokenizer: Any, kind: str, instruction: str | None = None) -> PromptTemplate:
    """The prompt of a kind with an instruction, or with the kind's own.

    Args:
        tokenizer: a transformers tokenizer; its chat template is read.
        kind: a key of `INSTRUCTIONS`.
        instruction: `chat` writes it above the query, `prefix` in front of it as it
            is, its trailing space included; `completion` takes none.

    Raises:
        ValueError: no such kind; no chat template, or one that does not show the
            user's message exactly once; an instruction in a completion.
    """
    if kind not in INSTRUCTIONS:
        raise ValueError(
            f"no prompt is called {kind!r}: give one of {', '.join(INSTRUCTIONS)}"
        )
    if instruction is None:
        instruction = INSTRUCTIONS[kind]
    if kind == "prefix":
        return PromptTemplate(kind, instruction, "")
    if kind == "chat":
        return _chat(tokenizer, instruction)
    if instruction:
        raise ValueError(
            f"a completion takes no instruction, but {instruction!r} was given: leave "
            "it out, or use a chat prompt with an instruct model"
        )
    return PromptTemplate(kind, "", "\n")


def _chat(tokenizer: Any, instruction: str) -> PromptTemplate:
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template, as that of a base model: use a "
            "completion prompt, or give the folder of an instruct model"
        )
    content = f"{instruction}\n{QUERY}" if instruction else QUERY
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=False,
        date_string=DATE,
    )
    around = text.split(QUERY)
    if len(around) != 2:
        raise ValueError(
            f"the chat template shows the user's message {len(around) - 1} times "
            f"instead of once: {text[:500]!r}"
        )
    return PromptTemplate("chat", *around)


class TokenizedTemplate(NamedTuple):
    """The ids around a query.

    Attributes:
        before: ids before the query, BOS included.
        after: ids behind it, EOS included.
        context: the end of what is before, where the query's ids depend on it.
        gap: blanks that are encoded with the query instead of with what is before.
    """

    before: list[int]
    after: list[int]
    context: str
    gap: str

    def queries(self, texts: Sequence[str], encode: Encode) -> list[list[int]]:
        """The ids of queries in their place."""
        return encode.behind(self.context, [self.gap + text for text in texts])


def tokenize_template(
    prompt: PromptTemplate, encode: Encode, bos: int, eos: int
) -> TokenizedTemplate:
    """The ids of a prompt.

    Special tokens count in the texts around a query but not in the query, so the three
    are encoded apart. Where the first one ends is tried out, such that the ids are
    those of the whole text: a blank at its end belongs to the query's first word.
    """
    kind, before, after = prompt
    (after_ids,) = encode.behind("a", [after], special=True)
    (whole,) = encode([before + PROBE + after], special=True)

    def layout(head: str, context: str) -> TokenizedTemplate:
        (ids,) = encode([head], special=True)
        return TokenizedTemplate(ids, after_ids, context, before[len(head) :])

    layouts = [
        layout(head, context)
        for head in (before.rstrip(" "), before, before.rstrip())
        for context in ("", head[-1:])
    ]
    # Where none fits, as in front of a word that runs into the query, any does: what
    # counts is that training and serving do the same.
    chosen = layouts[0]
    for tried in layouts:
        (query,) = tried.queries([PROBE], encode)
        if [*tried.before, *query, *after_ids] == whole:
            chosen = tried
            break
    return chosen._replace(
        before=[bos, *chosen.before] if kind == "completion" else chosen.before,
        after=[*after_ids, eos] if kind == "prefix" else after_ids,
    )
