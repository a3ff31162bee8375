"""The proof that a model family owes: staged runs are the library's own call bit for bit, fresh or cached, and what its
stages declare is neither too little nor too much.

A family's test file says what is its own (`Family`) and lets the proof of its task run over it, which is this one with
what only pictures or speech can show (`proof_of_pictures.py`, `proof_of_speech.py`):

    class TestProof(PictureProof):
        family = Family("svd", describe=svd.describe, asked={...}, library=library, ...)

Every parameter of the description is changed, to values found in the description itself, and every medium;
`Family.varied` adds values that have a meaning of their own. So a parameter that is new, and one that is forgotten,
cannot escape. Stages that run for every part of a text are run, named and kept part by part; what is said of such a
stage is said of all its parts together, in the order of their places.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from cache.description import Description, Parameter, Scalar, Stage
from cache.digest import Digest
from cache.keys import content_ids, depends_on
from cache.parts import part_name, unfold, whole_name
from cache.sound import sound_identity
from inference import tensors
from inference.models import load, small
from inference.models.base import Artifact, Call, Cancelled, Output, Sound, Streamed, Tensors
from tests.inference.leftovers import LEFTOVERS, memory_full_of, needs_glibc
from tests.inference.voices import recording

CPU_AND_ACCELERATOR = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]
T = TypeVar("T")
TEXTS = ("a dog runs", "")  # what a text is changed to, where the model allows it


class StagedModel(Protocol):
    """A model of a family that wraps one of the library's pipelines."""

    description: Description
    device: torch.device
    pipeline: Any

    def run(self, stage: str, call: Call) -> Output: ...


@dataclasses.dataclass(frozen=True)
class Request:
    """What a caller asks for: complete parameters, and media by name: pictures and recordings."""

    parameters: Mapping[str, Scalar]
    media: Mapping[str, Image.Image | Sound]

    def but(self, **changes: Any) -> Request:
        media = {name: changes.pop(name, medium) for name, medium in self.media.items()}
        return Request({**self.parameters, **changes}, media)

    @property
    def image(self) -> Image.Image:
        image = self.media["image"]
        assert isinstance(image, Image.Image)
        return image

    @property
    def voice(self) -> Sound:
        voice = self.media["voice"]
        assert isinstance(voice, Sound)
        return voice


@dataclasses.dataclass(frozen=True)
class Family:
    """What the proof has to know of a family. Kinds are kinds of stages."""

    name: str
    describe: Callable[..., Description]  # (pipeline, name, *, random_weights)
    asked: Mapping[str, Scalar]  # of a small request; what is not said is the default
    library: Callable[..., Any]  # its own unstaged call, as the proof of the task needs it
    varied: Mapping[str, tuple[Scalar, ...]] = dataclasses.field(default_factory=dict)  # further values, by parameter
    cases: tuple[Mapping[str, Scalar], ...] = ()  # changes made together
    weights: str = "unet/diffusion_pytorch_model.safetensors"  # a file of its model
    # What may change about a model: how, and the kinds of stages that run on it.
    changes: Mapping[str, tuple[Callable[[Any], object], set[str]]] = dataclasses.field(default_factory=dict)
    independent: frozenset[str] = frozenset()  # kinds of stages that run on nothing of the model
    libraries: Mapping[str, set[str]] = dataclasses.field(default_factory=dict)  # by distribution


def picture(seed: int = 0) -> Image.Image:
    """Coarse coloured noise of a size and shape that no video has."""
    noise = np.random.default_rng(seed).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((150, 110), Image.Resampling.BICUBIC)


def nudge(module: nn.Module) -> None:
    """Changes one weight by a little."""
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 0.25


# Requests.


def base_request(description: Description, asked: Mapping[str, Scalar]) -> Request:
    defaults = {parameter.name: parameter.default for parameter in description.parameters}
    complete = {**defaults, **asked}
    media = {name: _medium(description, name, seed=0) for stage in description.stages for name in stage.media}
    return Request({name: value for name, value in complete.items() if value is not None}, media)


def _medium(description: Description, name: str, seed: int) -> Image.Image | Sound:
    return recording(seed) if name in description.recordings else picture(seed)


