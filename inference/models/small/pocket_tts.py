"""A small Pocket TTS."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PocketTTSAudioTokenizerConfig,
    PocketTTSAudioTokenizerModel,
    PocketTTSConfig,
    PocketTTSFeatureExtractor,
    PocketTTSForConditionalGeneration,
    PocketTTSProcessor,
    PreTrainedTokenizerFast,
)

from inference.models.pocket_tts import Speaker
from inference.models.small.parts import learn_merges, scale

CODE_VERSION = 1  # of everything that shapes this model

_WIDTH, _LATENT = 64, 32
_MERGES = 600
_PAD = {"pad_token": "<pad>"}
_SPECIAL = {
    "audio_prompt_token": "<audio_prompt>",
    "audio_latent_token": "<audio_latent>",
    "audio_prompt_bos_token": "<audio_prompt_bos>",
    "audio_bos_token": "<audio_bos>",
}
# The voice before the text, which begins with a capital and ends with a mark, as the model was trained with.
_TEMPLATE = """\
{%- for message in messages -%}
{%- for item in message['content'] if item['type'] == 'audio' -%}
{{ audio_prompt_bos_token + audio_prompt_token }}
{%- endfor -%}
{%- for item in message['content'] if item['type'] == 'text' -%}
{%- set said = item['text'].split() | join(' ') -%}
{{ (said[:1] | upper) + said[1:] + ('.' if said[-1:].isalnum() else '') }}
{%- endfor -%}
{{ audio_bos_token }}
{%- endfor -%}
"""
# What lines to be spoken are made of, so that a word is about one token; anything else is still spelled out.
_WORDS = (
    "a about after again all also always am an and any are as ask at be because been before but by call came can come "
    "could day did do does down each even every first for from get give go good had has have he her here him his how i "
    "if in into is it its just know like line little long look made make many may me more most much must my name need "
    "never new next no not now number of off old on one only open or other our out over people place please press put "
    "read right said same say see she should so some soon sorry speak still stay take tell than thank thanks that the "
    "their them then there these they thing think this time to today tomorrow too two up us use very voice wait want "
    "was way we welcome well were what when where which who why will with word work would year yes you your hello hi "
    "moment customer service order parcel train leaves platform minutes hours morning evening night weather rain sun "
    "message phone back busy hold free offer special price buy shop help question answer story once upon king queen "
    "house home door light dark river mountain sea ship road city street school friend family child children world "
    "Hello Please Thank Welcome The This That There We You Your It In I If A An And But For How What When Where Who Why"
)


def pipeline() -> Speaker:
    """Drawn from torch's global generator."""
    tokenizer = _tokenizer()
    codec = _codec()
    processor = PocketTTSProcessor(
        feature_extractor=PocketTTSFeatureExtractor(),
        tokenizer=tokenizer,
        audio_tokenizer=codec,
        chat_template=_TEMPLATE,
    )
    return Speaker(_model(tokenizer), processor)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level pair encoding: nothing is unknown."""
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words = [piece for word in _WORDS.split() for piece, _ in spelled.pre_tokenize_str(word)]
    merges = learn_merges(words, _MERGES)
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = spelled
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=_SPECIAL, **_PAD)


def _model(tokenizer: PreTrainedTokenizerFast) -> PocketTTSForConditionalGeneration:
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in _SPECIAL.items()}
    model = PocketTTSForConditionalGeneration(
        PocketTTSConfig(
            flow_head_config={
                "hidden_size": _WIDTH,
                "num_hidden_layers": 2,
                "latent_dim": _LATENT,
                "condition_dim": _WIDTH,
                "frequency_embedding_size": 32,
            },
            vocab_size=len(tokenizer),
            hidden_size=_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * _WIDTH,
            latent_dim=_LATENT,
            max_position_embeddings=8192,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.1,
            **ids,
        )
    )
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        num_flow_steps=1,
        eos_threshold=-4.0,
        min_frames_before_eos=6,
        return_dict_in_generate=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    _make_sentences_end(model)
    return model


def _make_sentences_end(model: PocketTTSForConditionalGeneration) -> None:
    """Speech ends about four latents after each token of its text: training brings that about, chance never.

    One channel of what the model reads is positive for latents and negative for tokens of a text. A head that attends
    to everything alike sums it up into another channel, which nothing else writes; and that one decides.
    """
    who, clock = 0, 1  # channels
    backbone, config = model.model, model.config
    words, voice, spoken = backbone.embed_tokens, backbone.audio_prompt_proj, backbone.audio_latent_proj
    attention = backbone.layers[0].self_attn
    with torch.no_grad():
        for channel in (who, clock):
            for embedding in (words.weight[:, channel], voice.weight[channel], spoken.weight[channel]):
                embedding.zero_()
        words.weight[: min(getattr(config, f"{name}_id") for name in _SPECIAL), who] = -0.16
        backbone.bos_latent[0] = model.flow_head.final_layer.proj.bias[0] = 3.0  # a latent can be told from nothing
        spoken.weight[who, 0] = 0.1
        for layer in backbone.layers:
            layer.self_attn.o_proj.weight[clock] = 0
            layer.mlp.fc2.weight[clock] = 0
        attention.q_proj.weight[: attention.head_dim] = 0
        attention.v_proj.weight[0] = 0
        attention.v_proj.weight[0, who] = 1.0
        attention.o_proj.weight[clock, 0] = 8.0
        model.eos_head.weight[0, clock] = 20.0
        model.eos_head.bias[0] = model.generation_config.eos_threshold


def _codec() -> PocketTTSAudioTokenizerModel:
    """Of true rates: 24,000 samples and 12.5 latents per second."""
    codec = PocketTTSAudioTokenizerModel(
        PocketTTSAudioTokenizerConfig(
            hidden_size=_WIDTH,
            num_filters=8,
            upsample_groups=_WIDTH,
            num_hidden_layers=2,
            intermediate_size=2 * _WIDTH,
            num_attention_heads=4,
            num_key_value_heads=4,
            latent_dim=_LATENT,
            layer_scale_initial_scale=0.3,  # or its attention would hardly be heard
        )
    )
    scale(codec.decoder.decoder_seanet.layers[-1], 0.05)  # within what 16 bits can say
    return codec
