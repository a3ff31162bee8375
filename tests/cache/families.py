"""Small descriptions of models, written out and drawn at random."""

from typing import Any

from hypothesis import strategies as st

from cache.description import HOUR, Description, Parameter, Recording, Scope, Stage, When


def picture_family() -> Description:
    """Text is canonicalised and then embedded; a picture is encoded; both meet in the stage that makes the clip."""
    return Description(
        model="small",
        revision="r1",
        family="picture",
        task="animate_image",
        parameters=(
            Parameter(name="prompt", kind="text", max_length=100),
            Parameter(name="negative_prompt", kind="text", default=""),
            Parameter(name="guidance_scale", kind="float", default=9.0, minimum=1.0, maximum=30.0),
            Parameter(name="steps", kind="int", default=50, minimum=1, maximum=100),
            Parameter(name="playback_fps", kind="int", default=8),
        ),
        stages=(
            _stage("tokens", parameters={"text": "prompt"}, canonicalises=True, scope=Scope.USER),
            _stage("text", upstream={"tokens": "tokens"}, scope=Scope.USER),
            _stage(
                "negative_tokens",
                kind="tokens",
                parameters={"text": "negative_prompt"},
                canonicalises=True,
                scope=Scope.USER,
                when=When(parameter="guidance_scale", above=1.0),
            ),
            _stage("picture", media=("image",), scope=Scope.SHARED),
            _stage(
                "denoise",
                parameters={"guidance": "guidance_scale", "steps": "steps"},
                upstream={"text": "text", "negative": "negative_tokens", "picture": "picture"},
            ),
            _stage("render", parameters={"fps": "playback_fps"}, upstream={"latents": "denoise"}),
        ),
        affinity="picture",
    )


def speech_family(model: str = "spoken", *, sample_rate: int = 16) -> Description:
    """A voice is encoded, and what is made of it comes before every text; a text becomes parts; each part is spoken,
    sounded and paced; all together are the file.
    """

    def stage(name: str, **declared: Any) -> Stage:
        return _stage(name, fingerprint=f"{name}/1", ttl=HOUR, **declared)

    return Description(
        model=model,
        revision="1",
        family="spoken",
        task="synthesize_speech",
        random_weights=True,
        parameters=(
            Parameter(name="text", kind="text"),
            Parameter(name="seed", kind="int", default=42),
            Parameter(name="speed", kind="float", default=1.0),
            Parameter(name="sample_rate", kind="int", default=sample_rate),
            Parameter(name="format", kind="choice", default="wav", choices=("wav", "flac")),
        ),
        stages=(
            stage("voice", media=("voice",), pooled=True),
            stage("prefix", upstream={"voice": "voice"}, pooled=True),
            stage("tokens", parameters={"text": "text"}, canonicalises=True, cached=False),
            stage(
                "latents",
                each="tokens",
                parameters={"seed": "seed"},
                upstream={"prefix": "prefix", "tokens": "tokens"},
            ),
            stage("waveform", each="tokens", upstream={"latents": "latents"}, follows="latents"),
            stage(
                "pace",
                each="tokens",
                parameters={"speed": "speed", "sample_rate": "sample_rate"},
                upstream={"waveform": "waveform"},
                follows="waveform",
                live=True,
                cached=False,
            ),
            stage("file", parameters={"format": "format", "sample_rate": "sample_rate"}, upstream={"pcm": "pace"}),
        ),
        recordings={"voice": Recording(min_seconds=0.5, max_seconds=10.0, min_sample_rate=8)},
        affinity="voice",
    )


def _stage(name: str, **changes: Any) -> Stage:
    fields: dict[str, Any] = {"name": name, "kind": name, "scope": Scope.TENANT, "ttl": 600.0} | changes
    return Stage(**{"fingerprint": f"{fields['kind']}-1"} | fields)


@st.composite
def descriptions(draw: st.DrawFn, *, conditional: bool) -> Description:
    """Random graphs of up to six stages over four whole numbers and two media."""
    parameters = [f"p{n}" for n in range(4)]
    stages: list[Stage] = []
    for position in range(draw(st.integers(1, 6))):
        earlier = draw(st.lists(st.sampled_from([stage.name for stage in stages]), max_size=3)) if stages else []
        declared = draw(st.sets(st.sampled_from(parameters), max_size=2))
        stages.append(
            Stage(
                name=f"s{position}",
                kind=draw(st.sampled_from(["k0", "k1", f"own{position}"])),
                fingerprint=draw(st.sampled_from(["f0", "f1"])),
                parameters={f"role{n}": name for n, name in enumerate(sorted(declared))},
                media=tuple(sorted(draw(st.sets(st.sampled_from(["image", "voice"]), max_size=1)))),
                upstream={f"in{n}": name for n, name in enumerate(earlier)},
                when=When(parameter=draw(st.sampled_from(parameters)), above=draw(st.integers(0, 3)) + 0.5)
                if conditional and draw(st.booleans())
                else None,
                scope=draw(st.sampled_from(Scope)),
                ttl=60.0,
            )
        )
    affinity = draw(st.sampled_from(stages)).name
    certain = {stages[-1].name, affinity}
    return Description(
        model="drawn",
        revision="r",
        family="drawn",
        task="animate_image",
        parameters=tuple(Parameter(name=name, kind="int", minimum=0, maximum=4) for name in parameters),
        stages=tuple(stage.model_copy(update={"when": None}) if stage.name in certain else stage for stage in stages),
        affinity=affinity,
    )


def requests() -> st.SearchStrategy[dict[str, int]]:
    """Complete parameters for any drawn description."""
    return st.fixed_dictionaries({f"p{n}": st.integers(0, 4) for n in range(4)})
