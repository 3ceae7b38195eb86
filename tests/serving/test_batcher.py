"""Micro-batches: order, sizes, poison, clients that go."""

from __future__ import annotations

import asyncio
import threading

import pytest

from petface.serving.batcher import Batcher
from tests.serving.made_server import PATIENCE_S


class Recorder:
    """Doubles numbers, keeps its batches, and waits where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items):
        self.batches.append(list(items))
        assert self.gate.wait(PATIENCE_S)
        if 13 in items:
            raise RuntimeError("poison")
        return [ValueError("alone") if item == 7 else 2 * item for item in items]


def answers_to(items, recorder=None, num_workers=1, goes=()):
    """Answer items that all arrive while the first is computed; those that `goes` names go."""
    recorder = recorder or Recorder()

    async def run():
        batcher = Batcher(recorder, 4, num_workers=num_workers)
        recorder.gate.clear()
        tasks = [asyncio.ensure_future(batcher.answer(item)) for item in items]
        await asyncio.sleep(0.05)
        for task, item in zip(tasks, items, strict=True):
            if item in goes:
                task.cancel()
        await asyncio.sleep(0.05)
        num_left = len(batcher._queue)
        recorder.gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        batcher.close()
        return found, num_left

    found, num_left = asyncio.run(run())
    return found, recorder.batches, num_left


def test_what_waits_is_computed_together_in_the_order_of_arrival():
    found, batches, _ = answers_to(range(7))
    assert found == [0, 2, 4, 6, 8, 10, 12]
    assert batches == [[0], [1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize(
    "bad, kind, tries",
    [(13, RuntimeError, [[1], [13], [3]]), (7, ValueError, [])],
    ids=["raised", "in the place of an answer"],
)
def test_an_error_fails_its_own_client_alone(bad, kind, tries):
    found, batches, _ = answers_to([0, 1, bad, 3])
    assert [found[0], found[1], found[3]] == [0, 2, 6]
    assert isinstance(found[2], kind)
    assert batches == [[0], [1, bad, 3], *tries]


def test_whoever_goes_is_forgotten_at_once():
    found, batches, num_left = answers_to([0, 1, 2, 3], goes=(0, 2))
    assert num_left == 2, "its photo is let go before its turn"
    assert [found[1], found[3]] == [2, 6]
    assert all(isinstance(found[place], asyncio.CancelledError) for place in (0, 2))
    assert batches == [[0], [1, 3]]


def test_several_workers_share_what_waits():
    found, batches, _ = answers_to([1, 2, 3], num_workers=2)
    assert found == [2, 4, 6]
    assert sorted(batches) == [[1], [2], [3]]


def test_a_function_is_called_by_itself_unless_its_client_goes():
    recorder, made = Recorder(), []

    async def run():
        batcher = Batcher(recorder, 4)
        recorder.gate.clear()
        first = asyncio.ensure_future(batcher.answer(1))
        await asyncio.sleep(0.05)
        gone, stays = batcher.call(made.append, 0), batcher.call(made.append, 1)
        gone.cancel()
        await asyncio.sleep(0.05)
        recorder.gate.set()
        await asyncio.gather(first, stays)
        batcher.close()

    asyncio.run(run())
    assert made == [1] and recorder.batches == [[1]]
