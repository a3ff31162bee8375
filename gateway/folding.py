"""Folding: lines that have marks in the same places, of whatever kind, width and spacing, are one line.

It changes how a line sounds, so a request asks for it. What becomes of a text:

- Characters of full or half width (U+FF00 to U+FFEF) become their usual forms, the ideographic space a usual one.
- White space, however much of it, becomes one space.
- What ends a sentence, and any run of it, becomes ".", and so does the end of the text; what parts a sentence becomes
  ","; each stands right after a word, with one space after it.
- Quotation marks and brackets go. Marks inside words and numbers stay: don't, well-known, 3.5, -5, 10:30, 1,000.

Letters, digits and symbols stay as they are. Markup in brackets does not survive this.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

KINDS = ("punctuation", "width", "spacing")

_ENDS = frozenset(".!?。！？…‥．؟۔।॥։።፧៕‼⁇⁈⁉‽")
_PAUSES = frozenset(",;:、，；：،؛፣፤፥-‐‑‒–—―〜~")
_IN_WORDS, _IN_NUMBERS = frozenset(".'’‘`´-‐‑"), frozenset(".'’‘`´-‐‑–,:~")
_USUAL = str.maketrans("’‘`´‐‑–", "''''---")  # of marks that stay
_NARROWER = re.compile("[\uff00-\uffef\u3000]+")


def fold(text: str) -> tuple[str, tuple[str, ...]]:
    """The folded line, empty if nothing is left to say, and which kinds of things were changed, of `KINDS`.

    Folding again changes nothing. `text` is normalised, and so is what comes out.
    """
    narrow = _NARROWER.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    narrow = unicodedata.normalize("NFC", narrow)
    changed = {"width"} if narrow != text else set()
    folded = ""
    for gap, word in _gaps_and_words(narrow):
        mark, space = _between(folded, gap, word)
        if mark != "".join(gap.split()):
            changed.add("punctuation")
        if space != "".join(filter(str.isspace, gap)):
            changed.add("spacing")
        usual = word.translate(_USUAL)
        if usual != word:
            changed.add("punctuation")
        folded += mark + space + usual
    return unicodedata.normalize("NFC", folded), tuple(kind for kind in KINDS if kind in changed)


def _gaps_and_words(text: str) -> Iterator[tuple[str, str]]:
    """Everything in its order: what stands before each word, and the word; in the end what comes last, and nothing."""
    gap, word = "", ""
    for at, character in enumerate(text):
        if _is_of_a_gap(character) and not _stays(text, at):
            if word:
                yield gap, word
                gap, word = "", ""
            gap += character
        else:
            word += character
    if word:
        yield gap, word
        gap = ""
    yield gap, ""


def _is_of_a_gap(character: str) -> bool:
    return character.isspace() or character in _ENDS or character in _PAUSES or _is_dropped(character)


def _is_dropped(character: str) -> bool:
    """Whether it is a quotation mark, a bracket, or what begins a sentence in Spanish."""
    return character in "\"'`´¿¡" or unicodedata.category(character) in ("Ps", "Pe", "Pi", "Pf")


def _stays(text: str, at: int) -> bool:
    """Whether a mark is part of a word or a number."""
    before, mark, after = text[max(at - 1, 0) : at], text[at], text[at + 1 : at + 2]
    if before.isdecimal() and after.isdecimal():
        return mark in _IN_NUMBERS
    if mark in _IN_WORDS and _is_of_a_word(before) and _is_of_a_word(after):
        return True
    if not after.isdecimal():
        return False
    if mark == "-":  # a sign, which may stand right after a letter that stands for itself
        return before != "-" and not _is_of_a_word(before)
    return mark == "." and before in ("", " ")  # a point without a digit before it


def _is_of_a_word(character: str) -> bool:
    """Whether it is a letter or digit, or a sign on one, in a script that writes words of several."""
    return character != "" and unicodedata.category(character)[0] in "LMN" and not _is_wide(character)


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in ("W", "F")


def _between(before: str, gap: str, after: str) -> tuple[str, str]:
    """The mark and the space that a gap becomes."""
    if not before:
        return "", ""
    if not after:
        return ".", ""
    if not _ENDS.isdisjoint(gap):
        return ".", " "
    if not _PAUSES.isdisjoint(gap):
        return ",", " "
    apart = any(map(str.isspace, gap)) or (gap and not (_is_wide(before[-1]) and _is_wide(after[0])))
    return "", " " if apart else ""
