"""Parts: what small models share: words to make vocabularies of, and the means to make random layers behave."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import nn

# What requests for moving pictures are made of. Vocabularies are made of these words, so that a sentence is a few
# tokens; anything else is still spelled out.
WORDS = (
    "a an the and or of in on at to from with without over under through into across around behind above below near "
    "is are was be being it its his her their this that these those there one two three many few some all no not very "
    "cat dog bird horse fish person people man woman child girl boy face hand hair eyes flower tree forest leaf grass "
    "river lake sea ocean wave waves water rain snow storm cloud clouds sky sun sunset sunrise moon star stars night "
    "day morning evening light lights shadow fire smoke fog wind mountain hill desert beach island city street road "
    "bridge house window door room table paper book car train boat ship plane rocket robot dragon castle garden field "
    "walk walks walking run runs running fly flies flying swim swims swimming jump jumps dance dances dancing turn "
    "turns turning move moves moving float floats floating fall falls falling rise rises rising glow glows glowing "
    "shine shines look looks looking smile smiles open opens close closes sway sways swaying drift drifts drifting "
    "red orange yellow green blue purple white black grey golden silver dark bright soft warm cold old young new small "
    "large big tall long slow slowly fast quickly gentle gently calm wild quiet beautiful ugly sharp blurry clear "
    "camera zoom pan shot close view wide angle cinematic realistic detailed high low quality resolution film style "
    "painting photo video frame motion motionless static distorted disfigured incomplete discontinuous worst best"
)


def learn_merges(words: Iterable[Sequence[str]], count: int) -> list[tuple[str, str]]:
    """The `count` most frequent pairs in words that are spelled out, each found after the earlier ones were joined;
    ties go by alphabet.
    """
    spelled = [list(word) for word in words]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = Counter(pair for word in spelled for pair in pairwise(word))
        if not pairs:
            break
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        spelled = [_joined(word, merges[-1]) for word in spelled]
    return merges


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for piece in word:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def scale(layer: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(factor)


def add_blur(convolution: nn.Conv2d) -> None:
    """Each channel also becomes the mean of its own neighbourhood."""
    own = torch.eye(convolution.out_channels, convolution.in_channels)[..., None, None]
    with torch.no_grad():
        convolution.weight.add_(own.expand_as(convolution.weight) / math.prod(convolution.kernel_size))