def variants(description: Description, base: Request, more: Mapping[str, tuple[Scalar, ...]]) -> dict[str, list[Any]]:
    """By input, what it is changed to: at least one other value of every parameter, and another of every medium."""
    values: dict[str, list[Any]] = {name: [_medium(description, name, seed=1)] for name in base.media}
    bounds = {stage.when.parameter: stage.when.above for stage in description.stages if stage.when is not None}
    for parameter in description.parameters:
        now = base.parameters[parameter.name]
        wanted = [*_others(parameter, now), *more.get(parameter.name, ())]
        if parameter.name in bounds and parameter.kind != "text":  # a text is changed to none in any case
            wanted.append(bounds[parameter.name])
        values[parameter.name] = [value for value in dict.fromkeys(wanted) if value != now]
    return values


def _others(parameter: Parameter, now: Scalar) -> list[Scalar]:
    low, high = parameter.minimum, parameter.maximum
    match parameter.kind:
        case "int":
            assert low is not None
            unit = parameter.multiple_of or 1
            halfway = int(low + now) // 2 // unit * unit  # type: ignore[operator]  # numbers are numbers
            return [halfway if low <= halfway < int(now) else int(now) + unit]
        case "float":
            assert low is not None
            assert high is not None
            return [(float(now) + (low if now != low else high)) / 2]
        case "text":
            return [text for text in TEXTS if len(text) >= parameter.min_length]
        case "choice":
            return list(parameter.choices)


# Runs.


def run(
    model: StagedModel,
    request: Request,
    *,
    pass_on: Callable[[Tensors], Tensors] = lambda output: output,
    step: Callable[[int, int], None] = lambda done, of: None,
    preview: Callable[[Image.Image], None] | None = None,
    piece: Callable[[Tensors], None] = lambda piece: None,
    known: Mapping[str, Output] | None = None,
) -> dict[str, Output]:
    """The outputs of all stages not `known`, each given exactly what it declares, its upstream through `pass_on`. Parts
    have names of their own.
    """
    outputs = understood(model, request, pass_on, known or {})
    for stage in stages_of(model.description, request, outputs):
        if stage.name not in outputs:
            call = _call(stage, request, outputs, pass_on)
            call = dataclasses.replace(call, step=step, preview=preview, piece=piece)
            outputs[stage.name] = _made(model, stage, call, outputs, pass_on)
    return outputs


