"""Folding: lines that differ in punctuation, width or spacing come to one, and nothing else is lost."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.folding import KINDS, fold
from gateway.validate import normalise

# Letters and signs of several scripts, and every kind of mark and space among them.
LETTERS = "abcXYZéßñøčğабвЖёїαβγΩאבגשابجدةىकखगािीक्षกขคำ你好世界请稍等ひらがなカタカナ안녕하세요ԱԲգሀለ"
DIGITS, SYMBOLS = "0123456789٠१一二", "%&+=@#$€£/\\_*<>|^😀☕"
WIDE = "".join(map(chr, range(0xFF01, 0xFFEF))).replace("\uffa0", "")
MARKS = ".,;:!?…。、，！？；：·・¿¡\"'“”‘’«»「」『』()[]{}（）【】-–—―~〜`´،؛؟।॥።፣։―‼⁇"
SPACES = " \t\n\u3000\u00a0\u2003\u2028"
texts = st.text(st.sampled_from(LETTERS + DIGITS + SYMBOLS + WIDE + MARKS * 3 + SPACES * 6), max_size=60).map(normalise)
any_texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=40).map(normalise)


@pytest.mark.parametrize(
    ("text", "folded", "kinds"),
    [
        ("Please hold.", "Please hold.", ()),
        ("Please hold", "Please hold.", ("punctuation",)),
        ("Please hold!", "Please hold.", ("punctuation",)),
        ("Please hold?!…", "Please hold.", ("punctuation",)),
        ("Please  hold.", "Please hold.", ("spacing",)),
        ("Please\nhold.", "Please hold.", ("spacing",)),
        ("Ｐｌｅａｓｅ hold.", "Please hold.", ("width",)),
        ("Please\u3000hold.", "Please hold.", ("width",)),
        ("“Please,” he said: (hold)", "Please, he said, hold.", ("punctuation",)),
        ("Please–hold", "Please, hold.", ("punctuation", "spacing")),
        ("Please - hold", "Please, hold.", ("punctuation", "spacing")),
        ("Wait...what", "Wait. what.", ("punctuation", "spacing")),
        ("请稍等~", "请稍等.", ("punctuation",)),
        ("请稍等！！", "请稍等.", ("punctuation", "width")),
        ("你好，世界。", "你好, 世界.", ("punctuation", "width", "spacing")),
        ("「你好」世界", "你好世界.", ("punctuation",)),
        ("ｶﾞｷﾞｸﾞ。", "ガギグ.", ("punctuation", "width")),
        ("मैं ठीक हूँ।", "मैं ठीक हूँ.", ("punctuation",)),
        ("مرحبا، كيف حالك؟", "مرحبا, كيف حالك.", ("punctuation",)),
        ("¿Qué tal?", "Qué tal.", ("punctuation",)),
        ("", "", ()),
        ("…!", "", ("punctuation",)),
    ],
    ids=lambda value: None if isinstance(value, tuple) else repr(value)[:40],
)
def test_lines_become_one_line(text: str, folded: str, kinds: tuple[str, ...]) -> None:
    """What is punctuation, width or spacing becomes what it is for all; and it is said what was changed."""
    assert (folded, kinds) == fold(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "don't stop.",
            "well-known.",
            "it is 3.5 metres.",
            "at 10:30.",
            "1,000.",
            "from 3~5.",
            "it is -5.",
            "e.g. this.",
        ),
        *(
            "example.com.",
            "it is .5.",
            "温度-5度.",
            "50%.",
            "a/b.",
            "C++ and C#.",
            "约翰·史密斯.",
            "rock & roll.",
            "😀.",
        ),
    ],
)
def test_marks_in_words_and_numbers_stay(text: str) -> None:
    """They change what is said, not how."""
    assert (text, ()) == fold(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [("don’t", "don't"), ("well‐known", "well-known"), ("3．5", "3.5"), ("10–20", "10-20"), ("don`t", "don't")],
)
def test_marks_in_words_have_one_form(one: str, other: str) -> None:
    """However they were typed."""
    assert fold(one)[0] == fold(other)[0] == other + "."


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(
            ("a b", "ab"),
            ("3.5", "35"),
            ("-5", "5"),
            ("1,5", "1.5"),
            ("m²", "m2"),
            ("½", "1/2"),
            ("①", "1"),
            ("ﬁ", "fi"),
        ),
        *(("A", "a"), ("é", "e"), ("hello, you", "hello you"), ("你好，世界", "你好世界"), ("no. way", "no way")),
    ],
)
def test_what_is_said_otherwise_stays_apart(one: str, other: str) -> None:
    """Letters, numbers and pauses are no matter of folding; of what looks alike, only full and half width is."""
    assert fold(one)[0] != fold(other)[0]


@given(texts | any_texts)
def test_folding_again_changes_nothing(text: str) -> None:
    """A folded line is its own, and as normalised as every text."""
    folded, kinds = fold(text)

    assert (folded, ()) == fold(folded)
    assert normalise(folded) == folded
    assert (folded != text) == bool(kinds)
    assert kinds == tuple(kind for kind in KINDS if kind in kinds)


@given(texts | any_texts)
def test_no_letter_and_no_digit_is_lost(text: str) -> None:
    """What is said comes out, in its order, with nothing added."""

    def said(line: str) -> str:
        narrow = "".join(unicodedata.normalize("NFKC", each) if "\uff00" <= each <= "\uffef" else each for each in line)
        return "".join(each for each in unicodedata.normalize("NFD", narrow) if unicodedata.category(each)[0] in "LN")

    assert said(text) == said(fold(text)[0])


@given(st.lists(st.sampled_from(["hello", "3.5", "don't", "мир", "你好", "สวัสดี"]), min_size=1, max_size=6), st.data())
def test_lines_that_differ_in_marks_alone_are_one(words: list[str], data: st.DataObject) -> None:
    """Any mark of a kind, any width of it and any white space about it come to the same line."""
    ends, pauses = ["!", "?", "…", "。", "！", "...", "?!", ". ", "．", "؟"], [";", "，", "、", " — ", ":", "；", " - "]
    spaces = ["", " ", "  ", "\n", "\u3000"]
    kinds = [data.draw(st.sampled_from("., ")) for _ in words[1:]]

    def line() -> str:
        text = words[0]
        for kind, word in zip(kinds, words[1:], strict=True):
            mark = {".": ends, ",": pauses, " ": [" ", "\t ", "\u3000"]}[kind]
            before, after = data.draw(st.sampled_from(spaces)), data.draw(st.sampled_from(spaces[1:]))
            text += before + data.draw(st.sampled_from(mark)) + after + word
        return normalise(text + data.draw(st.sampled_from(["", *ends, *pauses])))

    assert fold(line())[0] == fold(line())[0]


@given(texts)
def test_what_comes_out_has_few_marks(text: str) -> None:
    """Between words nothing but a space, a comma or a full stop, and a full stop at the end."""
    folded, _ = fold(text)

    assert not folded or folded.endswith(".")
    assert not [bad for bad in (*'\n\t!?。，"()「', "  ", ", ,", " ,", ",.") if bad in folded]
