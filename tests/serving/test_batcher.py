"""The batcher: order, sizes, bound, cancelling, poison, and its end."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from petface.serving.batcher import Batcher, ClosedError, QueueFullError
from tests.serving.made_server import PATIENCE_S, until


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


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def batcher(recorder):
    made = Batcher(recorder, max_batch=4, max_wait_s=PATIENCE_S, max_queue=12)
    yield made
    recorder.gate.set()
    made.close(PATIENCE_S)
    assert not made.is_alive


def submit(batcher, *items, size=1):
    """Submit items that keep their places for the length of a test."""
    return [batcher.place(size).submit(item) for item in items]


def hold(batcher, recorder):
    """Let the thread hang in a batch of the item 0, so that what follows waits together."""
    recorder.gate.clear()
    (future,) = submit(batcher, 0)
    until(lambda: recorder.batches)
    return future


def test_what_waits_is_computed_together_in_the_order_of_arrival(batcher, recorder):
    first = hold(batcher, recorder)
    futures = submit(batcher, 1, 2, 3, 4, 5, 6)
    recorder.gate.set()
    assert first.result(PATIENCE_S).answer == 0
    assert [future.result(PATIENCE_S).answer for future in futures] == [2, 4, 6, 8, 10, 12]
    assert recorder.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert [future.result().batch_size for future in futures] == [4, 4, 4, 4, 2, 2]
    assert all(future.result().queue_s >= 0 for future in futures)


def test_a_batch_counts_photos_and_one_that_is_too_large_goes_alone(batcher, recorder):
    hold(batcher, recorder)
    futures = [*submit(batcher, 1, size=3), *submit(batcher, 2, size=2), *submit(batcher, 3)]
    futures += submit(batcher, 4, size=5)
    recorder.gate.set()
    assert [future.result(PATIENCE_S).answer for future in futures] == [2, 4, 6, 8]
    assert recorder.batches == [[0], [1], [2, 3], [4]]


def test_a_lonely_item_does_not_wait_but_one_in_company_does(batcher, recorder):
    """max_wait_s is longer than the test is patient: waiting for nobody would fail it."""
    (alone,) = submit(batcher, 1)
    assert alone.result(PATIENCE_S / 2).answer == 2
    preparing = batcher.place()
    (early,) = submit(batcher, 2)
    assert not early.done()
    late = preparing.submit(3)
    assert [early.result(PATIENCE_S / 2).answer, late.result(PATIENCE_S).answer] == [4, 6]
    assert recorder.batches == [[1], [2, 3]]


def test_one_that_gives_up_preparing_keeps_nobody_waiting(batcher):
    with batcher.place():
        (future,) = submit(batcher, 1)
        assert not future.done()
    assert future.result(PATIENCE_S / 2).answer == 2


def test_it_waits_no_longer_than_it_was_told(recorder):
    batcher = Batcher(recorder, max_batch=4, max_wait_s=0.01, max_queue=4)
    with batcher.place():  # prepares for ever
        (future,) = submit(batcher, 1)
        assert future.result(PATIENCE_S).answer == 2
    batcher.close(PATIENCE_S)


def test_there_are_so_many_places_and_no_more(batcher):
    places = [batcher.place(3) for _ in range(3)]
    with pytest.raises(QueueFullError):
        batcher.place(4)
    assert not batcher.is_full
    places[0].grow(3)
    assert batcher.is_full and batcher.num_taken == 12
    with pytest.raises(QueueFullError):
        places[1].grow(1)
    with places[0]:
        pass
    assert batcher.num_taken == 6


def test_a_place_is_free_again_after_the_answer(batcher):
    for _ in range(30):
        with batcher.place() as place:
            assert place.submit(1).result(PATIENCE_S).answer == 2
    assert batcher.num_taken == 0


def test_a_cancelled_item_is_dropped_and_forgotten(batcher, recorder):
    hold(batcher, recorder)
    gone, stays = submit(batcher, 1, 2)
    assert gone.cancel()
    assert [waiting.item for waiting in batcher._queue] == [2]  # its photo is let go at once
    recorder.gate.set()
    assert stays.result(PATIENCE_S).answer == 4
    assert recorder.batches == [[0], [2]]


def test_poison_fails_itself_alone(batcher, recorder):
    hold(batcher, recorder)
    futures = submit(batcher, 1, 13, 3)
    recorder.gate.set()
    assert futures[0].result(PATIENCE_S).answer == 2
    with pytest.raises(RuntimeError, match="poison"):
        futures[1].result(PATIENCE_S)
    assert futures[2].result(PATIENCE_S).answer == 6
    assert recorder.batches == [[0], [1, 13, 3], [1], [13], [3]]
    assert submit(batcher, 5)[0].result(PATIENCE_S).answer == 10


def test_an_error_in_the_place_of_an_answer_costs_the_others_nothing(batcher, recorder):
    hold(batcher, recorder)
    futures = submit(batcher, 1, 7)
    recorder.gate.set()
    assert futures[0].result(PATIENCE_S).answer == 2
    with pytest.raises(ValueError, match="alone"):
        futures[1].result(PATIENCE_S)
    assert recorder.batches == [[0], [1, 7]]


def test_at_the_end_what_waits_is_answered_and_nothing_more_taken(recorder):
    batcher = Batcher(recorder, max_batch=4, max_wait_s=PATIENCE_S, max_queue=12)
    hold(batcher, recorder)
    futures, late = submit(batcher, 1, 2), batcher.place()
    recorder.gate.set()
    batcher.close(PATIENCE_S)
    assert [future.result(0).answer for future in futures] == [2, 4]
    assert not batcher.is_alive
    with pytest.raises(ClosedError):
        late.submit(3)


def test_at_the_end_what_takes_too_long_is_told_so(recorder):
    batcher = Batcher(recorder, max_batch=4, max_wait_s=0, max_queue=12)
    running = hold(batcher, recorder)
    (waiting,) = submit(batcher, 1)
    batcher.close(0.01)
    with pytest.raises(ClosedError):
        waiting.result(0)
    recorder.gate.set()
    assert running.result(PATIENCE_S).answer == 0


def test_several_threads_share_what_waits(recorder):
    batcher = Batcher(recorder, max_batch=1, max_wait_s=0, max_queue=12, num_threads=2)
    recorder.gate.clear()
    futures = submit(batcher, 1, 2, 3)
    until(lambda: len(recorder.batches) == 2)  # the third waits for one of the two
    recorder.gate.set()
    assert [future.result(PATIENCE_S).answer for future in futures] == [2, 4, 6]
    assert sorted(recorder.batches) == [[1], [2], [3]]
    batcher.close(PATIENCE_S)
    assert not any(thread.is_alive() for thread in batcher._threads)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness on Linux alone")
def test_its_thread_is_nicer_than_the_others():
    def ask(items):
        return [os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) for _ in items]

    batcher = Batcher(ask, max_batch=1, max_wait_s=0, max_queue=1, niceness=3)
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with batcher.place() as place:
        assert place.submit(0).result(PATIENCE_S).answer == own + 3
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
    batcher.close(PATIENCE_S)
