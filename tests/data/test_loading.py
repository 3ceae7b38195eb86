"""Batches against naive pixels and labels; readers that fail, die, or are left early."""

import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from petface import devices
from petface.data import loading as module
from petface.data.images import Preprocessing
from petface.data.loading import Decoded, FileImages, Samples, batches, even_slices, read_ahead
from petface.data.sources.petface import scan
from tests import naive, scripts
from tests.conftest import BOMB, EMPTY, TRUNCATED

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_has_died(monkeypatch):
    monkeypatch.setattr(module, "_num_deaths", 0)
    yield
    module._waiting.clear()


@pytest.fixture(scope="module")
def catalog(tree):
    return scan(tree.images).catalog


def samples_of(places):
    """Labels that say which image they belong to, one of them unknown."""
    return Samples(places, {"a": places * 2, "b": np.where(places % 3, places, -1)}, places % 2 > 0)


@pytest.fixture(scope="module")
def all_samples(catalog):
    return samples_of(np.arange(len(catalog)))


def test_slices_are_few_full_and_even():
    for num, batch_size in itertools.product((0, 1, 7, 8, 9, 63, 64, 65, 1000), (1, 8, 64)):
        order = np.random.default_rng(num).permutation(num)
        slices = even_slices(order, batch_size)
        sizes = [len(part) for part in slices]
        assert len(slices) == (num + batch_size - 1) // batch_size
        assert all(0 < size <= batch_size for size in sizes)
        assert not sizes or max(sizes) - min(sizes) <= 1
        assert [i for part in slices for i in part] == order.tolist()


def test_batches_are_the_naive_pixels_and_labels_in_the_order_given(tree, catalog):
    places = np.random.default_rng(0).permutation(len(catalog))
    order = np.random.default_rng(1).permutation(len(catalog))[:40]
    paths = [naive.photos(tree.images)[place] for place in places]
    bad = {paths.index(name) for name in (TRUNCATED, BOMB, EMPTY)}
    order = np.concatenate([order, order[:5], sorted(bad)])  # each bad one at least once
    seen, failed, is_tail = [], set(), []
    source = FileImages(catalog, Preprocessing(24))
    for step, batch in enumerate(batches(source, samples_of(places), order, 16, CPU)):
        assert batch.step == step
        assert batch.images.dtype == torch.uint8 and batch.images.shape[1:] == (3, 24, 24)
        assert all(label.dtype == torch.int64 for label in batch.labels.values())
        for place, image in zip(batch.positions.tolist(), batch.images, strict=True):
            expected = naive.pixels(tree.images / paths[place], 24)
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
        own = places[batch.positions].tolist()
        assert batch.labels["a"].tolist() == [place * 2 for place in own]
        assert batch.labels["b"].tolist() == [place if place % 3 else -1 for place in own]
        is_tail += batch.is_tail.tolist()
        seen += batch.positions.tolist()
        failed |= {*batch.failures}
    assert seen == [place for place in order.tolist() if place not in bad]
    assert is_tail == [place % 2 > 0 for place in places[seen]]
    assert {place for place, _ in failed} == {places[place] for place in bad}
    assert all(naive.photos(tree.images)[place] in message for place, message in failed)


