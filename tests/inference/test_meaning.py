"""Meaning: a text's parts are told apart by what they are, and whatever is made of them is named by that."""

from __future__ import annotations

import pytest
import torch

from cache.keys import Address
from cache.parts import whole_name
from inference.errors import InvalidInput
from inference.meaning import Meaning, Part, meaning_of, understand
from inference.models.base import Call, Output, Tensors
from inference.plan import Plan, read_plan
from tests.inference.speech_fixtures import SpokenModel, ask_speech


class _Told(SpokenModel):
    """Its text is whatever a test says."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def _sentences(self, call: Call) -> Output:
        return self._output


def meaning(text: str = "Yes. No.", model: SpokenModel | None = None) -> Meaning:
    model = model or SpokenModel()
    plan: Plan = read_plan(ask_speech(model.description, text), {"spoken": model})
    tokens = next(stage for stage in plan.stages if stage.name == "tokens")
    understood = understand(plan, tokens, {})
    return meaning_of(plan, understood.outputs, understood.digests, {"tokens": understood.order})


def sentences(text: str) -> list[Address]:
    """Where the sound of each sentence lies."""
    meant = meaning(text)
    stage = next(stage for stage in SpokenModel().description.stages if stage.name == "waveform")
    return [meant.addresses[name] for name in meant.names(stage)]


def test_a_sentence_lies_at_one_address_wherever_it_is_said() -> None:
    """In another place, another text, another spelling; said twice it is one."""
    yes, no, again = sentences("Yes. No. Yes.")
    assert yes == again != no
    assert [no, yes] == sentences("  no.  YES")
    assert meaning("yes. no").addresses["file"] == meaning("YES.  NO.").addresses["file"]
    assert meaning("yes. no").addresses["file"] != meaning("no. yes").addresses["file"]


def test_parts_are_outputs_of_their_own() -> None:
    """Each with what the text said of it, under the text's own names for it; the whole stays what it was."""
    meant = meaning("Yes please. No. Yes please.")
    assert {"tokens", "tokens[0]", "tokens[1]"} == meant.outputs.keys() == meant.digests.keys()
    assert (0, 1, 0) == tuple(meant.order["tokens"])
    assert (2, 1) == (len(meant.outputs["tokens[0]"]["ids"]), len(meant.outputs["tokens[1]"]["ids"]))
    assert {"order", "ids[0]", "ids[1]"} == meant.outputs["tokens"].keys()


def test_everything_knows_its_place() -> None:
    """Where a part is said first, of how many; what a stage is called at each place; and what it is made of."""
    meant = meaning("Yes. No. Yes. Good")
    assert {Part(0, 4), Part(1, 4), Part(3, 4)} == set(meant.parts.values())
    assert Part(3, 4) == meant.parts["pace[2]"]
    pace, file = SpokenModel().description.stages[-2:]
    assert (("pace[0]", "pace[1]", "pace[0]", "pace[2]"), ("file",)) == (meant.names(pace), meant.names(file))
    assert {"latents[2]", "tokens[2]", "tokens", "prefix", "voice"} == meant.made_of["waveform[2]"]
    assert {whole_name(name) for name in meant.made_of["file"]} == {
        stage.name for stage in SpokenModel().description.stages[:-1]
    }


def test_equal_parts_are_one_however_they_are_counted() -> None:
    """A model that counts every place, or counts from elsewhere, says the same text."""
    yes, no = torch.tensor([1, 2]), torch.tensor([3])
    spelt: list[Tensors] = [
        {"order": torch.tensor([0, 1, 0]), "ids[0]": yes, "ids[1]": no},
        {"order": torch.tensor([0, 1, 2]), "ids[0]": yes, "ids[1]": no, "ids[2]": yes.clone()},
        {"order": torch.tensor([7, 3, 7]), "ids[3]": no, "ids[7]": yes, "ids[8]": no},
    ]
    meant = [meaning(model=_Told(output)) for output in spelt]
    assert [(0, 1, 0)] * 3 == [tuple(each.order["tokens"]) for each in meant]
    assert 1 == len({each.addresses["file"] for each in meant})
    assert 1 == len({tuple(stage.name for stage in each.stages) for each in meant})
    assert all(torch.equal(each.outputs["tokens[1]"]["ids"], no) for each in meant)


@pytest.mark.parametrize(
    "output",
    [
        {"ids[0]": torch.zeros(1)},
        {"order": torch.tensor([], dtype=torch.int64), "ids[0]": torch.zeros(1)},
        {"order": torch.tensor([0, 1]), "ids[0]": torch.zeros(1)},
        {"order": torch.tensor([0]), "ids": torch.zeros(1)},
    ],
    ids=["no order", "nothing said", "a part that is not there", "no parts"],
)
def test_a_text_that_is_none_is_a_fault(output: Tensors) -> None:
    """What a model must say of its text's parts is said, or nothing is made of it."""
    with pytest.raises(ValueError, match="a text has parts"):
        meaning(model=_Told(output))


@pytest.mark.parametrize("text", ["", " . .", ". ".join("abcdefghij"[n // 10] + str(n) for n in range(65))])
def test_a_text_may_be_refused(text: str) -> None:
    """By the model, which knows what it can say."""
    with pytest.raises(InvalidInput, match="something to say"):
        meaning(text)


def test_what_does_not_depend_on_the_text_has_one_name_for_all() -> None:
    """A new text in a known voice meets what was made of the voice."""
    assert meaning("Yes.").addresses["prefix"] == meaning("No. Never.").addresses["prefix"]
