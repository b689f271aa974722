"""Prompt templates: literal text, and named slots for the texts of a row.

Three kinds of model read three kinds of prompt:

- `completion`, for base models: BOS, the query, a newline;
- `chat`, for instruct models: the folder's own chat template around one message of
  the user, an instruction above the query, up to where the answer begins;
- `prefix`, for encoder-decoders such as T5: a prefix, the query, EOS.

Where a row is more than a query, the instruction names slots, as `str.format` does:
`"Write a search query for which this product is {label}: {product}"`.

The texts are what is kept and saved, not the chat template that wrote them: a chat
template may write today's date, but training and serving have to read the same prompt.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from jaxqr.data.encoding import valid_unicode

FILE = "prompt.json"

INSTRUCTIONS = {
    "completion": "",
    "chat": "Rewrite this query of a shop's customer so that the shop's search finds "
    "what the customer wants. Answer with the new query only.",
    "prefix": "rewrite query: ",
}
"""The kinds of prompt, and the instruction of each where none is given."""

Source = str | Mapping[str, str]
"""What a prompt is made of: slot -> text, or the text where there is one slot."""

CUTS = ("beginning", "end", "never")
"""What may be cut of a slot's text where the whole prompt is too long."""

DEFAULT_CUTS = {"query": "beginning", "label": "never"}
"""What is cut of the slots of these names, unless the template says otherwise. Any
other, such as a product's text, keeps its beginning and loses its end."""

# Stands for a slot's text while the chat template is rendered: letters and digits
# only, so that no template escapes it.
_MARK = "Slot7f3a9e51x{}x"

# What Llama's templates say the day is where they are not told. Teacher and student,
# and the same stage tomorrow, must not be told another one.
DATE = "26 Jul 2024"


class Slot(NamedTuple):
    """A place for a text of the row.

    Attributes:
        name: an identifier, the key of the text in a `Source`.
        cut: one of `CUTS`: what of the text is cut where the whole prompt is too long.
    """

    name: str
    cut: str


QUERY = Slot("query", "beginning")


@dataclass(frozen=True)
class PromptTemplate:
    r"""Literal text with slots in it.

    Attributes:
        kind: `completion`, BOS is put before the text; `chat`, the text has it all; or
            `prefix`, EOS is put after it.
        parts: literals and slots, in order. In a literal special tokens may be spelled
            out, a slot's text never becomes one. Neighboring literals are joined and
            empty ones left out, so that equal templates compare equal.

    Raises:
        ValueError: no such kind or cut, no slot, a name that is no identifier, or one
            that occurs twice.

    >>> template = PromptTemplate("completion", (Slot("query", "beginning"), "\n"))
    >>> template.fill("red shoes")
    'red shoes\n'
    """

    kind: str
    parts: tuple[str | Slot, ...]

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        object.__setattr__(self, "parts", tuple(_joined(self.parts)))
        names = self.names
        if not names:
            raise ValueError(
                f"a prompt template without a slot: {self.parts}. Write {{query}}, or "
                "another name in braces, where the text of a row goes"
            )
        for slot in self.slots:
            if not slot.name.isidentifier() or slot.cut not in CUTS:
                raise ValueError(
                    f"{slot} is no slot of a prompt template: expected a name of "
                    "letters, digits and underscores, and as its cut one of "
                    f"{', '.join(CUTS)}"
                )
        if len(set(names)) < len(names):
            raise ValueError(
                f"a slot occurs twice in the prompt template: {', '.join(names)}. "
                "Name every slot once"
            )

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots in order."""
        return tuple(part for part in self.parts if isinstance(part, Slot))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the slots in order."""
        return tuple(slot.name for slot in self.slots)

    def texts(self, source: Source) -> list[str]:
        """The texts of the slots in order.

        Raises:
            ValueError: a slot has no text, a text no slot, or a lone text is given and
                the template has several slots.
        """
        if isinstance(source, str):
            if len(self.names) > 1:
                raise ValueError(
                    f"the prompt template has the slots {', '.join(self.names)}, but "
                    f"the text {source[:100]!r} was given: give a mapping of slot to "
                    "text"
                )
            return [source]
        faults = {
            "no text for": [name for name in self.names if name not in source],
            "no slot called": [name for name in source if name not in self.names],
        }
        told = [
            f"{what} {', '.join(map(str, of))}" for what, of in faults.items() if of
        ]
        if told:
            raise ValueError(
                f"{'; '.join(told)}: the slots of the prompt template are "
                f"{', '.join(self.names)}, and a row gives one text for each"
            )
        return [source[name] for name in self.names]

    def fill(self, source: Source) -> str:
        """The whole text of a prompt.

        Raises:
            ValueError: as `texts`.
        """
        texts = iter(self.texts(source))
        return "".join(p if isinstance(p, str) else next(texts) for p in self.parts)

    def save(self, folder: str | Path) -> None:
        """Writes `prompt.json`: the kind, and the parts with each slot's cut."""
        parts = [
            part if isinstance(part, str) else {"slot": part.name, "cut": part.cut}
            for part in self.parts
        ]
        fields = {"kind": self.kind, "parts": parts}
        text = json.dumps(fields, ensure_ascii=False, indent=2)
        path = Path(folder) / FILE
        partial = path.with_suffix(".partial")
        try:
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | Path) -> "PromptTemplate | None":
        """Reads `prompt.json`; None if there is none.

        Earlier versions wrote `kind`, `before` and `after`: the texts around a query.

        Raises:
            ValueError: the file is not what `save` writes.
        """
        path = Path(folder) / FILE
        if not path.exists():
            return None
        advice = "Delete the file to have the folder's default"
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}. {advice}") from None
        parts = _saved_parts(fields)
        if parts is None:
            raise ValueError(
                f"{path} holds {str(fields)[:200]}; expected the kind, which is one of "
                f"{', '.join(INSTRUCTIONS)}, and the parts: texts and slots such as "
                f'{{"slot": "query", "cut": "beginning"}}. {advice}'
            )
        try:
            return cls(fields["kind"], parts)
        except ValueError as error:
            raise ValueError(f"{path}: {error}. {advice}") from None