@pytest.mark.parametrize(("first", "num_workers"), [(0, 2), (1, 0), (5, 2), (8, 0)])
def test_workers_and_a_later_first_step_give_the_same_batches(
    catalog, all_samples, first, num_workers, monkeypatch
):
    """Workers are forked where a GPU may be in use: they must not touch it."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA in a worker"))
    order, source = np.arange(len(catalog))[:60], FileImages(catalog, Preprocessing(8))
    options = {"num_workers": num_workers, "first_step": first}
    whole = list(batches(source, all_samples, order, 8, CPU))
    rest = list(batches(source, all_samples, order, 8, CPU, **options))
    assert len(whole) == 8 and [b.step for b in rest] == list(range(first, 8))
    assert sum(len(b.failures) for b in whole) > 0
    for one, other in zip(whole[first:], rest, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.positions.tolist() == other.positions.tolist()
        assert one.failures == other.failures
        assert one.labels["b"].tolist() == other.labels["b"].tolist()
    assert list(batches(source, all_samples, order[:0], 8, CPU, num_workers=num_workers)) == []


def test_a_batch_in_which_nothing_can_be_read_is_empty_but_there(tree, catalog, all_samples):
    paths = naive.photos(tree.images)
    order = np.array([paths.index(TRUNCATED), paths.index(EMPTY)])
    (batch,) = batches(FileImages(catalog, Preprocessing(8)), all_samples, order, 8, CPU)
    assert batch.images.shape == (0, 3, 8, 8)
    assert len(batch.positions) == len(batch.labels["a"]) == 0 and len(batch.failures) == 2


def test_an_image_is_decoded_once_for_several_rules_and_its_status_is_kept(tree, catalog):
    paths = naive.photos(tree.images)
    indices = np.array([0, paths.index(BOMB), paths.index(TRUNCATED), 1])
    read = FileImages(catalog, Preprocessing(8), Preprocessing(20)).read(indices)
    names = [module.STATUS_NAMES[code] for code in read.status]
    assert names == ["ok", "too_large", "unreadable", "ok"]
    for array, size in zip(read.arrays, (8, 20), strict=True):
        expected = [naive.pixels(tree.images / paths[place], size) for place in (0, 1)]
        assert np.array_equal(array.numpy(), np.stack(expected))
    assert [place for place, _ in read.failures] == indices[1:3].tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_uploaded_ahead_are_those_of_the_cpu(catalog, all_samples):
    source, order = FileImages(catalog, Preprocessing(32)), np.arange(len(all_samples))
    wanted = batches(source, all_samples, order, 4, CPU)
    found = batches(source, all_samples, order, 4, torch.device("cuda"))
    for one, other in zip(wanted, found, strict=True):
        busy = torch.rand(2000, 2000, device="cuda")
        for _ in range(20):  # the upload of the next batch meets a busy device
            busy = (busy @ busy).clamp(0, 1)
        assert torch.equal(one.images, other.images.cpu())
        assert torch.equal(one.labels["b"], other.labels["b"].cpu())


def test_worker_count_follows_the_cores_unless_it_is_told(monkeypatch):
    for cores, expected in [(1, 0), (4, 0), (8, 8), (64, 64), (128, 64)]:
        monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _, n=cores: range(n))
        assert module.worker_count(-1) == expected
        assert module.worker_count(0) == 0 and module.worker_count(3) == 3
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):  # torchrun: its processes share the cores
        monkeypatch.setenv(name, "8")
    assert module.worker_count(-1) == 16


# ---- readers that fail, die, or are left early ----


class Squares:
    """A source whose item of slice [n] is n * n.

    It fails at `fail_at`. A worker that comes to 5 dies, until there are `num_deaths` folders.
    """

    decodes = True

    def __init__(self, fail_at=None, folder=Path(), num_deaths=0, size=2):
        self.fail_at, self.folder, self.num_deaths, self.size = fail_at, folder, num_deaths, size
        self.num_read = 0

    def read(self, indices):
        (place,) = indices
        self.num_read += 1
        if place == self.fail_at:
            raise RuntimeError("the disk is gone")
        if place == 5 and multiprocessing.parent_process() is not None:
            for death in range(self.num_deaths):
                try:
                    (self.folder / str(death)).mkdir()
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        array = torch.full((self.size,), float(place * place))
        return Decoded((array,), np.zeros(1, np.uint8), [])


def slices(num):
    return [np.array([place]) for place in range(num)]


def values(items):
    return [int(item.arrays[0][0]) for item in items]


def decoding_threads():
    return [t for t in threading.enumerate() if t.name.startswith("decode")]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_what_goes_wrong_in_the_reader_is_raised_and_not_tried_again(num_workers, capfd):
    reader = read_ahead(Squares(fail_at=2), slices(5), num_workers)
    assert values([next(reader), next(reader)]) == [0, 1]
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(reader)
    assert "failed" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("num_deaths", "words"),
    [(1, ["1 workers continue"]), (9, ["1 workers continue", "a thread of this process"])],
)
def test_a_worker_that_dies_is_replaced_by_fewer(tmp_path, capfd, num_deaths, words):
    source = Squares(folder=tmp_path, num_deaths=num_deaths)
    before = signal.getsignal(signal.SIGCHLD)
    found = values(read_ahead(source, slices(12), 2))
    assert found == [place * place for place in range(12)]
    said = [line for line in capfd.readouterr().err.splitlines() if "process failed" in line]
    assert len(said) == len(words) == len(list(tmp_path.iterdir()))
    assert all(word in line for word, line in zip(words, said, strict=True))
    assert len(multiprocessing.active_children()) == 2 - len(words), "they wait for the next pass"
    module._waiting.clear()
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGCHLD) == before  # torch's own would raise anywhere
    again = values(read_ahead(source, slices(12), 2))
    assert again == found and capfd.readouterr().err == "", "as few as were left begin"


def test_workers_stay_for_the_next_pass_over_their_source_and_for_no_other():
    def children():
        return {child.pid for child in multiprocessing.active_children()}

    source, other, random = Squares(), Squares(), torch.get_rng_state()
    assert values(read_ahead(source, slices(12), 2)) == [place * place for place in range(12)]
    before = children()
    assert values(read_ahead(source, slices(9)[3:], 2)) == [9, 16, 25, 36, 49, 64]
    assert list(read_ahead(source, [], 2)) == []
    assert children() == before and len(before) == 2
    assert values(read_ahead(other, slices(4), 2)) == [0, 1, 4, 9]
    assert len(children()) == 2 and not children() & before
    assert torch.equal(torch.get_rng_state(), random)
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    assert values(read_ahead(other, slices(4), 2)) == [0, 1, 4, 9]


def test_the_death_of_a_worker_is_noticed_outside_the_main_thread_too(tmp_path, capfd):
    source, found = Squares(folder=tmp_path, num_deaths=1), []
    thread = threading.Thread(target=lambda: found.extend(read_ahead(source, slices(12), 2)))
    thread.start()
    thread.join()
    assert values(found) == [place * place for place in range(12)]
    assert "1 workers continue" in capfd.readouterr().err


SMALL_MEMORY = """
from tests.data.test_loading import Squares, read_ahead, slices, values
if __name__ == "__main__":
    print(values(read_ahead(Squares(size=500_000), slices(9), 4)))
