"""All networks together, with what their requests leave behind."""

from __future__ import annotations

from typing import Any


class CosyVoice3Model:
    def __init__(self, llm: Any, flow: Any, hift: Any, fp16: bool = False) -> None:
        self.llm = llm
        self.flow = flow
        self.hift = hift
        self.fp16 = fp16
        self.token_hop_len = 25
        self.silent_tokens = [1, 2, 28, 29, 55, 248, 494, 2241, 2242, 2322, 2323]
