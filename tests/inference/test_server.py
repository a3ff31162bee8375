from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
import yaml
from anyio import wait_all_tasks_blocked
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from structlog.testing import capture_logs

from cache.accesses import read_accesses
from cache.catalogue import Catalogue
from cache.description import Description, Scope
from cache.digest import Digest
from cache.errors import TierError
from cache.keys import Principal, namespace
from cache.news import News
from cache.settings import CacheSettings, L2Settings, L3Settings, SettingsError, TelemetrySettings, load
from cache.telemetry import Telemetry, as_metadata
from gateway.stack.ports import free_port
from inference.models import small
from inference.server import SERVICE, InferenceServicer, Server
from inference.settings import OTHERS, ModelSettings, RetentionSettings, WorkerSection, WorkerSettings
from inference.status import ErrorInterceptor
from inference.worker import Worker, open_worker, publish
from reprise.v1 import inference_pb2 as pb
from reprise.v1.inference_pb2_grpc import InferenceServiceStub
from tests.inference.worker_fixtures import PATIENCE, SECRET, Bench, Heard, Pixels, ask, open_bench, until

READY, DRAINING = pb.StatusResponse.STATE_READY, pb.StatusResponse.STATE_DRAINING
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SMALL = {"width": 64, "height": 64, "num_frames": 2, "num_inference_steps": 2, "guidance_scale": 9.0}


class Wire:
    """A client of one server."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.inference = InferenceServiceStub(channel)
        self.channel = channel
        self._health = health_pb2_grpc.HealthStub(channel)

    async def health(self, service: str = "") -> int:
        response = await self._health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
        status: int = response.status
        return status

    async def run(self, request: pb.RunRequest, **options: Any) -> Heard:
        heard = Heard()
        async for response in self.inference.Run(iter([request]), timeout=PATIENCE, **options):
            heard.responses.append(response)
        return heard

    async def error(self, call: Any) -> grpc.aio.AioRpcError:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError("no error")


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The google.rpc details of an error by their names."""
    packed = next(value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin")
    found: dict[str, Any] = {}
    for detail in status_pb2.Status.FromString(packed).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest):
            message = kind()
            if detail.Unpack(message):
                found[kind.DESCRIPTOR.name] = message
    return found


@asynccontextmanager
async def serving(news: News | None = None, *, sign_of_life: float = 60.0) -> AsyncIterator[tuple[Server, Wire]]:
    """A server without an engine yet."""
    servicer = InferenceServicer("worker-1", clock=lambda: 1234.5, sign_of_life=sign_of_life)
    servicer.news = news or servicer.news
    server = Server(servicer, "127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield server, Wire(channel)
    finally:
        await server.stop(0)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "l3", queue=1) as bench:
        yield bench


@pytest.fixture
async def wire(bench: Bench) -> AsyncIterator[Wire]:
    async with serving(bench.shop.news) as (server, wire):
        await server.open(bench.engine)
        yield wire


# The service.


async def test_a_worker_describes_its_models(wire: Wire, bench: Bench) -> None:
    """Documents as they are stored, the worker's name, and since when it runs."""
    response = await wire.inference.Describe(pb.DescribeRequest())
    assert [Description.from_bytes(document) for document in response.descriptions] == [bench.model.description]
    assert (response.worker, response.started_at) == ("worker-1", 1234.5)


async def test_a_run_comes_through_whole(wire: Wire, bench: Bench) -> None:
    """Events, chunks of 1 MiB, the result and its durability, over the wire."""
    heard = await wire.run(bench.ask(size=3 * 1024 * 1024))
    assert heard.record.output.digest.names(heard.data)
    assert (len(heard.data), heard.stored) == (3 * 1024 * 1024, "DURABLE")
    assert [event.sequence for event in heard.events] == list(range(1, len(heard.events) + 1))


async def test_a_large_picture_comes_through(wire: Wire, bench: Bench) -> None:
    """20 million pixels fit into one request."""
    heard = await wire.run(bench.ask(picture=Pixels(width=5000, height=4000)))
    assert heard.stored == "DURABLE"


