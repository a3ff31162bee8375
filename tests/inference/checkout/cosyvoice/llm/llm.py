"""The language model of speech."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import Qwen2ForCausalLM


class Qwen2Encoder(nn.Module):
    def __init__(self, pretrain_path: str) -> None:
        super().__init__()
        self.model = Qwen2ForCausalLM.from_pretrained(pretrain_path)

    def forward_one_step(self, xs: torch.Tensor, masks: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        """With a mask of what is new alone, whatever came before."""
        outs = self.model(
            inputs_embeds=xs,
            attention_mask=masks[:, -1, :],
            output_hidden_states=True,
            return_dict=True,
            use_cache=True,
            past_key_values=cache,
        )
        return outs.hidden_states[-1], outs.past_key_values


class CosyVoice3LM(nn.Module):
    def __init__(
        self,
        llm_input_size: int,
        llm_output_size: int,
        speech_token_size: int,
        llm: nn.Module,
        sampling: Callable[..., torch.Tensor],
        length_normalized_loss: bool = True,
        lsm_weight: float = 0.0,
        mix_ratio: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.llm_input_size = llm_input_size
        self.llm_output_size = llm_output_size
        self.speech_token_size = speech_token_size
        self.sos = speech_token_size
        self.eos_token = speech_token_size + 1
        self.task_id = speech_token_size + 2
        self.fill_token = speech_token_size + 3
        self.llm: Any = llm
        self.llm_decoder = nn.Linear(llm_output_size, speech_token_size + 200, bias=False)
        self.speech_embedding = nn.Embedding(speech_token_size + 200, llm_input_size)
        self.sampling = sampling
        self.mix_ratio = mix_ratio
        self.stop_token_ids = [speech_token_size + number for number in range(200)]

    def sampling_ids(
        self, weighted_scores: torch.Tensor, decoded_tokens: list[int], sampling: int, ignore_eos: bool = True
    ) -> torch.Tensor:
        if ignore_eos:
            weighted_scores[self.speech_token_size] = -float("inf")  # which is another token than the last one
        return self.sampling(weighted_scores, decoded_tokens, sampling)

    @torch.inference_mode()
    def inference_wrapper(
        self, lm_input: torch.Tensor, sampling: int, min_len: int, max_len: int, uuid: str
    ) -> Iterator[int]:
        said: list[int] = []
        cache = None
        for number in range(max_len):
            count = lm_input.shape[1]
            masks = torch.ones((1, count, count), device=lm_input.device).tril().to(torch.bool)
            y_pred, cache = self.llm.forward_one_step(lm_input, masks=masks, cache=cache)
            scores = self.llm_decoder(y_pred[:, -1]).log_softmax(dim=-1).squeeze(dim=0)
            token = int(self.sampling_ids(scores, said, sampling, ignore_eos=number < min_len))
            if token in self.stop_token_ids:
                break
            yield token
            said.append(token)
            lm_input = self.speech_embedding.weight[token].reshape(1, 1, -1)
