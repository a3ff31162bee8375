"""Where sentences end, in several languages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.models.sentences import has_something_to_say, sentences

# Each line is one text; a bar stands where one sentence ends and another begins.
TEXTS = """
Hello there. | How are you? | Fine, thanks!
hello there. | how are you? | fine
Stop! | Who goes there?! | Me.
Add 3.5 litres and 1,000.75 grams. | Version 2.0.1 is out.
See example.com or mail a.b@c.org today. | Thanks.
Dr. Who met Mr. and Mrs. Smith. | They talked.
We leave at 5 p.m. sharp. | At 6 p.m. | We are there.
J. R. R. Tolkien wrote it. | The U.S. Army did not.
Bring pens, paper, etc. and go. | Bring pens, etc. | Then go.
No. 5 is alive. | No. | I do not know.
I won't. | He can't. | She'd better.
It is 12. noon.
Wait... what? | Well... | Then he left… and came back… | Again.
"Really?" she asked. | "Yes." | He nodded.
He said "no." | Then (he left.) | [Good.] | So.
(Wait!) | Go on.
« Oui. » | Il part. | « Non ! » dit-il. | Quoi ? | Rien.
M. et Mme. Dupont habitent au n° 5 bis. | Voilà.
»Ja.« | Er ging am 3. Mai mit Hr. Meier, z. B. Kaffee trinken, z.B. Tee usw. und so fort. | Gut.
„Nein“, sagte sie. | „Doch!“ | Schluss.
¿Qué? | ¡No! | El Sr. López vive aquí. | Sí.
Il Sig. Rossi è qui. | Bene.
Привет. | Как дела? | Это г. Москва и т. д. и пр. вещи. | Она ушла… | Он остался.
你好。 | 再见！ | 真的吗？ | 是的。
他说：“好。” | 然后走了……又回来。
はい。 | 「行く。」 | １．５キロです。 | さようなら
안녕하세요. | 반갑습니다! | 네.
مرحبا. | كيف حالك؟ | بخير.
नमस्ते। | आप कैसे हैं? | ठीक।
Բարեւ։ | Լավ։
"""


def cut(text: str, longest: int = 1000) -> list[str]:
    return sentences(text, length=lambda piece: len(piece.split()), longest=longest)


@pytest.mark.parametrize("line", TEXTS.strip().splitlines())
def test_sentences_end_where_readers_end_them(line: str) -> None:
    """Marks within numbers, names and abbreviations end nothing; scripts without spaces need none."""
    meant = line.split(" | ")
    spaced = "".join(part if part[-1] in "。！？”」" else f"{part} " for part in meant)
    assert cut(spaced) == meant
    assert cut("\n\t" + spaced.replace(" ", "  \n")) == meant


@pytest.mark.parametrize("text", ["", "   ", "...", "?! — «»", "。。。", "🙂"])
def test_without_a_letter_or_digit_there_is_nothing_to_say(text: str) -> None:
    """However many marks there are."""
    assert cut(text) == []


def test_marks_that_stand_alone_belong_to_their_neighbour() -> None:
    """No sentence is silent: marks go with what is before them, or with the first."""
    assert cut("... Hello. ... ! Bye. —") == ["... Hello. ... !", "Bye. —"]


def test_long_sentences_are_cut_after_clauses() -> None:
    """With their marks, none too long, and none so long that hardly anything is left for the next."""
    text = "one two three, four five six; seven eight nine ten: eleven twelve"
    assert cut(text, longest=11) == ["one two three, four five six;", "seven eight nine ten: eleven twelve"]
    assert cut(text, longest=4) == ["one two three,", "four five six;", "seven eight nine ten:", "eleven twelve"]
    assert cut(text, longest=12) == [text]
    assert cut(f"Short. {text}. Short.", longest=12) == ["Short.", f"{text}.", "Short."]
    assert sentences("一二三四五，六七八、九十一二三", length=len, longest=9) == [
        "一二三四五，",
        "六七八、",
        "九十一二三",
    ]


def test_without_clauses_they_are_cut_between_words_and_words_anywhere() -> None:
    """But never within what is one character to a reader."""
    words = "one two three four five six seven eight nine ten eleven"
    assert cut(words, longest=4) == ["one two three four", "five six seven eight", "nine ten eleven"]
    assert sentences("一二三四五六七八", length=len, longest=6) == ["一二三四", "五六七八"]
    assert sentences("a\u0301" * 5, length=len, longest=5) == ["a\u0301a\u0301", "a\u0301a\u0301", "a\u0301"]


def test_numbers_are_no_clauses() -> None:
    """A comma or colon between digits cuts nothing."""
    assert cut("it was 12:30 and 1,000 people came, said one of them", longest=8) == [
        "it was 12:30 and 1,000 people came,",
        "said one of them",
    ]


@given(
    st.text(st.sampled_from('ab1 .,!?…。，、\u0301\u200d\n"«»(🙂—क्') | st.characters(), max_size=200),
    st.integers(1, 20),
)
def test_no_sentence_is_too_long_or_silent_and_nothing_is_lost(text: str, longest: int) -> None:
    """Whatever the text: each has something to say and fits, and together they say every letter and digit in order."""
    pieces = sentences(text, length=len, longest=longest)
    assert all(has_something_to_say(piece) and len(piece) <= longest for piece in pieces)
    assert spoken("".join(pieces)) == spoken(text)
    assert sentences(" ".join(text.split()), length=len, longest=longest) == pieces


def spoken(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def test_marks_without_end_are_left_out() -> None:
    """What stands for nothing takes no more room than there is."""
    assert sentences("Yes" + "!" * 100 + " 🙂" * 50, length=len, longest=10) == ["Yes!!!!!!!"]
    (accented,) = sentences("a" + "\u0301" * 100, length=len, longest=10)
    assert len(accented) <= 10