class Shelf:
    """A cache without a bound: what a stage gave, as bytes, by its content id."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.ran: list[str] = []  # stages, and parts of stages, whose outputs are kept
        self.reused: list[str] = []

    def run(self, model: StagedModel, request: Request) -> dict[str, Output]:
        """The outputs of all stages, read from here where they are here, and only then run."""
        outputs = understood(model, request, through_bytes, {})
        ids = ids_of(model.description, request, outputs)
        for stage in stages_of(model.description, request, outputs):
            if stage.name in outputs:
                continue
            if (found := self.entries.get(ids[stage.name])) is None:
                call = _call(stage, request, outputs, through_bytes)
                found = stored(_made(model, stage, call, outputs, through_bytes))
                if stage.cached:
                    self.entries[ids[stage.name]] = found
                    self.ran.append(stage.name)
            else:
                self.reused.append(stage.name)
            final = stage.name == model.description.final.name
            outputs[stage.name] = Artifact(found, "") if final else tensors.from_bytes(found, model.device)
        return outputs


def stages_of(description: Description, request: Request, outputs: Mapping[str, Output]) -> tuple[Stage, ...]:
    """The stages of a request with every part a stage of its own, given what canonicalising stages made of it."""
    return unfold(description.active(request.parameters), _orders(description, outputs))


def by_stage(
    description: Description, outputs: Mapping[str, Output], values: Mapping[str, T]
) -> dict[str, tuple[T, ...]]:
    """Values by the names of stages and their parts, as values by the names of stages: of parts, one for each place."""
    orders = _orders(description, outputs)
    names = {
        stage.name: [part_name(stage.name, index) for index in orders[stage.each]] if stage.each else [stage.name]
        for stage in description.stages
    }
    return {name: tuple(values[each] for each in parts) for name, parts in names.items() if parts[0] in values}


def understood(
    model: StagedModel, request: Request, pass_on: Callable[[Tensors], Tensors], known: Mapping[str, Output]
) -> dict[str, Output]:
    """What is known, and what canonicalising stages make of the request, with their parts."""
    outputs = dict(known)
    parted = {stage.each for stage in model.description.stages}
    for stage in model.description.active(request.parameters):
        if stage.canonicalises and stage.name not in outputs:
            outputs[stage.name] = model.run(stage.name, _call(stage, request, outputs, pass_on))
            if stage.name in parted:
                outputs.update(_parts_of(stage.name, as_tensors(outputs[stage.name])))
    return outputs


def _parts_of(stage: str, output: Tensors) -> Iterator[tuple[str, Tensors]]:
    for index in range(int(output["order"].max()) + 1):
        suffix = part_name("", index)
        yield stage + suffix, {whole_name(name): each for name, each in output.items() if name.endswith(suffix)}


def _orders(description: Description, outputs: Mapping[str, Output]) -> dict[str, list[int]]:
    parted = {stage.each for stage in description.stages if stage.each}
    return {name: as_tensors(outputs[name])["order"].tolist() for name in parted}


def _made(
    model: StagedModel, stage: Stage, call: Call, outputs: Mapping[str, Output], pass_on: Callable[[Tensors], Tensors]
) -> Output:
    if not stage.follows:
        return model.run(whole_name(stage.name), call)
    following = cast("Streamed", model).follow(whole_name(stage.name), call)
    return joined([*following.feed(pass_on(as_tensors(outputs[stage.follows]))), *following.end()])


def _call(stage: Stage, request: Request, outputs: Mapping[str, Output], pass_on: Callable[[Tensors], Tensors]) -> Call:
    media = {name: request.media[name] for name in stage.media}
    return Call(
        parameters={role: request.parameters[name] for role, name in stage.parameters.items()},
        media={name: medium for name, medium in media.items() if isinstance(medium, Image.Image)},
        sounds={name: medium for name, medium in media.items() if isinstance(medium, Sound)},
        upstream={
            role: pass_on(as_tensors(outputs[name]))
            for role, name in stage.upstream.items()
            if name in outputs and name != stage.follows
        },
    )


def joined(pieces: Sequence[Tensors]) -> Tensors:
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def results(outputs: Mapping[str, Output], stages: Collection[str]) -> dict[str, bytes]:
    """What these stages store, by their names and those of their parts."""
    return {name: stored(output) for name, output in outputs.items() if whole_name(name) in stages}


def as_tensors(output: Output) -> Tensors:
    assert not isinstance(output, Artifact)
    return output


def stored(output: Output) -> bytes:
    return output.data if isinstance(output, Artifact) else tensors.to_bytes(output)


def through_bytes(output: Tensors) -> Tensors:
    """As it comes back from a cache."""
    device = next(iter(output.values())).device
    return tensors.from_bytes(tensors.to_bytes(output), device)


def differing(some: Mapping[str, bytes], others: Mapping[str, bytes]) -> set[str]:
    """The stages whose bytes are others, so that a failure names them."""
    return {name for name in some.keys() | others.keys() if some.get(name) != others.get(name)}


# Declarations.


def ids_of(description: Description, request: Request, outputs: Mapping[str, Output]) -> dict[str, str]:
    """Canonical content ids of stages and parts, given at least the outputs of canonicalising stages."""
    stages = stages_of(description, request, outputs)
    canonical = {stage.name: Digest.of(stored(outputs[stage.name])) for stage in stages if stage.canonicalises}
    media = {name: _identity(medium) for name, medium in request.media.items()}
    return content_ids(description.model_copy(update={"stages": stages}), request.parameters, media, canonical)


def _identity(medium: Image.Image | Sound) -> str:
    if isinstance(medium, Sound):
        return sound_identity(medium.sample_rate, len(medium.pcm), medium.pcm.numpy().tobytes())
    return Digest.of(medium.tobytes()).hex


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What really came of a request and of every single change of it."""

    base: Request
    outputs: Mapping[str, Output]
    changed: Sequence[tuple[str, Request, Mapping[str, Output]]]  # by the input that is another

    @classmethod
    def gather(cls, model: StagedModel, base: Request, values: Mapping[str, list[Any]]) -> Evidence:
        changed = [
            (name, request, run(model, request))
            for name, others in values.items()
            for request in (base.but(**{name: value}) for value in others)
        ]
        return cls(base, run(model, base), changed)

    def against(self, description: Description) -> set[tuple[str, str]]:
        """Where these declarations say otherwise than the bytes, as (stage, input). Empty: they are proven.

        A stage's content id has to change exactly when its bytes do (to make one output of many inputs is what a
        canonicalising stage is for), and whatever a stage depends on has to change it at least once.
        """
        wrong: set[tuple[str, str]] = set()
        effects: set[tuple[str, str]] = set()
        base_ids, base_bytes = self._ids_and_bytes(description, self.base, self.outputs)
        for name, request, outputs in self.changed:
            ids, bytes_ = self._ids_and_bytes(description, request, outputs)
            for stage in (description.stage(each) for each in base_ids.keys() & ids.keys()):
                same_id = ids[stage.name] == base_ids[stage.name]
                same_bytes = bytes_[stage.name] == base_bytes[stage.name]
                if same_id != same_bytes and not (stage.canonicalises and same_bytes):
                    wrong.add((stage.name, name))
                if not same_bytes:
                    effects.add((stage.name, name))
        named = {(stage.name, name) for stage in description.stages for name in _can_change(description, stage)}
        return wrong | (named - effects)

    @staticmethod
    def _ids_and_bytes(
        description: Description, request: Request, outputs: Mapping[str, Output]
    ) -> tuple[Mapping[str, tuple[str, ...]], Mapping[str, tuple[bytes, ...]]]:
        kept = {name: stored(output) for name, output in outputs.items()}
        ids = ids_of(description, request, outputs)
        return by_stage(description, outputs, ids), by_stage(description, outputs, kept)


