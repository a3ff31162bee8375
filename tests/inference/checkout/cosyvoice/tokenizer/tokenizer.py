"""The tokenizer of the language model, and what it is told besides."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import AutoTokenizer

_EVENTS = "breath noise laughter cough clucking accent quick_breath hissing sigh vocalized-noise lipsmack mn"
_ARPABET = "AA AA0 AA1 AE AY AY0 AY1 AY2 B D EH1 HH K L N OW OW0 S T Z"
_PINYIN = "a b h n j z zh ào ǎo ǐ í hǎo"


class CosyVoice3Tokenizer:
    def __init__(self, token_path: str, skip_special_tokens: bool = True) -> None:
        names = [*_EVENTS.split(), *_ARPABET.split(), *_PINYIN.split()]
        special_tokens = {
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": [
                *("<|im_start|>", "<|im_end|>", "<|endofprompt|>", "<|endofsystem|>"),
                *("<strong>", "</strong>", "<laughter>", "</laughter>"),
                *(f"[{name}]" for name in names),
            ],
        }
        self.special_tokens = special_tokens
        self.tokenizer: Any = AutoTokenizer.from_pretrained(token_path)
        self.tokenizer.add_special_tokens(special_tokens)
        self.skip_special_tokens = skip_special_tokens

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        ids: list[int] = self.tokenizer([text], return_tensors="pt")["input_ids"][0].cpu().tolist()
        return ids

    def decode(self, tokens: list[int]) -> str:
        ids = torch.tensor(tokens, dtype=torch.int64)
        text: str = self.tokenizer.batch_decode([ids], skip_special_tokens=self.skip_special_tokens)[0]
        return text


@cache
def get_qwen_tokenizer(token_path: str, skip_special_tokens: bool, version: str = "cosyvoice3") -> CosyVoice3Tokenizer:
    return CosyVoice3Tokenizer(token_path, skip_special_tokens)
