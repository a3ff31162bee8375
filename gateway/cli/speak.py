"""`reprise speak`: a recording of a voice and a text in, speech out, sentence by sentence."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import click

from gateway.cli.asking import Wishes, ask, asking_options, begin, change, container_of
from gateway.cli.options import out_file, typed
from gateway.tasks import SPEAK
from reprise.v1.media_pb2 import Pronunciation, SynthesizeSpeechRequest

_CONTAINERS = ("wav", "flac", "ogg")


def _marks(context: click.Context, option: click.Parameter, entries: tuple[str, ...]) -> list[Pronunciation]:
    pairs = [entry.partition("=") for entry in entries]
    if not all(equals for _, equals, _ in pairs):
        raise click.BadParameter("must be WORD=MARKS")
    return [Pronunciation(word=word, spoken=marks) for word, _, marks in pairs]


@click.command()
@click.argument("voice", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--text", "-t", help="What to say; - reads it from standard input.")
@click.option("--text-file", type=click.File(encoding="utf-8"), help="Or the text of this file.")
@click.option(
    "--out",
    "-o",
    type=out_file,
    help="The speech, whose ending names its container; - is standard output. [default: VOICE-speech.wav]",
)
@click.option("--transcript", help="What is said in the recording.")
@click.option("--instruction", help="How to say it.")
@click.option(
    "--pronounce",
    "pronunciations",
    multiple=True,
    callback=_marks,
    metavar="WORD=MARKS",
    help="How to pronounce a word. Repeatable.",
)
@click.option("--speed", type=float, help="2 is twice as fast.")
@click.option(
    "--format",
    "container",
    type=click.Choice(_CONTAINERS),
    help="Container of the file. [default: as --out ends]",
)
@click.option("--rate", "sample_rate", type=int, help="Samples per second of the file.")
@click.option("--live", is_flag=True, help="Have the sound as it is made, too, and say when the first of it came.")
@click.option(
    "--fold",
    is_flag=True,
    help="Read texts alike that have marks of other kinds in the same places: any that ends a sentence is a full stop, "
    "any that parts one a comma; quotation marks and brackets are nothing, and width and spacing do not count. A mark "
    "more or less is another text. It is said.",
)
@asking_options("speech")
def speak(voice: Path | None, **options: Any) -> None:
    """Speak a text in the VOICE of a recording, and say where the answer came from."""
    wishes = Wishes.among(options, voice)
    options["container"] = container_of(wishes.out, options["container"], _CONTAINERS)
    request = begin(SPEAK, wishes)
    assert isinstance(request, SynthesizeSpeechRequest)  # noqa: S101  # as its task says
    options["text"] = _text(options["text"], options.pop("text_file"))
    if pronunciations := options.pop("pronunciations"):
        del request.pronunciations[:]
        request.pronunciations.extend(pronunciations)
    if options.pop("fold"):
        request.cache_policy.similarity.lines = True
    if options.pop("live"):
        request.live = True
    change(request, options)
    if not request.text:
        told = "say what to say: --text or --text-file" if options["text"] is None else f"{typed('text')}: is empty"
        raise click.UsageError(told)
    ask(request, wishes, request.format or "wav", ending="-speech")


def _text(said: str | None, file: IO[str] | None) -> str | None:
    """The text, wherever it stands. Raises UsageError and ClickException."""
    if said is not None and file is not None:
        raise click.UsageError("give --text or --text-file, not both")
    source: IO[str] | None = click.open_file("-", encoding="utf-8") if said == "-" else file
    if source is None:
        return said
    try:
        return source.read()
    except UnicodeDecodeError:
        raise click.ClickException(f"{source.name}: is not UTF-8") from None