def _can_change(description: Description, stage: Stage) -> frozenset[str]:
    """What the stage depends on, but for what only decides whether there is such a stage."""
    exists_by = {stage.when.parameter} - set(stage.parameters.values()) if stage.when is not None else set()
    return depends_on(description, stage) - exists_by


def doctored(description: Description, stage: Stage) -> Description:
    stages = tuple(stage if each.name == stage.name else each for each in description.stages)
    return description.model_copy(update={"stages": stages})


def shortened(description: Description) -> Iterator[tuple[str, str, Description]]:
    """Every way in which a stage can forget to declare what it depends on: (stage, what was forgotten, description)."""
    for stage in description.stages:
        forgetful = [
            *(stage.model_copy(update={"parameters": _without(stage.parameters, role)}) for role in stage.parameters),
            *(stage.model_copy(update={"upstream": _without(stage.upstream, role)}) for role in stage.upstream),
            *(stage.model_copy(update={"media": ()}) for _ in stage.media),
        ]
        for other in (doctored(description, each) for each in forgetful):
            forgotten = depends_on(description, stage) - depends_on(other, other.stage(stage.name))
            if forgotten:
                yield stage.name, ", ".join(sorted(forgotten)), other


def lengthened(description: Description) -> Iterator[tuple[str, str, Description]]:
    """Every parameter that a stage could declare although nothing depends on it."""
    for stage in description.stages:
        for parameter in {each.name for each in description.parameters} - depends_on(description, stage):
            declared = {**stage.parameters, "spurious": parameter}
            yield stage.name, parameter, doctored(description, stage.model_copy(update={"parameters": declared}))


def _without(declared: Mapping[str, str], role: str) -> dict[str, str]:
    return {key: value for key, value in declared.items() if key != role}


def prints(description: Description) -> dict[str, str]:
    return {stage.kind: stage.fingerprint for stage in description.stages}


# The proof.


