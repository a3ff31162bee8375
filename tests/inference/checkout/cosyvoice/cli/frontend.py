"""What comes before the networks: texts and recordings."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from cosyvoice.utils.file_utils import load_wav  # type: ignore[import-not-found]

_NUMBERS = {
    "zh": dict(zip("0123456789", "零一二三四五六七八九", strict=True)),
    "en": dict(zip("0123456789", "zero one two three four five six seven eight nine".split(), strict=True)),
}


class Normalizer:
    """Reads digits aloud, and fails on what the real one fails on."""

    def __init__(self, lang: str) -> None:
        self.lang = lang

    def normalize(self, text: str) -> str:
        assert text.strip()
        if self.lang == "en":
            assert "  " not in text
            assert not re.search(r"\[[^\]]*\d", text)
        said = {digit: word if self.lang == "zh" else f" {word}" for digit, word in _NUMBERS[self.lang].items()}
        return re.sub(r"\d", lambda digit: said[digit[0]], text).strip()


class CosyVoiceFrontEnd:
    def __init__(
        self,
        get_tokenizer: Callable[[], Any],
        feat_extractor: Callable[..., torch.Tensor],
        campplus_model: str,
        speech_tokenizer_model: str,
        spk2info: str = "",
        allowed_special: str = "all",
    ) -> None:
        self.tokenizer = get_tokenizer()
        self.feat_extractor = feat_extractor
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        option = onnxruntime.SessionOptions()
        option.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.campplus_session = onnxruntime.InferenceSession(campplus_model, option, providers=providers)
        self.speech_tokenizer_session = onnxruntime.InferenceSession(
            speech_tokenizer_model, option, providers=providers
        )
        assert spk2info == "", "nobody's stored speakers are opened"
        self.spk2info: dict[str, Any] = {}
        self.allowed_special = allowed_special
        self.text_frontend = "wetext"
        self.zh_tn_model, self.en_tn_model = Normalizer("zh"), Normalizer("en")

    def _extract_speech_token(self, prompt_wav: Any) -> tuple[torch.Tensor, torch.Tensor]:
        speech = load_wav(prompt_wav, 16000)
        assert speech.shape[1] / 16000 <= 30, "do not support extract speech token for audio longer than 30s"
        window = torch.hann_window(400)
        spectrum = torch.stft(speech, 400, 160, window=window, return_complex=True)[..., :-1].abs()
        features = (spectrum[:, :128] + 1e-3).log10()
        session = self.speech_tokenizer_session
        names = [each.name for each in session.get_inputs()]
        given = {names[0]: features.numpy(), names[1]: np.array([features.shape[2]], dtype=np.int32)}
        tokens = torch.tensor([session.run(None, given)[0].flatten().tolist()], dtype=torch.int32)
        return tokens.to(self.device), torch.tensor([tokens.shape[1]], dtype=torch.int32)

    def _extract_spk_embedding(self, prompt_wav: Any) -> torch.Tensor:
        speech = load_wav(prompt_wav, 16000)
        frames = speech[0].unfold(0, 400, 160) * torch.hann_window(400)
        features = (torch.fft.rfft(frames).abs()[:, :80] + 1e-3).log()
        features = features - features.mean(dim=0, keepdim=True)
        session = self.campplus_session
        given = {session.get_inputs()[0].name: features[None].numpy()}
        return torch.tensor([session.run(None, given)[0].flatten().tolist()]).to(self.device)

    def _extract_speech_feat(self, prompt_wav: Any) -> tuple[torch.Tensor, torch.Tensor]:
        speech = load_wav(prompt_wav, 24000)
        frames = self.feat_extractor(speech).squeeze(dim=0).transpose(0, 1)[None].to(self.device)
        return frames, torch.tensor([frames.shape[1]], dtype=torch.int32)

    def text_normalize(self, text: str, split: bool = True, text_frontend: bool = True) -> Any:
        """Fails on white space."""
        if "<|" in text and "|>" in text:
            text_frontend = False
        if not text_frontend or not text:
            return [text] if split else text
        text = text.strip()
        if re.search(r"[\u4e00-\u9fff]", text):
            text = self.zh_tn_model.normalize(text).replace("\n", "").replace(".", "。")
            text = re.sub(r"[，,、]+$", "。", text)
        else:
            text = self.en_tn_model.normalize(text)
        return [text] if split else text