async def test_one_run_for_followers_on_many_streams(wire: Wire, bench: Bench) -> None:
    """Equal requests on the wire meet in one generation."""
    bench.model.gates["denoise"].close()
    calls = [asyncio.create_task(wire.run(bench.ask())) for _ in range(16)]
    await bench.model.gates["denoise"].reached()
    bench.model.gates["denoise"].open()
    heard = await asyncio.gather(*calls)
    assert len({each.data for each in heard}) == 1
    assert bench.shop.generations == 1


async def test_the_callers_trace_goes_on(wire: Wire, bench: Bench) -> None:
    """The worker's span is a child of the one whose context came in the metadata."""
    span = TracerProvider().get_tracer("test").start_span("gateway")
    await wire.run(bench.ask(), metadata=as_metadata(span))
    root = next(each for each in bench.spans if each.name == "worker.run")
    assert root.parent is not None
    assert root.parent.span_id == span.get_span_context().span_id


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"revision": "2"}, "FAILED_PRECONDITION", "PLAN_DIFFERS"),
        ({"model": "other"}, "FAILED_PRECONDITION", "PLAN_DIFFERS"),
    ],
    ids=["revision", "model"],
)
async def test_refusals_say_why(wire: Wire, bench: Bench, change: dict[str, str], code: str, reason: str) -> None:
    """A stable reason in our domain, and the code the contract names."""
    request = bench.ask()
    for name, value in change.items():
        setattr(request, name, value)
    error = await wire.error(wire.run(request))
    assert error.code().name == code
    assert (details(error)["ErrorInfo"].reason, details(error)["ErrorInfo"].domain) == (reason, "reprise")


async def test_missing_pixels_are_asked_for(wire: Wire, bench: Bench) -> None:
    """The gateway can tell that it must send the plan again with the picture."""
    error = await wire.error(wire.run(bench.ask(with_pixels=False)))
    assert (error.code().name, details(error)["ErrorInfo"].reason) == ("FAILED_PRECONDITION", "MEDIA_NEEDED")


