"""Speaking: CosyVoice 3's language model, which goes on with tokens of speech where a text ends, one after the other.

The loop is ours. CosyVoice's own draws from the generator that all threads share, cannot be stopped, and tells the
attention of the newest token alone: libraries that heed that (transformers from 4.53 on) then forget everything before
it, and what is spoken is noise without an error. Here every sentence has its own generator, every token is a step, and
the mask is as long as what was said. `deviation` is how a server finds out at its start that all of this still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from inference.models.cosyvoice3.checkout import undisturbed

MOST_DEVIATION = 1e-3  # of states in single precision; a forgetful attention is off by far more
_SHORTEST, _LONGEST = 2, 20  # tokens of speech for each of the text, as CosyVoice bounds it
_MOST_SILENT = 5  # tokens of silence in a row that are kept, likewise


@dataclass(frozen=True)
class Sampling:
    """How CosyVoice draws a token: among the most probable ones, and among all where one is said too often."""

    top_p: float
    top_k: int
    window: int  # tokens back in which a token must not come again
    tolerance: float  # the share of them that it may be
    avoids: bool  # whether a token that was said too often is left out of the second draw

    @classmethod
    def of(cls, llm: Any) -> Sampling:
        """As the folder and this version of CosyVoice's code have it. Raises ValueError if it draws otherwise."""
        named = getattr(llm.sampling, "keywords", None)
        if named is None or not named.keys() <= {"top_p", "top_k", "win_size", "tau_r"}:
            raise ValueError("tokens are drawn in a way that is not known")
        window = int(named.get("win_size", 10))
        certain = torch.tensor([0.0, *[-40.0] * 63])
        with undisturbed():
            again = int(llm.sampling(certain.clone(), [0] * window, 25))
        return cls(
            top_p=float(named.get("top_p", 0.8)),
            top_k=int(named.get("top_k", 25)),
            window=window,
            tolerance=float(named.get("tau_r", 0.1)),
            avoids=again != 0,
        )

    def draw(self, scores: torch.Tensor, said: Sequence[int], generator: torch.Generator) -> int:
        """One of [n] tokens by their scores, on the host; the very draws of CosyVoice's own after the same seed."""
        values, order = scores.softmax(0).sort(descending=True, stable=True)
        kept, total = 0, torch.zeros((), dtype=values.dtype)
        while kept < min(self.top_k, len(values)) and total < self.top_p:
            total = total + values[kept]
            kept += 1
        token = int(order[values[:kept].multinomial(1, replacement=True, generator=generator)])
        if list(said[-self.window :]).count(token) < self.window * self.tolerance:
            return token
        if self.avoids:
            scores = scores.clone()
            scores[token] = -torch.inf
        return int(scores.softmax(0).multinomial(1, replacement=True, generator=generator))


class Speech:
    """What the model has read and said so far."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm  # cosyvoice.llm.llm.CosyVoice3LM
        self._cache = DynamicCache(config=llm.llm.model.config)

    def read(self, embedded: torch.Tensor) -> torch.Tensor:
        """The states [n, D] of what comes next, [n, D], in the light of all that came before."""
        before = self._cache.get_seq_length()
        # Of all that it attends to, and not of what is new alone.
        mask = torch.ones(1, before + len(embedded), dtype=torch.bool, device=embedded.device)
        state = self._llm.llm.model.model(
            inputs_embeds=embedded[None], attention_mask=mask, past_key_values=self._cache, use_cache=True
        )
        states: torch.Tensor = state.last_hidden_state[0]
        return states


def speak(
    llm: Any,
    text: torch.Tensor,
    *,
    prompt: torch.Tensor,
    heard: torch.Tensor,
    sampling: Sampling,
    silent: frozenset[int],
    seed: int,
    tell: Callable[[int], None],
    step: Callable[[int, int], None],
) -> None:
    """Say a sentence. text, prompt: int64 [n], ids; heard: int [n], tokens of a recording to go on from, or none.

    `tell` hears of each token of speech, `step` of how many there are, and of how many there may be.
    """
    stops = torch.tensor(sorted(llm.stop_token_ids))
    over = frozenset(llm.stop_token_ids)
    shortest, longest = len(text) * _SHORTEST, len(text) * _LONGEST
    generator = torch.Generator().manual_seed(seed)
    drawn: list[int] = []
    speech = Speech(llm)
    state = speech.read(_before(llm, text, prompt, heard))[-1:]

    def following() -> int:
        scores = llm.llm_decoder(state).log_softmax(-1)[0].to("cpu")
        if len(drawn) < shortest:
            scores[stops] = -torch.inf
        return sampling.draw(scores, drawn, generator)

    told = quiet = 0
    token = following()
    while token not in over:
        drawn.append(token)
        quiet = quiet + 1 if token in silent else 0
        if quiet <= _MOST_SILENT:
            told += 1
            tell(token)
        if len(drawn) == longest:
            step(told, told)
            return
        state = speech.read(llm.speech_embedding.weight[token][None])
        token = following()
        step(told, told if token in over else longest)


def deviation(llm: Any) -> float:
    """How much what is read step by step differs from what is read at once, for the largest of all states."""
    words = llm.llm.model.model.embed_tokens.weight
    embedded = words[torch.arange(24, device=words.device) * 7 % len(words)]
    with torch.no_grad():
        at_once = Speech(llm).read(embedded)
        stepwise = Speech(llm)
        parts = [stepwise.read(embedded[:12]), *(stepwise.read(embedded[at : at + 1]) for at in range(12, 24))]
        return float((torch.cat(parts) - at_once).abs().max() / at_once.abs().max())


def _before(llm: Any, text: torch.Tensor, prompt: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
    """What stands before the first token of speech, [n, D]."""
    words, sounds = llm.llm.model.model.embed_tokens.weight, llm.speech_embedding.weight
    return torch.cat(
        [sounds[llm.sos][None], words[prompt], words[text], sounds[llm.task_id][None], sounds[heard.to(torch.int64)]]
    )
