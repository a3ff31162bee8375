"""A small CosyVoice 3, of the classes in the user's checkout of its repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import pre_tokenizers
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.utils import logging

from inference.models.cosyvoice3 import checkout, folder
from inference.models.small.parts import WORDS, learn_merges, scale

CODE_VERSION = 1  # of everything that shapes this model

_WIDTH = 32
_MERGES = 400
_ROOM = 400  # ids for what CosyVoice adds to the tokenizer: commands and markup
_TOKENS = 6561  # of speech
_END = "<|endoftext|>"
# As a published folder has it, with other numbers.
_CONFIG = f"""\
sample_rate: 24000
llm_input_size: {_WIDTH}
spk_embed_dim: 192
qwen_pretrain_path: ''
token_frame_rate: 25
token_mel_ratio: 2
chunk_size: 25
llm: !new:cosyvoice.llm.llm.CosyVoice3LM
    llm_input_size: !ref <llm_input_size>
    llm_output_size: !ref <llm_input_size>
    speech_token_size: {_TOKENS}
    mix_ratio: [5, 15]
    llm: !new:cosyvoice.llm.llm.Qwen2Encoder
        pretrain_path: !ref <qwen_pretrain_path>
    sampling: !name:cosyvoice.utils.common.ras_sampling
        top_p: 0.8
        top_k: 25
        win_size: 10
        tau_r: 0.1
flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithDiT
    input_size: 80
    output_size: 80
    spk_embed_dim: !ref <spk_embed_dim>
    output_type: mel
    vocab_size: {_TOKENS}
    input_frame_rate: !ref <token_frame_rate>
    token_mel_ratio: !ref <token_mel_ratio>
    pre_lookahead_len: 3
    pre_lookahead_layer: !new:cosyvoice.transformer.upsample_encoder.PreLookaheadLayer
        in_channels: 80
        channels: {_WIDTH}
        pre_lookahead_len: 3
    decoder: !new:cosyvoice.flow.flow_matching.CausalConditionalCFM
        in_channels: 240
        n_spks: 1
        spk_emb_dim: 80
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                solver: euler
                t_scheduler: cosine
                training_cfg_rate: 0.2
                inference_cfg_rate: 0.7
                reg_loss_type: l1
        estimator: !new:cosyvoice.flow.DiT.dit.DiT
            dim: {2 * _WIDTH}
            depth: 2
            heads: 2
            dim_head: {_WIDTH}
            ff_mult: 2
            mel_dim: 80
            mu_dim: 80
            spk_dim: 80
            out_channels: 80
            static_chunk_size: !ref <chunk_size> * <token_mel_ratio>
            num_decoding_left_chunks: -1
hift: !new:cosyvoice.hifigan.generator.CausalHiFTGenerator
    in_channels: 80
    base_channels: {2 * _WIDTH}
    nb_harmonics: 8
    sampling_rate: !ref <sample_rate>
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 5, 3]
    upsample_kernel_sizes: [16, 11, 7]
    istft_params:
        n_fft: 16
        hop_len: 4
    resblock_kernel_sizes: [3]
    resblock_dilation_sizes: [[1]]
    source_resblock_kernel_sizes: [7, 7, 11]
    source_resblock_dilation_sizes: [[1], [1], [1]]
    lrelu_slope: 0.1
    audio_limit: 0.99
    conv_pre_look_right: 4
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.CausalConvRNNF0Predictor
        num_class: 1
        in_channels: 80
        cond_channels: {_WIDTH}
get_tokenizer: !name:cosyvoice.tokenizer.tokenizer.get_qwen_tokenizer
    token_path: !ref <qwen_pretrain_path>
    skip_special_tokens: True
    version: cosyvoice3
allowed_special: all
feat_extractor: !name:matcha.utils.audio.mel_spectrogram
    n_fft: 1920
    num_mels: 80
    sampling_rate: !ref <sample_rate>
    hop_size: 480
    win_size: 1920
    fmin: 0
    fmax: null
    center: False
