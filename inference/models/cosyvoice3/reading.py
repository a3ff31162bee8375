"""Reading: from a text to the ids of its sentences, by CosyVoice's own tokenizer and by whatever it has to read numbers
and signs aloud (ttsfrd, wetext, or nothing but English numbers).

That front end fails on texts that people write (two spaces, nothing but marks), and destroys markup ("[AY0]" becomes
"[AY零]"). So white space is made one, each sentence is given to it by itself and only where it has something to say,
and what stands in brackets is kept from it. Whether brackets are markup is the caller's choice: if not, "[b]" is read
as it stands and becomes no sound of its own.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from cache.encoding import Value
from inference import fingerprint
from inference.errors import InvalidInput
from inference.models import sentences

LONGEST_SENTENCE = 80  # tokens, as CosyVoice cuts
MOST_SENTENCES = 64
CONTROL = ("<|", "|>")  # what commands to the model are written between
_HEAD = "You are a helpful assistant."  # what the model was trained to be told first
_END_OF_PROMPT = "<|endofprompt|>"
_CORE = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)  # what is said, and what stands around it
_HAN = re.compile(r"[\u4e00-\u9fff]")
_DIGIT = re.compile(r"\d")
_FRONT_ENDS = {"ttsfrd": ("ttsfrd", "ttsfrd_dependency"), "wetext": ("wetext", "kaldifst", "inflect"), "": ("inflect",)}


class Reading:
    """Reads texts as one front end does. Raises ValueError for a front end that is not known."""

    def __init__(self, frontend: Any) -> None:
        self._frontend = frontend  # cosyvoice.cli.frontend.CosyVoiceFrontEnd
        self._tokenizer = frontend.tokenizer
        self.kind = _kind_of(frontend)
        if self.kind not in _FRONT_ENDS:
            raise ValueError(f"texts are read by {self.kind}, which is not known")
        added = self._tokenizer.tokenizer.get_added_vocab()
        self._commands = frozenset(number for word, number in added.items() if word.startswith(CONTROL[0]))
        self.marks = tuple(sorted(word for word in added if not word.startswith(CONTROL[0])))
        longest_first = sorted(self.marks, key=lambda mark: (-len(mark), mark))
        self._mark = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def sentences(self, text: str, *, markup: bool) -> list[list[int]]:
        """The ids of each sentence of a text, at least one. Raises InvalidInput for what cannot be said."""
        whole = " ".join(text.split())
        said = [
            piece
            for sentence in sentences.sentences(whole, length=len, longest=len(whole) + 1)
            for piece in sentences.sentences(
                self._aloud(sentence, "text"),
                length=lambda part: len(self._ids(part, markup=markup)),
                longest=LONGEST_SENTENCE,
            )
        ]
        if not said:
            raise InvalidInput("text", "must have something to say: at least one letter or digit")
        if len(said) > MOST_SENTENCES:
            raise InvalidInput("text", f"must have at most {MOST_SENTENCES} sentences; it has {len(said)}")
        if markup and sum(len(self._mark.findall(piece)) for piece in said) < len(self._mark.findall(whole)):
            raise InvalidInput("text", "has more markup in one word than can be said in one breath")
        return [self._checked(self._ids(piece, markup=markup), "text") for piece in said]

    def prompt(self, instruction: str, transcript: str) -> list[int]:
        """The ids of what stands before a text: how to speak, what is said in the recording. Raises InvalidInput."""
        told = " ".join([_HEAD, *instruction.split()])
        heard = " ".join(transcript.split())
        if heard:
            heard = self._aloud(heard, "transcript")
        ids = self._checked(self._ids(told, markup=False), "instruction")
        ids += self._tokenizer.encode(_END_OF_PROMPT, allowed_special=self._frontend.allowed_special)
        return ids + self._checked(self._ids(heard, markup=False), "transcript")

    def version(self) -> Value:
        """Of all that decides what a text is read as, but for the tokenizer."""
        return {
            "front_end": self.kind,
            "libraries": fingerprint.installed(*_FRONT_ENDS[self.kind]),
            "sentences": sentences.version(),
            "limits": [LONGEST_SENTENCE, MOST_SENTENCES],
            "marks": list(self.marks),
        }

    def _aloud(self, sentence: str, field: str) -> str:
        """A sentence with numbers and signs as they are spoken. Markup stays."""
        if not self._mark.search(sentence):
            return self._normalised(sentence, field)
        chinese = bool(_HAN.search(sentence))
        parts = []
        at = 0
        for mark in self._mark.finditer(sentence):
            parts += [self._between(sentence[at : mark.start()], field, chinese=chinese), mark[0]]
            at = mark.end()
        return "".join([*parts, self._between(sentence[at:], field, chinese=chinese)])

    def _between(self, text: str, field: str, *, chinese: bool) -> str:
        """What stands between markup. What surrounds its words stays: marks at its end are not the sentence's."""
        match = _CORE.fullmatch(text)
        before, said, after = match.groups() if match else ("", text, "")
        if chinese and not _HAN.search(said):
            # By itself it would be taken for English.
            if _DIGIT.search(said) and self.kind == "wetext":
                said = self._tried(self._frontend.zh_tn_model.normalize, said, field)
        elif said:
            said = self._normalised(said, field)
        return before + said + after

    def _normalised(self, text: str, field: str) -> str:
        if not sentences.has_something_to_say(text):
            return text
        return self._tried(
            lambda said: self._frontend.text_normalize(said, split=False, text_frontend=True), text, field
        )

    def _tried(self, normalise: Any, text: str, field: str) -> str:
        try:
            return str(normalise(text))
        except Exception as error:  # of a library that says so with whatever comes
            raise InvalidInput(field, "has something that this server's text front end cannot read aloud") from error

    def _ids(self, text: str, *, markup: bool) -> list[int]:
        """Where brackets are no markup they are cut, so that the tokenizer does not find it."""
        if not text:
            return []
        pieces = [text]
        if not markup:
            cuts = [0, *(mark.end() - 1 for mark in self._mark.finditer(text)), len(text)]
            pieces = [text[start:end] for start, end in pairwise(cuts)]
        return [
            number
            for piece in pieces
            for number in self._tokenizer.encode(piece, allowed_special=self._frontend.allowed_special)
        ]

    def _checked(self, ids: list[int], field: str) -> list[int]:
        if not self._commands.isdisjoint(ids):
            raise InvalidInput(field, "must not have what the model takes for a command")
        return ids


def _kind_of(frontend: Any) -> str:
    """What reads numbers aloud, in the words of today's CosyVoice; versions before it had others."""
    if hasattr(frontend, "text_frontend"):
        return str(frontend.text_frontend)
    if getattr(frontend, "use_ttsfrd", False):
        return "ttsfrd"
    return "wetext" if getattr(frontend, "zh_tn_model", None) is not None else ""