"""


def may_mount():
    """Tell whether a process here may have a /dev/shm of its own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="needs the right to mount a small /dev/shm")
def test_too_small_a_shared_memory_is_said_and_does_without_workers():
    """Torch's own hand-over would wait for ever: its queue drops what finds no room."""
    command = 'mount -t tmpfs -o size=3m tmpfs /dev/shm && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, sys.executable, SMALL_MEMORY],
        capture_output=True,
        text=True,
        env={**os.environ, **scripts.ENVIRONMENT},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0, 1, 4, 9, 16, 25, 36, 49, 64]\n"
    assert "No space left on device" in done.stderr and "--shm-size" in done.stderr
    assert "2 workers continue" in done.stderr and "Traceback" not in done.stderr


def test_a_consumer_that_leaves_early_takes_the_reader_with_it(catalog, all_samples):
    source = Squares()
    reader = read_ahead(source, slices(10_000), 0)
    next(reader)
    assert len(decoding_threads()) == 1
    begun = time.monotonic()
    reader.close()
    assert not decoding_threads()
    assert time.monotonic() - begun < 20 and source.num_read < 10
    for num_workers in (0, 1):
        images = FileImages(catalog, Preprocessing(8))
        for _ in batches(images, all_samples, np.arange(100), 2, CPU, num_workers=num_workers):
            break
        assert not decoding_threads() and not multiprocessing.active_children()


def test_a_thread_that_is_left_early_closes_what_it_reads():
    closed = threading.Event()

    def items():
        try:
            yield from range(1, 1000)
        finally:
            closed.set()

    reader = module.in_thread(items(), 2)
    assert [next(reader), next(reader)] == [1, 2] and not closed.is_set()
    reader.close()
    assert closed.is_set() and not decoding_threads()
