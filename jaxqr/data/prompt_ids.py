"""Prompt templates to token ids, such that they are those of the whole text."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from jaxqr.data.encoding import Encode
from jaxqr.data.prompts import PromptTemplate, Slot, Source

# Any text of ordinary words, on which the places between literals and slots are tried.
PROBE = "red shoes"

# Whether a word runs into what is before it depends on its first letter.
PROBES = (PROBE, *"abcdefghijklmnopqrstuvwxyz")


class TokenizedSlot(NamedTuple):
    """A slot, and the literal before it.

    Attributes:
        slot: its name and what is cut of it.
        before: ids of the literal before it; of the first one without BOS.
        context: the end of that literal, where the ids of the slot's text depend on it.
        gap: whitespace at the literal's end that is encoded with the slot's text.
    """

    slot: Slot
    before: list[int]
    context: str
    gap: str

    def ids(self, texts: Sequence[str], encode: Encode) -> list[list[int]]:
        """The ids of texts in their place."""
        return encode.after(self.context, [self.gap + text for text in texts])


class TokenizedTemplate(NamedTuple):
    """The ids of a template's literals, and how those of its slots are made.

    Attributes:
        template: what was tokenized.
        before: BOS, where the kind has one.
        slots: in order, each with the literal before it.
        after: ids after the last slot, EOS included where the kind has one.
        difference: where the ids of one of `PROBES` begin to differ from those that
            the tokenizer makes of the whole text, in words; None if they are the same.
    """

    template: PromptTemplate
    before: list[int]
    slots: tuple[TokenizedSlot, ...]
    after: list[int]
    difference: str | None

    def rows(
        self, sources: Sequence[Source], max_tokens: int, encode: Encode
    ) -> list[list[int]]:
        """The ids of prompts, at most `max_tokens` each.

        Where a prompt is too long, the longest of the texts that may be cut loses a
        token, in turn, of equally long ones the last; each keeps at least one. The
        literals and what is never cut lose nothing.

        Raises:
            ValueError: a source does not fit the template, or what is never cut does
                not fit into `max_tokens`.
        """
        literals = len(self.before) + len(self.after)
        literals += sum(len(part.before) for part in self.slots)
        self._check_room(max_tokens, literals)
        texts = [self.template.texts(source) for source in sources]
        columns = [
            part.ids([row[i] for row in texts], encode)
            for i, part in enumerate(self.slots)
        ]
        rows = []
        for source, ids in zip(sources, zip(*columns, strict=True), strict=True):
            parts = list(zip(self.slots, ids, strict=True))
            cut = [len(x) for part, x in parts if part.slot.cut != "never"]
            never = [len(x) for part, x in parts if part.slot.cut == "never"]
            room = max_tokens - literals - sum(never)
            # An empty text may have no token to keep.
            least = sum(length > 0 for length in cut)
            if room < least:
                raise self._no_room(source, max_tokens, max_tokens - room + least)
            kept = iter(_longest_first(cut, room))
            row = [*self.before]
            for part, x in parts:
                row += part.before
                if part.slot.cut == "beginning":
                    row += x[len(x) - next(kept) :]
                elif part.slot.cut == "end":
                    row += x[: next(kept)]
                else:
                    row += x
            rows.append([*row, *self.after])
        return rows

    def _check_room(self, max_tokens: int, literals: int) -> None:
        least = literals + sum(part.slot.cut != "never" for part in self.slots)
        if max_tokens < least:
            raise ValueError(
                f"max_tokens={max_tokens} leaves no room for the "
                f"{' and the '.join(self.template.names)}: the {self.template.kind} "
                f"prompt alone takes {literals} tokens. Raise max_tokens (the run's "
                f"source length) to {least} at the very least, or shorten the "
                "instruction"
            )

    def _no_room(self, source: Source, max_tokens: int, least: int) -> ValueError:
        texts = zip(self.slots, self.template.texts(source), strict=True)
        never = [
            f"{part.slot.name} {text[:100]!r}"
            for part, text in texts
            if part.slot.cut == "never"
        ]
        return ValueError(
            f"max_tokens={max_tokens} has no room for the {self.template.kind} prompt "
            f"with what is never cut of it: {', '.join(never)}. Raise max_tokens (the "
            f"run's source length) to {least} at the very least, or shorten these texts"
        )


def _longest_first(lengths: Sequence[int], room: int) -> list[int]:
    """What is kept of each length for a sum of `room`: the longest loses first.

    >>> _longest_first([9, 2, 5], 10)
    [4, 2, 4]
    >>> _longest_first([9, 2, 5], 11)
    [5, 2, 4]
    """
    kept = list(lengths)
    over = sum(kept) - room
    while over > 0:
        longest = max(kept)
        tied = [i for i, length in enumerate(kept) if length == longest]
        second = max((x for x in kept if x < longest), default=0)
        # All the longest lose whole rounds down to the second longest, then the last
        # of them one each.
        rounds = min(over // len(tied), longest - second)
        for i in tied:
            kept[i] -= rounds
        over -= rounds * len(tied)
        if not rounds:
            for i in tied[len(tied) - over :]:
                kept[i] -= 1
            over = 0
    return kept


def tokenize_template(
    template: PromptTemplate, encode: Encode, bos: int, eos: int
) -> TokenizedTemplate:
    """The ids of a template.

    Special tokens count in the literals but not in the slots, so they are encoded
    apart. Where each literal ends is tried out on a probe, such that the ids are those
    of the whole text: a space at its end belongs to the next text's first word. Where
    no way gives them, as in front of a word that runs into the slot, the result says
    so and is the same in training and serving.
    """
    literals, slots = [""], []
    for part in template.parts:
        if isinstance(part, Slot):
            slots.append(part)
            literals.append("")
        else:
            literals[-1] = part
    last = literals.pop()
    (after,) = encode.after("a", [last], special=True)
    whole_text = template.fill(dict.fromkeys(template.names, PROBE))
    (whole,) = encode([whole_text], special=True)
    choices = [
        _choices(slot, literal, encode, first=not i)
        for i, (slot, literal) in enumerate(zip(slots, literals, strict=True))
    ]
    probes = [[choice.ids([PROBE], encode)[0] for choice in slot] for slot in choices]

    def fitting(slot: int, rest: list[int]) -> list[TokenizedSlot] | None:
        """The first choices from this slot on whose ids are the rest of the whole."""
        if slot == len(slots):
            return [] if rest == after else None
        for choice, probe in zip(choices[slot], probes[slot], strict=True):
            ids = [*choice.before, *probe]
            if rest[: len(ids)] == ids:
                following = fitting(slot + 1, rest[len(ids) :])
                if following is not None:
                    return [choice, *following]
        return None

    chosen = fitting(0, whole) or [choice[0] for choice in choices]
    return TokenizedTemplate(
        template,
        [bos] if template.kind == "completion" else [],
        tuple(chosen),
        [*after, eos] if template.kind == "prefix" else after,
        _difference(template, chosen, after, encode),
    )


def _choices(
    slot: Slot, literal: str, encode: Encode, *, first: bool
) -> list[TokenizedSlot]:
    """The ways to part a literal from the slot after it, the likeliest first."""

    def choice(head: str, context: str) -> TokenizedSlot:
        # After a slot it stands in the middle of a text: any letter shows how.
        (ids,) = encode.after("" if first else "a", [head], special=True)
        return TokenizedSlot(slot, ids, context, literal[len(head) :])

    return [
        choice(head, context)
        for head in (literal.rstrip(" "), literal, literal.rstrip())
        for context in ("", head[-1:] or ("" if first else "a"))
    ]


def _difference(
    template: PromptTemplate,
    slots: Sequence[TokenizedSlot],
    after: list[int],
    encode: Encode,
) -> str | None:
    """The first difference between the ids of a filled template and of its text."""
    for probe in PROBES:
        text = template.fill(dict.fromkeys(template.names, probe))
        made = []
        try:
            (whole,) = encode([text], special=True)
            for slot in slots:
                made += [*slot.before, *slot.ids([probe], encode)[0]]
        except ValueError:  # the vocabulary lacks this letter
            continue
        made += after
        if made != whole:
            pairs = zip_longest(made, whole)
            start = next(k for k, (one, two) in enumerate(pairs) if one != two)
            one, two = (encode.tokens(ids[start : start + 4]) for ids in (made, whole))
            return (
                f"with {probe!r} in its slots, from token {start} on it is {one} "
                f"instead of {two}"
            )
    return None
