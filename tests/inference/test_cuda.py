"""The accelerator itself. Only where there is one: everything above it is tested on a scripted device."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch

from inference import cuda
from inference.device import MIB, DeviceThread, open_device
from inference.models.base import Tensors

pytestmark = pytest.mark.skipif(not cuda.there(), reason="there is no accelerator on this machine")


@pytest.fixture
def device() -> cuda.CudaDevice:
    opened = open_device("cuda")
    assert isinstance(opened, cuda.CudaDevice)
    return opened


@pytest.fixture
def beside(device: cuda.CudaDevice) -> Iterator[DeviceThread]:
    thread = DeviceThread(device, "beside", beside=True)
    yield thread
    thread.close()


def samples() -> Tensors:
    """Of every kind that stages store: small, larger than a buffer, not a multiple of it, of no dimension, empty."""
    generator = torch.Generator().manual_seed(1)
    return {
        "half": torch.randn(3, 77, 1024, generator=generator).half(),
        "large": torch.randn(11 * MIB + 3, generator=generator),
        "ids": torch.arange(77),
        "flags": torch.tensor([True, False, True]),
        "one": torch.tensor(3.5),
        "none": torch.empty(0, 4),
    }


async def test_what_travels_arrives_bit_for_bit(device: cuda.CudaDevice, beside: DeviceThread) -> None:
    """There and back, on a stream of its own, whatever its size and type; what is there already is not moved."""
    sent = samples()
    there = await beside.run(device.bring_in, sent)
    assert {tensor.device for tensor in there.values()} == {device.place}
    assert await beside.run(device.bring_in, there) == there
    back = await beside.run(device.take_out, there)
    for name, tensor in sent.items():
        assert (back[name].dtype, back[name].device.type) == (tensor.dtype, "cpu")
        assert torch.equal(back[name], tensor)


async def test_copies_do_not_wait_for_what_is_computed(device: cuda.CudaDevice, beside: DeviceThread) -> None:
    """Inputs come near while the device works: they are there before the work that began earlier has ended."""
    computing = DeviceThread(device, "device")
    ended: list[str] = []

    def compute() -> None:
        matrix = torch.randn(4096, 4096, device=device.place)
        for _ in range(400):
            matrix = torch.tanh(matrix @ matrix)

    async def note(name: str, work: asyncio.Future[object]) -> None:
        await work
        ended.append(name)

    await computing.run(compute)
    await asyncio.gather(
        note("computed", asyncio.ensure_future(computing.run(compute))),
        note("copied", asyncio.ensure_future(beside.run(device.bring_in, samples()))),
    )
    computing.close()
    assert ended == ["copied", "computed"]


async def test_memory_and_peaks_are_told(device: cuda.CudaDevice) -> None:
    """What is in use, the most that was, and what is left."""
    computing = DeviceThread(device, "device")

    def compute() -> int:
        made = torch.empty(64 * MIB, dtype=torch.uint8, device=device.place)
        return made.numel()

    before = await computing.run(device.memory)
    _, cost = await computing.measured(compute)
    after = await computing.run(device.memory)
    computing.close()
    assert cost.bytes == 64 * MIB
    assert after.used == before.used
    assert 0 < after.free <= after.total


async def test_more_than_there_is_is_out_of_memory(device: cuda.CudaDevice) -> None:
    """And what was free before is free again."""
    computing = DeviceThread(device, "device")
    before = await computing.run(device.memory)
    with pytest.raises(torch.OutOfMemoryError):
        await computing.run(lambda: torch.empty(2 * before.total, dtype=torch.uint8, device=device.place))
    assert (await computing.run(device.memory)).used == before.used
    computing.close()