class Proof:
    """What the proofs of all tasks have in common. Subclass one under a name that begins with Test, with a `family`."""

    family: Family
    of_library: Collection[str]  # stages whose outputs are, to the bit, what the library's own call comes by
    of_run: Collection[str]  # stages that show what a run came to

    def library_output(self, model: StagedModel, request: Request) -> dict[str, bytes]:
        """What the stages `of_library` store, made of what the library computes."""
        raise NotImplementedError

    def results(self, outputs: Mapping[str, Output]) -> dict[str, bytes]:
        return results(outputs, self.of_run)

    def read_weights(self, file: Path) -> Tensors:
        state: Tensors = safetensors.torch.load_file(file)
        return state

    def write_weights(self, state: Tensors, file: Path) -> None:
        safetensors.torch.save_file(state, file, {"format": "pt"})

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return small.build(tmp_path_factory.mktemp("proof") / cls.family.name, family=cls.family.name)

    @pytest.fixture(scope="class")
    @classmethod
    def proven(cls, folder: Path) -> StagedModel:
        return opened(folder)

    @pytest.fixture(scope="class")
    @classmethod
    def base(cls, proven: StagedModel) -> Request:
        return base_request(proven.description, cls.family.asked)

    @pytest.fixture(scope="class")
    @classmethod
    def evidence(cls, proven: StagedModel, base: Request) -> Evidence:
        return Evidence.gather(proven, base, variants(proven.description, base, cls.family.varied))

    # The same bits as the library.

    def test_staged_runs_equal_the_librarys_call(self, proven: StagedModel, evidence: Evidence) -> None:
        """They are the library's bit for bit, whatever is asked for."""
        for name, request, outputs in [("nothing", evidence.base, evidence.outputs), *evidence.changed]:
            by_stages, by_library = results(outputs, self.of_library), self.library_output(proven, request)
            assert not differing(by_stages, by_library), name
        for changes in self.family.cases:
            request = evidence.base.but(**changes)
            by_stages, by_library = (
                results(run(proven, request), self.of_library),
                self.library_output(proven, request),
            )
            assert not differing(by_stages, by_library), changes

    def test_a_run_on_stored_outputs_equals_a_fresh_one(self, proven: StagedModel, evidence: Evidence) -> None:
        """With all stages' outputs back from bytes, and shared by all requests whose ids say so, nothing changes."""
        shelf = Shelf()
        for name, request, outputs in [("nothing", evidence.base, evidence.outputs), *evidence.changed]:
            assert not differing(self.results(shelf.run(proven, request)), self.results(outputs)), name
        for changes in self.family.cases:
            request = evidence.base.but(**changes)
            fresh = self.results(run(proven, request))
            assert not differing(self.results(shelf.run(proven, request)), fresh), changes
        assert len(shelf.reused) > len(shelf.ran) / 2
        ran = len(shelf.ran)
        assert self.results(shelf.run(proven, evidence.base)) == self.results(evidence.outputs)
        assert len(shelf.ran) == ran

    @needs_glibc
    def test_what_memory_held_before_changes_nothing(self, proven: StagedModel, base: Request) -> None:
        """All that a stage gives follows from what it was given, whatever was left in the memory it works in."""
        # Nine of x264's macroblocks a row, where it takes eight at a time.
        request = base.but(**{side: 144 for side in ("width", "height") if side in base.parameters})
        plain = {name: stored(output) for name, output in run(proven, request).items()}
        for byte in LEFTOVERS[:2]:
            with memory_full_of(byte):
                again = run(proven, request)
            assert not differing({name: stored(output) for name, output in again.items()}, plain), byte

    @pytest.mark.parametrize("device", CPU_AND_ACCELERATOR)
    def test_half_precision_equals_the_librarys_call(self, folder: Path, device: str) -> None:
        """The same holds in half precision, on any device; it gives other bits."""
        model = opened(folder, "bfloat16" if device == "cpu" else None, device)
        request = base_request(model.description, self.family.asked)
        outputs = run(model, request, pass_on=through_bytes)
        assert results(outputs, self.of_library) == self.library_output(model, request)
        assert self.results(outputs) != self.results(run(opened(folder), request))

    def test_outputs_are_contiguous_and_on_the_device(self, proven: StagedModel, evidence: Evidence) -> None:
        """What a stage gives out has the strides it will have when it comes back from a cache."""
        kept = {name: output for name, output in evidence.outputs.items() if not isinstance(output, Artifact)}
        assert {whole_name(name) for name in kept} == {stage.name for stage in proven.description.stages[:-1]}
        assert all(
            tensor.is_contiguous() and tensor.device == proven.device
            for output in kept.values()
            for tensor in output.values()
        )

    # The declarations.

    def test_every_declared_input_matters_and_no_other(self, proven: StagedModel, evidence: Evidence) -> None:
        """Each input, changed alone, changes the bytes of all that depends on it and of nothing else."""
        assert evidence.against(proven.description) == set()

    def test_a_forgotten_input_is_found(self, proven: StagedModel, evidence: Evidence) -> None:
        """A declaration that leaves out anything a stage depends on fails the proof at that stage, for every one."""
        ways = list(shortened(proven.description))
        assert len(ways) > len(proven.description.parameters)
        for stage, forgotten, description in ways:
            assert stage in {name for name, _ in evidence.against(description)}, forgotten

    def test_a_needless_input_is_found(self, proven: StagedModel, evidence: Evidence) -> None:
        """A declaration that names a parameter that does not matter fails the proof at that stage, for every one."""
        ways = list(lengthened(proven.description))
        assert len(ways) > len(proven.description.parameters)
        for stage, parameter, description in ways:
            assert (stage, parameter) in evidence.against(description), parameter

    def test_the_description_survives_the_wire(self, proven: StagedModel) -> None:
        """A gateway reads the very description that the worker wrote."""
        assert Description.from_bytes(proven.description.to_bytes()) == proven.description

    # Randomness, cancelling.

    def test_the_global_generator_is_neither_read_nor_moved(
        self, proven: StagedModel, base: Request, evidence: Evidence
    ) -> None:
        """A generation follows from its seed alone and leaves torch's global randomness as it was."""
        with torch.random.fork_rng():
            for state in (1, 2):
                torch.manual_seed(state)
                before = torch.get_rng_state()
                assert self.results(run(proven, base)) == self.results(evidence.outputs)
                assert torch.equal(torch.get_rng_state(), before)

    def test_a_cancelled_generation_leaves_nothing_behind(
        self, proven: StagedModel, base: Request, evidence: Evidence
    ) -> None:
        """Cancelling stops after the running step, and the next run gives the same bytes as if nothing had been."""
        told: list[int] = []

        def cancel_in_the_second(done: int, of: int) -> None:
            told.append(done)
            if done == 2:
                raise Cancelled

        with pytest.raises(Cancelled):
            run(proven, base, step=cancel_in_the_second)
        assert told == [1, 2]
        assert self.results(run(proven, base)) == self.results(evidence.outputs)

    # Fingerprints and loading.

    def test_a_change_of_the_model_is_seen_by_the_stages_that_run_on_it(self, folder: Path) -> None:
        """Changing one component changes the fingerprint of the stages that depend on it, and of no others."""
        description = opened(folder).description
        before = prints(description)
        kept = {stage.kind for stage in description.stages if stage.cached}
        assert set.union(*(kinds for _, kinds in self.family.changes.values())) >= kept - self.family.independent
        for name, (change, kinds) in self.family.changes.items():
            model = opened(folder)
            change(model.pipeline)
            after = prints(self.family.describe(model.pipeline, "small"))
            assert {kind for kind in before if before[kind] != after[kind]} == kinds, name

    def test_a_change_of_a_library_is_seen_by_the_stages_that_use_it(
        self, proven: StagedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another version of a library ends the reuse of what the old one had a part in, and of nothing else."""
        before = prints(proven.description)
        for library, kinds in self.family.libraries.items():
            with monkeypatch.context() as patch:
                patch.setattr(
                    "inference.fingerprint.version", lambda name, of=library: "another" if name == of else version(name)
                )
                after = prints(self.family.describe(proven.pipeline, "small"))
            assert {kind for kind in before if before[kind] != after[kind]} == kinds, library

    def test_what_was_changed_back_is_what_it_was(self, folder: Path) -> None:
        """After a rollback a model has its old fingerprints, and so finds all that was stored before."""
        old = opened(folder).description
        elsewhere = shutil.copytree(folder, folder.parent / "rolled-back", dirs_exist_ok=True)
        weights = elsewhere / self.family.weights
        state = self.read_weights(weights)
        changed = {name: tensor + 0.25 if name == min(state) else tensor for name, tensor in state.items()}
        self.write_weights(changed, weights)
        assert opened(elsewhere).description != old
        self.write_weights(state, weights)
        assert opened(elsewhere).description == old

    def test_pickled_weights_are_never_read(self, folder: Path, tmp_path: Path) -> None:
        """A model whose weights are in no safetensors file is refused."""
        copy = shutil.copytree(folder, tmp_path / "model")
        weights = copy / self.family.weights
        pickled = {"model.safetensors": "pytorch_model.bin"}.get(weights.name, f"{weights.stem}.bin")
        torch.save(safetensors.torch.load_file(weights), weights.with_name(pickled))
        weights.unlink()
        with pytest.raises(ValueError, match="safetensors"):
            opened(copy)


def opened(folder: Path, dtype: str | None = None, device: str = "cpu") -> StagedModel:
    """A freshly loaded model, to change without harm to others."""
    model = load(str(folder), name="small", device=device, dtype=dtype)
    return cast("StagedModel", model)