def _joined(parts: Iterable[str | Slot]) -> Iterator[str | Slot]:
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        if text:
            yield valid_unicode(text)
        yield part
        text = ""
    if text:
        yield valid_unicode(text)


def _saved_parts(fields: Any) -> tuple[str | Slot, ...] | None:
    """The parts in a `prompt.json`; None if it is not of this or an earlier version."""
    match fields:
        case {"kind": str(), "before": str(before), "after": str(after), **rest}:
            return None if rest else (before, QUERY, after)
        case {"kind": str(), "parts": list(saved), **rest} if not rest:
            parts = []
            for part in saved:
                match part:
                    case str():
                        parts.append(part)
                    case {"slot": str(name), "cut": str(cut), **rest} if not rest:
                        parts.append(Slot(name, cut))
                    case _:
                        return None
            return tuple(parts)
    return None


def parse(instruction: str) -> tuple[str | Slot, ...]:
    """Literals and slots of a text that names its slots in braces.

    `{product}` is a slot that is cut as `DEFAULT_CUTS` says of its name,
    `{product:beginning}` one of which the beginning is cut; `{{` and `}}` are braces.

    Raises:
        ValueError: braces that are neither.

    >>> parse("A query for {product}, as JSON {{}}: ")
    ('A query for ', Slot(name='product', cut='end'), ', as JSON {}: ')
    """
    parts: list[str | Slot] = []
    try:
        for literal, name, cut, conversion in Formatter().parse(instruction):
            parts.append(literal)
            if name is not None:
                cut = cut or DEFAULT_CUTS.get(name, "end")
                if conversion or not name.isidentifier() or cut not in CUTS:
                    raise ValueError(f"{name!r} with {conversion or cut!r} is no slot")
                parts.append(Slot(name, cut))
    except ValueError as error:
        raise ValueError(
            f"the braces in the instruction {instruction[:200]!r} are not understood: "
            f"{error}. Write a slot as {{product}}, or with the end of its text that "
            "is cut as {product:beginning} (or :end, :never), and double the braces "
            "that are meant as text: {{ and }}"
        ) from None
    return tuple(_joined(parts))


def make(tokenizer: Any, kind: str, instruction: str | None = None) -> PromptTemplate:
    """The template of a kind with an instruction, or with the kind's own.

    Args:
        tokenizer: a transformers tokenizer; its chat template is read.
        kind: a key of `INSTRUCTIONS`.
        instruction: a text as `parse` reads it. With slots, it is all of the user's
            message, all that EOS follows, or all between BOS and the newline. Without,
            a `chat` has it on the line above the query, a `prefix` in front of the
            query as it is, its trailing space included, and a `completion` takes none.

    Raises:
        ValueError: no such kind; braces that name no slot; no chat template, or one
            that does not show the user's message exactly once; an instruction without
            a slot in a completion.
    """
    _check_kind(kind)
    parts = parse(INSTRUCTIONS[kind] if instruction is None else instruction)
    named = any(isinstance(part, Slot) for part in parts)
    if kind == "chat":
        line = (*parts, "\n") if parts else ()
        return _chat(tokenizer, parts if named else (*line, QUERY))
    if kind == "prefix":
        return PromptTemplate(kind, parts if named else (*parts, QUERY))
    if parts and not named:
        raise ValueError(
            f"a completion takes no instruction, but {instruction!r} was given: leave "
            "it out, write {query} in it where the query goes, or use a chat prompt "
            "with an instruct model"
        )
    return PromptTemplate(kind, (*(parts or (QUERY,)), "\n"))


def _check_kind(kind: str) -> None:
    if kind not in INSTRUCTIONS:
        raise ValueError(
            f"no prompt is called {kind!r}: give one of {', '.join(INSTRUCTIONS)}"
        )


def _chat(tokenizer: Any, message: tuple[str | Slot, ...]) -> PromptTemplate:
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template, as that of a base model: use a "
            "completion prompt, or give the folder of an instruct model"
        )
    slots = PromptTemplate("chat", message).slots
    text = tokenizer.apply_chat_template(
        [
            {
                "role": "user",
                "content": "".join(
                    part if isinstance(part, str) else _MARK.format(slots.index(part))
                    for part in message
                ),
            }
        ],
        add_generation_prompt=True,
        tokenize=False,
        date_string=DATE,
    )
    # Literals, and the numbers of the slots between them.
    found = re.split(_MARK.format(r"(\d+)"), text)
    if found[1::2] != [str(i) for i in range(len(slots))]:
        raise ValueError(
            f"the chat template shows the user's message {found[1::2].count('0')} "
            f"times instead of once: {text[:500]!r}"
        )
    parts: list[str | Slot] = [found[0]]
    for slot, literal in zip(slots, found[2::2], strict=True):
        parts += [slot, literal]
    return PromptTemplate("chat", tuple(parts))