"""


class Small:
    """Written file by file: the classes that fill the rest are built from the first of them."""

    def save_pretrained(self, where: Path, **_: object) -> None:
        """Drawn from torch's global generator. Raises NoCheckout."""
        entered = checkout.enter()
        logging.disable_progress_bar()
        (where / folder.CONFIG).write_text(_CONFIG, "utf-8")
        tokenizer = _tokenizer()
        tokenizer.save_pretrained(where / folder.LANGUAGE_MODEL)
        _language_model(tokenizer).save_pretrained(where / folder.LANGUAGE_MODEL)
        _write_graphs(where)
        built = folder.build(where, entered)
        for module in built.modules.values():
            _draw_again(module)
        _make_loud(built)
        for part, module in built.modules.items():
            torch.save(module.state_dict(), where / folder.WEIGHTS[part])


def pipeline() -> Small:
    return Small()


def _tokenizer() -> Qwen2Tokenizer:
    """Byte-level pair encoding: nothing is unknown."""
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words = [piece for word in WORDS.split() for piece, _ in spelled.pre_tokenize_str(word)]
    merges = learn_merges(words, _MERGES)
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges), _END]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return Qwen2Tokenizer(vocab=vocabulary, merges=merges, unk_token=_END, eos_token=_END, pad_token=_END)


def _language_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer) + _ROOM,
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            initializer_range=0.25,  # or what is said would not depend on what was read
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def _draw_again(module: nn.Module) -> None:
    """CosyVoice seeds all randomness while it builds, so that every model would begin alike; and so faintly that some
    of what it reads would not be heard.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("original0"):  # how large a filter is, where that is apart from its direction
                parameter.fill_(1.0)
            elif parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.std())


def _make_loud(built: folder.Built) -> None:
    """Some tokens are likelier than others, and the last one is, so that what is said ends by itself and soon; and it
    is heard.
    """
    scale(built.llm.llm_decoder, 4.0)
    with torch.no_grad():
        built.llm.llm_decoder.weight[built.llm.eos_token] *= 3
        size = built.hift.conv_post.weight.flatten(1).norm(dim=1).mean()
    scale(built.hift.conv_post, 0.25 / float(size))


def _write_graphs(where: Path) -> None:
    """Networks that listen: 25 tokens a second of 100 spectra of 128 bands; 192 numbers of 80 bands, whatever their
    number.
    """
    from onnx import TensorProto, helper, numpy_helper

    def drawn(name: str, *shape: int, spread: float) -> Any:
        values: npt.NDArray[np.float32] = (torch.randn(*shape) * spread).numpy()
        return numpy_helper.from_array(values, name)

    def tensor(name: str, kind: int, *shape: int | str) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    def write(file: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]) -> None:
        graph = helper.make_graph(nodes, "listens", inputs, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="")
        (where / file).write_bytes(model.SerializeToString(deterministic=True))

    write(
        folder.GRAPHS["speech tokenizer"],
        [
            helper.make_node("Conv", ["feats", "listen"], ["heard"], kernel_shape=[4], strides=[4]),
            helper.make_node("Transpose", ["heard"], ["turned"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["turned", "name"], ["likely"]),
            helper.make_node("ArgMax", ["likely"], ["tokens"], axis=2, keepdims=0),
            helper.make_node("Cast", ["tokens"], ["indices"], to=TensorProto.INT32),
        ],
        [tensor("feats", TensorProto.FLOAT, 1, 128, "T"), tensor("feats_length", TensorProto.INT32, 1)],
        [tensor("indices", TensorProto.INT32, 1, "N")],
        [drawn("listen", 8, 128, 4, spread=0.1), drawn("name", 8, _TOKENS, spread=1.0)],
    )
    write(
        folder.GRAPHS["speaker"],
        [
            helper.make_node("Abs", ["input"], ["loud"]),
            helper.make_node("ReduceMean", ["loud"], ["mean"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["mean", "tell"], ["output"]),
        ],
        [tensor("input", TensorProto.FLOAT, 1, "T", 80)],
        [tensor("output", TensorProto.FLOAT, 1, 192)],
        [drawn("tell", 80, 192, spread=0.3)],
    )
