from __future__ import annotations

import ast
import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from inference import cuda, device
from inference.device import DeviceThread, HostDevice
from tests.inference.worker_fixtures import PATIENCE, run_out_of_memory


@pytest.fixture
def thread() -> Iterator[DeviceThread]:
    thread = DeviceThread(HostDevice(), "device")
    yield thread
    thread.close()


async def test_one_thread_does_everything_in_order(thread: DeviceThread) -> None:
    """Calls made at once run one after the other, in the same thread, which is not the loop's."""
    order: list[int] = []
    threads: set[int] = set()

    def work(number: int) -> int:
        order.append(number)
        threads.add(threading.get_ident())
        return number

    assert await asyncio.gather(*(thread.run(work, number) for number in range(20))) == list(range(20))
    assert order == list(range(20))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_waiting_is_no_device_time(thread: DeviceThread) -> None:
    """The seconds of a call are its own, however long it waited for others."""
    hold, held = threading.Event(), threading.Event()

    def first() -> None:
        held.set()
        assert hold.wait(PATIENCE)

    slow = asyncio.create_task(thread.timed(first))
    await asyncio.to_thread(held.wait, PATIENCE)
    quick = asyncio.create_task(thread.timed(lambda: 1))
    hold.set()
    (_, first_seconds), (one, second_seconds) = await slow, await quick
    assert one == 1
    assert 0 < second_seconds < 1.0
    assert first_seconds > 0


async def test_an_error_reaches_the_caller_and_the_thread_goes_on(thread: DeviceThread) -> None:
    """What a call raises is raised to who awaits it; the next call works."""
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0)
    assert await thread.run(lambda: 2) == 2


async def test_exhausted_memory_is_recognised(thread: DeviceThread) -> None:
    """The allocator's own refusal counts as out of memory, another error does not."""
    with pytest.raises(RuntimeError) as refused:
        await thread.run(run_out_of_memory)
    assert device.out_of_memory(refused.value)
    assert device.out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not device.out_of_memory(RuntimeError("shapes differ"))


def test_a_cpu_is_chosen_where_there_is_nothing_else() -> None:
    """`auto` finds a device that is there; one that is not there is refused by name."""
    assert device.open_device("cpu").place == torch.device("cpu")
    if not cuda.there():
        chosen = device.open_device("auto")
        assert (chosen.place, chosen.separate, chosen.memory()) == (torch.device("cpu"), False, device.Memory())
        with pytest.raises(ValueError, match="cuda:7"):
            device.open_device("cuda:7")


def test_an_execution_says_what_numbers_may_depend_on() -> None:
    """Versions, device, instructions and threads are recorded."""
    recorded = device.execution(HostDevice())
    assert {"torch", "diffusers", "transformers", "av", "device", "instructions", "threads", "batch"} == recorded.keys()
    assert recorded["threads"] == str(torch.get_num_threads())


def test_one_file_knows_an_accelerator() -> None:
    """On torch's build for a processor most of `torch.cuda` raises, so nothing else in this room may touch it."""
    room = Path(device.__file__).parent
    touching = {
        file.name
        for file in room.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "cuda" and isinstance(node.value, ast.Name)
        if node.value.id == "torch"
    }
    assert touching == {"cuda.py"}
