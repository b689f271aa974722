"""Text to terms, as Elasticsearch's `standard` analyzer does it.

The analyzer is Lucene's `StandardTokenizer` and a lower-case filter. The tokenizer
keeps the words of Unicode Standard Annex 29 (section 4.1) and the emoji of Unicode
Technical Standard 51, and drops everything between them: whitespace, punctuation, and
signs that are no letters, such as vulgar fractions and superscript digits.
"""

from collections import Counter

import regex

MAX_TOKEN_LENGTH = 255
"""Longer words are cut into pieces of this many characters (the server's default)."""

# Each class carries what UAX 29 attaches to it (rule WB4): accents, format signs.
_X = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*"
_LETTER = rf"[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}]{_X}"
_DIGIT = rf"\p{{WB=Numeric}}{_X}"
_KATAKANA = rf"\p{{WB=Katakana}}{_X}"
_JOIN = rf"\p{{WB=ExtendNumLet}}{_X}"
_IN_WORD = rf"[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{_X}"
_IN_NUMBER = rf"[\p{{WB=MidNum}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{_X}"

# Rules WB5 to WB13b: letters and digits run together, one mark may stand between two
# letters or two digits, underscores tie anything.
_RUN = (
    rf"(?:(?:{_LETTER}(?:{_IN_WORD}(?={_LETTER}))?"
    rf"|{_DIGIT}(?:{_IN_NUMBER}(?={_DIGIT}))?)+|(?:{_KATAKANA})+)"
)
_WORD = rf"(?:{_JOIN})*{_RUN}(?:(?:{_JOIN})+{_RUN})*(?:{_JOIN})*"

# Lucene's tables are Unicode 12.1's, whose pictographs were more: the ranges are the
# stars, hearts and arrows that later versions took out again.
_PICTOGRAPH = (
    r"[\p{Extended_Pictographic}\u2388\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705"
    r"\u2708-\u2712\u2763-\u2767\U0001F000-\U0001F0FF\U0001F249-\U0001F53D"
    r"\U0001F546-\U0001F64F\U0001F680-\U0001F6FF]"
)
_EMOJI = (
    rf"\p{{WB=Regional_Indicator}}{_X}\p{{WB=Regional_Indicator}}{_X}"
    rf"|{_PICTOGRAPH}{_X}(?:(?<=\u200D){_PICTOGRAPH}{_X})*"
    r"|[#*]\uFE0F?\u20E3"
)

# Han and Hiragana stand alone; Thai, Lao, Khmer and Burmese keep whole phrases.
_TOKEN = regex.compile(
    rf"{_WORD}|[\p{{Script=Han}}\p{{Script=Hiragana}}]{_X}"
    rf"|(?:\p{{LB=Complex_Context}}{_X})+|{_EMOJI}",
    regex.V1,
)


def tokens(text: str) -> list[str]:
    """Returns the terms of a text, in order, repeated ones repeated.

    Differs from Elasticsearch's `standard` analyzer in letters younger than Unicode
    12.1, in joiners and text selectors that dangle after an emoji, in Hebrew
    gershayim, and in where words over 255 characters are cut if a mark or a sign
    outside the basic plane is near.

    Example:
        >>> tokens("O'Neil's 3/4 U.S.A. wi-fi ½ Nike®")
        ["o'neil's", '3', '4', 'u.s.a', 'wi', 'fi', 'nike', '®']
    """
    if text.isascii():
        words = _TOKEN.findall(text.lower())
    else:
        words = [_lower(word) for word in _TOKEN.findall(text)]
    if all(len(word) <= MAX_TOKEN_LENGTH for word in words):
        return words
    return [
        word[start : start + MAX_TOKEN_LENGTH]
        for word in words
        for start in range(0, len(word), MAX_TOKEN_LENGTH)
    ]


def _lower(word: str) -> str:
    # Java lowers sign by sign: no final sigma, and a dotted I is one plain i.
    return "".join(sign.lower()[0] for sign in word)


def bag(text: str) -> dict[str, float]:
    """The terms of a text and how often each occurs, in order of first appearance.

    >>> bag("red, red wine")
    {'red': 2.0, 'wine': 1.0}
    """
    return {term: float(count) for term, count in Counter(tokens(text)).items()}