async def test_a_malformed_input_names_its_field(wire: Wire, bench: Bench) -> None:
    """BadRequest holds the field and what it must be."""
    request = bench.ask()
    del request.parameters["seed"]
    error = await wire.error(wire.run(request))
    assert error.code().name == "INVALID_ARGUMENT"
    (violation,) = details(error)["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("seed", "must be given")


async def _told(call: Any, kind: str) -> None:
    """Wait until a run's stream has said something of this kind."""
    async with asyncio.timeout(PATIENCE):
        while not (await call.read()).event.HasField(kind):
            continue


async def test_a_full_queue_says_when_to_come_again(wire: Wire, bench: Bench) -> None:
    """RESOURCE_EXHAUSTED with RetryInfo."""
    gate = bench.model.gates["denoise"]
    gate.close()
    running = asyncio.create_task(wire.run(bench.ask(seed=1)))
    await gate.reached()
    waiting = wire.inference.Run(iter([bench.ask(seed=2)]))
    await _told(waiting, "queued")
    error = await wire.error(wire.run(bench.ask(seed=3)))
    assert (error.code().name, details(error)["ErrorInfo"].reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert details(error)["RetryInfo"].retry_delay.ToTimedelta().total_seconds() >= 1.0
    waiting.cancel()
    gate.open()
    await running


async def test_a_fault_is_one_neutral_sentence(wire: Wire, bench: Bench) -> None:
    """What a model raised never reaches the wire."""

    def fail() -> None:
        raise ValueError("a secret cat")

    bench.model.trouble["denoise"] = [fail]
    error = await wire.error(wire.run(bench.ask()))
    assert (error.code().name, details(error)["ErrorInfo"].reason) == ("INTERNAL", "INTERNAL")
    assert "secret" not in str(error.details()) + str(error.trailing_metadata())


async def test_a_follower_that_leaves_while_it_is_written_to_is_no_fault() -> None:
    """A gateway that dies in the middle of a message is no entry in the worker's log."""

    async def write(_request: Any, context: Any) -> None:
        while True:
            await context.write(bytes(1024 * 1024))

    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, Any] = {"Run": grpc.unary_stream_rpc_method_handler(write)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with capture_logs() as entries:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            method: Any = channel.unary_stream("/test.Test/Run")
            call = method(b"")
            await call.read()
            await wait_all_tasks_blocked()
            call.cancel()
            await wait_all_tasks_blocked()
        await server.stop(None)

    assert [] == entries


async def test_pixels_may_come_in_pieces(wire: Wire, bench: Bench) -> None:
    """They make what the same pixels inside the plan make; wrong ones, and a call without a plan, are refused."""
    whole = bench.ask(seed=1)
    rgb = whole.pictures["image"].rgb
    bare = pb.RunRequest()
    bare.CopyFrom(whole)
    bare.pictures["image"].ClearField("rgb")

    def pieces(content: bytes) -> list[pb.RunRequest]:
        return [
            pb.RunRequest(piece=pb.MediaPiece(name="image", content=content[at : at + 7])) for at in range(0, 99, 7)
        ]

    assert len(rgb) < 99
    heard = Heard()
    async for response in wire.inference.Run(iter([bare, *pieces(rgb)]), timeout=PATIENCE):
        heard.responses.append(response)
    again = await wire.run(whole)
    wrong = await wire.error(wire.inference.Run(iter([bare, *pieces(rgb[:-1] + b"\0")]), timeout=PATIENCE).read())
    nothing = await wire.error(wire.inference.Run(iter([]), timeout=PATIENCE).read())

    assert heard.data == again.data != b""
    assert (1, "REUSED") == (bench.shop.generations, again.stages["video"][0])
    assert ["INVALID_ARGUMENT"] * 2 == [error.code().name for error in (wrong, nothing)]


async def test_a_run_is_foreseen(wire: Wire, bench: Bench) -> None:
    """The answer names every stage and its address; a plan that differs is refused as it would be to run."""
    await wire.run(bench.ask())
    foreseen = await wire.inference.Foresee(pb.ForeseeRequest(run=bench.ask(seed=1, with_pixels=False)))
    assert [stage.name for stage in bench.model.description.stages] == [report.stage for report in foreseen.stages]
    assert {report.stage for report in foreseen.stages} == set(foreseen.addresses)
    assert bench.shop.generations == 1
    wrong = bench.ask(seed=1)
    wrong.addresses["video"] = "0" * 32 + "/" + "0" * 64
    error = await wire.error(wire.inference.Foresee(pb.ForeseeRequest(run=wrong)))
    assert (error.code().name, details(error)["ErrorInfo"].reason) == ("FAILED_PRECONDITION", "PLAN_DIFFERS")


async def test_a_client_that_hangs_up_leaves(wire: Wire, bench: Bench) -> None:
    """A cancelled call is a follower less at once; what runs is finished."""
    bench.model.step_gate.close()
    call = wire.inference.Run(iter([bench.ask(follower="f")]))
    reading = asyncio.ensure_future(call.read())
    await bench.model.step_gate.reached()
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await until(lambda: "f" not in bench.engine._followers)
    bench.model.step_gate.open()
    await bench.idle()
    assert (await wire.run(bench.ask(with_pixels=False))).stages["video"] == ("REUSED", "L1")


async def test_an_abandoned_stream_ends_cancelled(wire: Wire, bench: Bench) -> None:
    """The follower that was given up hears so, with a reason; running work stops."""
    bench.model.step_gate.close()
    running = asyncio.create_task(wire.error(wire.run(bench.ask(follower="f"))))
    await bench.model.step_gate.reached()
    await wire.inference.Abandon(pb.AbandonRequest(follower="f"))
    error = await running
    assert (error.code().name, details(error)["ErrorInfo"].reason) == ("CANCELLED", "ABANDONED")
    bench.model.step_gate.open()
    await bench.idle()
    assert "video" not in bench.model.runs


async def test_status_comes_at_once_and_on_every_change(wire: Wire, bench: Bench) -> None:
    """One report at first, then one whenever something it says is different."""
    reports = wire.inference.Status(pb.StatusRequest())
    first = await _report(reports)
    assert (first.state, first.busy, first.generations) == (READY, False, 0)
    await wire.run(bench.ask())
    seen: list[pb.StatusResponse] = []
    while not seen or seen[-1] != bench.engine.status():
        seen.append(await _report(reports))
    assert seen[-1].generations == 1
    assert seen[-1].pool_entries == 2
    assert any(report.busy for report in seen)
    reports.cancel()


async def test_status_is_a_sign_of_life() -> None:
    """Without any change it comes again and again."""
    async with serving(sign_of_life=0.01) as (_, wire):
        reports = wire.inference.Status(pb.StatusRequest())
        assert [(await _report(reports)).state for _ in range(5)] == [pb.StatusResponse.STATE_LOADING] * 5
        reports.cancel()


async def test_a_worker_that_loads_says_so(bench: Bench) -> None:
    """It listens, is not serving, refuses with a delay, and reports the change when it is ready."""
    async with serving() as (server, wire):
        assert (await wire.health(), await wire.health(SERVICE)) == (NOT_SERVING, NOT_SERVING)
        reports = wire.inference.Status(pb.StatusRequest())
        assert (await _report(reports)).state == pb.StatusResponse.STATE_LOADING
        for call in (wire.inference.Describe(pb.DescribeRequest()), wire.run(bench.ask())):
            error = await wire.error(call)
            assert (error.code().name, details(error)["ErrorInfo"].reason) == ("UNAVAILABLE", "LOADING")
            assert details(error)["RetryInfo"].retry_delay.seconds > 0
        await server.open(bench.engine)
        assert (await _report(reports)).state == READY
        assert (await wire.health(), await wire.health(SERVICE)) == (SERVING, SERVING)
        reports.cancel()


async def test_leaving_is_announced_before_anything_ends(bench: Bench) -> None:
    """Status and health say so while a run goes on to its end; a new one is refused; the status stream ends last."""
    async with serving(bench.shop.news) as (server, own):
        await server.open(bench.engine)
        bench.model.step_gate.close()
        running = asyncio.create_task(own.run(bench.ask()))
        await bench.model.step_gate.reached()
        reports = own.inference.Status(pb.StatusRequest())
        assert (await _report(reports)).state == READY
        leaving = asyncio.create_task(Worker(server, bench.engine, drain=PATIENCE).leave())
        assert (await _report(reports)).state == DRAINING
        assert await own.health() == NOT_SERVING
        error = await own.error(own.run(bench.ask(seed=1)))
        assert (error.code().name, details(error)["ErrorInfo"].reason) == ("UNAVAILABLE", "DRAINING")
        bench.model.step_gate.open()
        assert (await running).stored == "DURABLE"
        await leaving
        assert (await own.error(_read_to_the_end(reports))).code() is grpc.StatusCode.UNAVAILABLE


async def test_reflection_names_the_service(wire: Wire) -> None:
    """Tools find out what is served."""
    stub = reflection_pb2_grpc.ServerReflectionStub(wire.channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([question]))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    call.cancel()


async def _read_to_the_end(reports: Any) -> None:
    while True:
        await _report(reports)


async def _report(reports: Any) -> pb.StatusResponse:
    async with asyncio.timeout(PATIENCE):
        report = await reports.read()
    assert isinstance(report, pb.StatusResponse)
    return report


# The process.


def settings(tmp_path: Path, models: tuple[ModelSettings, ...], device: str = "cpu") -> WorkerSettings:
    return WorkerSettings(
        cache=CacheSettings(
            secret=SecretStr(SECRET.hex()),
            l2=L2Settings(enabled=False),
            l3=L3Settings(url=f"file://{tmp_path / 'l3'}"),
        ),
        telemetry=TelemetrySettings(accesses_folder=str(tmp_path / "accesses")),
        worker=WorkerSection(name="worker-1", port=0, models=models, device=device, threads=1),
    )


@asynccontextmanager
async def telemetry() -> AsyncIterator[Telemetry]:
    started = Telemetry(TelemetrySettings(), TracerProvider(), CollectorRegistry())
    try:
        yield started
    finally:
        await asyncio.to_thread(started.stop)


async def test_a_worker_put_together_serves_the_real_model(tmp_path: Path, small_folder: Path) -> None:
    """From settings to a run; its description can be found without it; its metrics count, and its needs are noted."""
    kept = {"moments": RetentionSettings(ttl=77.0)}
    wanted = settings(tmp_path, (ModelSettings(name="small", source=str(small_folder), stages=kept),))
    async with telemetry() as own, open_worker(wanted, own) as worker:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{worker.port}") as channel:
            wire = Wire(channel)
            (document,) = (await wire.inference.Describe(pb.DescribeRequest())).descriptions
            description = Description.from_bytes(document)
            assert description.stage("moments").ttl == 77.0
            heard = await wire.run(_small_request(description))
            assert heard.record.output.media_type == "video/mp4"
            assert heard.record.execution.keys() >= {"torch", "diffusers", "device", "threads", "dtype"}
        assert own.registry.get_sample_value("reprise_worker_generations_total") == 1.0
        assert own.registry.get_sample_value("reprise_stage_seconds_count", {"stage": "denoise"}) == 1.0
        assert own.registry.get_sample_value("reprise_pool_entries") == 4.0
        assert own.registry.get_sample_value("reprise_worker_queue") == 0.0
        await worker.leave()
    assert (tmp_path / "l3" / "models" / "small").exists()
    assert 4 == len(read_accesses([tmp_path / "accesses" / "stages-worker-1.jsonl"])["stage"])


async def test_a_description_is_published_when_the_store_comes_back(bench: Bench) -> None:
    """A store that cannot be reached delays it and fails nothing."""
    assert bench.tiers.objects is not None
    catalogue = Catalogue(bench.tiers.objects, bench.tiers.below_memory, namespace(SECRET, Scope.SHARED, Principal("")))
    failures, pauses = [TierError("away"), TierError("away")], list[float]()
    publish_once = catalogue.publish

    async def unreachable_at_first(description: Description) -> None:
        if failures:
            raise failures.pop()
        await publish_once(description)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    catalogue.publish = unreachable_at_first  # type: ignore[method-assign]  # the store's fate, scripted
    await publish(catalogue, bench.model.description, pause=pause)
    assert pauses == [1.0, 2.0]
    assert await catalogue.active("gated") == bench.model.description


async def test_a_stage_that_is_not_there_is_named(tmp_path: Path, small_folder: Path) -> None:
    """Nobody finds out later that a decision about it never held."""
    unknown = {"encode": RetentionSettings(ttl=77.0)}
    wanted = settings(tmp_path, (ModelSettings(name="small", source=str(small_folder), stages=unknown),))
    async with telemetry() as own:
        with pytest.raises(SettingsError, match=r"worker\.models: small: no stage named encode"):
            await open_worker(wanted, own).__aenter__()


async def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A worker that cannot load says which model and why, instead of serving nothing."""
    wanted = settings(tmp_path, (ModelSettings(name="small", source=str(tmp_path / "nothing")),))
    async with telemetry() as own:
        with pytest.raises(SettingsError, match=r"worker\.models: small: "):
            await open_worker(wanted, own).__aenter__()


async def test_a_checkout_that_is_none_is_named(tmp_path: Path) -> None:
    """A model's own, where its family runs on one, goes before that of the environment."""
    source = await asyncio.to_thread(small.build, tmp_path / "model", family="cosyvoice3")
    wanted = settings(tmp_path, (ModelSettings(name="small", source=str(source), checkout=str(tmp_path)),))
    async with telemetry() as own:
        with pytest.raises(SettingsError, match=r"worker\.models: small: .* is no checkout of CosyVoice"):
            await open_worker(wanted, own).__aenter__()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device that is asked for is there")
async def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Nothing falls back to a slower device unasked."""
    async with telemetry() as own:
        with pytest.raises(SettingsError, match=r"worker\.device: .*cuda"):
            await open_worker(settings(tmp_path, (), device="cuda"), own).__aenter__()


def test_settings_know_two_forms_of_models(tmp_path: Path) -> None:
    """A list with every detail, or a name and where it comes from; other processes' sections do not matter."""
    file = tmp_path / "reprise.yaml"
    section = {"models": {"small": "/models/small"}, "queue": 3}
    file.write_text(yaml.safe_dump({"cache": {"secret": SECRET.hex()}, "worker": section, "gateway": {"port": 1}}))
    loaded = load(WorkerSettings, file, others=OTHERS).worker
    assert (loaded.models, loaded.queue) == ((ModelSettings(name="small", source="/models/small"),), 3)
    assert (loaded.pool_bytes, loaded.pool_entries, loaded.host_pool_bytes) == (None, 10, None)
    twice = [{"name": "small", "source": "a"}, {"name": "small", "source": "b"}]
    for wrong in ({"models": twice}, {"device": "tpu"}, {"favourites": ["a cat"]}, {"threads": -1}, {"colour": "red"}):
        file.write_text(yaml.safe_dump({"cache": {"secret": SECRET.hex()}, "worker": wrong}))
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            load(WorkerSettings, file, others=OTHERS)


@asynccontextmanager
async def process(tmp_path: Path, small_folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Wire]]:
    """`python -m inference`, serving."""
    port = free_port()
    file = tmp_path / "reprise.yaml"
    content = {
        "cache": {"secret": SECRET.hex(), "l2": {"enabled": False}, "l3": {"url": f"file://{tmp_path / 'l3'}"}},
        "worker": {"port": port, "device": "cpu", "threads": 1, "models": {"small": str(small_folder)}},
    }
    file.write_text(yaml.safe_dump(content))
    log = (tmp_path / "log").open("wb")
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inference", "--config", str(file), stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            wire = Wire(channel)
            reports = wire.inference.Status(pb.StatusRequest(), wait_for_ready=True)
            while (await _report(reports)).state != READY:
                continue
            reports.cancel()
            yield running, wire
    finally:
        log.close()
        if running.returncode is None:
            running.kill()
        await running.wait()


async def test_a_process_told_to_stop_ends_what_runs(tmp_path: Path, small_folder: Path) -> None:
    """SIGTERM: it says so at once, delivers and stores what it has begun, and exits with 0."""
    async with process(tmp_path, small_folder) as (running, wire):
        (document,) = (await wire.inference.Describe(pb.DescribeRequest())).descriptions
        request = _small_request(Description.from_bytes(document), num_inference_steps=60)
        reports = wire.inference.Status(pb.StatusRequest())
        heard = Heard()
        async for response in wire.inference.Run(iter([request]), timeout=60.0):
            heard.responses.append(response)
            if len(heard.steps) == 1 and response.event.HasField("progress"):
                running.send_signal(signal.SIGTERM)
                while (await _report(reports)).state != DRAINING:
                    continue
        assert len(heard.steps) == 60
        assert heard.stored == "DURABLE"
        assert Digest.of(heard.data) == heard.record.output.digest
        assert await asyncio.wait_for(running.wait(), PATIENCE) == 0


async def test_a_second_signal_ends_a_process_now(tmp_path: Path, small_folder: Path) -> None:
    """Whatever runs is left; the exit status says that it was a signal."""
    async with process(tmp_path, small_folder) as (running, wire):
        (document,) = (await wire.inference.Describe(pb.DescribeRequest())).descriptions
        request = _small_request(Description.from_bytes(document), num_inference_steps=200, num_frames=16)
        reports = wire.inference.Status(pb.StatusRequest())
        call = wire.inference.Run(iter([request]))
        await _told(call, "progress")
        running.send_signal(signal.SIGTERM)
        while (await _report(reports)).state != DRAINING:
            continue
        running.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.wait(), PATIENCE) == 128 + signal.SIGTERM
        call.cancel()


def test_threads_that_wait_for_each_other_soon_sleep(tmp_path: Path) -> None:
    """As a worker has it unless its environment says otherwise: awake they would hold up whoever they wait for."""
    assert spins_of({}, tmp_path) == 1000
    assert spins_of({"OMP_WAIT_POLICY": "PASSIVE"}, tmp_path) == 0


def spins_of(environment: Mapping[str, str], tmp_path: Path) -> int:
    """How often a thread looks before it sleeps, as OpenMP says of itself in a worker that ends for want of a model."""
    file = tmp_path / "reprise.yaml"
    cache = {"secret": SECRET.hex(), "l2": {"enabled": False}, "l3": {"enabled": False}}
    file.write_text(yaml.safe_dump({"cache": cache, "worker": {"port": 0, "models": {"none": str(tmp_path / "none")}}}))
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    run = subprocess.run(
        [sys.executable, "-m", "inference", "--config", str(file)],
        env={**own, "OMP_DISPLAY_ENV": "VERBOSE", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    (said,) = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", run.stderr)
    return int(said)


def _small_request(description: Description, **more: Any) -> pb.RunRequest:
    wanted = {"prompt": "a cat runs", **SMALL, **more}
    return ask(description, picture=Pixels(width=64, height=64), **wanted)
