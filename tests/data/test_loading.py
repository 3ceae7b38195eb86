import multiprocessing
import threading
import time

import numpy as np
import pytest
import torch

from petface import devices
from petface.data import loading as module
from petface.data.images import Preprocessing
from petface.data.loading import Decoded, FileImages, Samples, batches, even_slices, read_ahead
from petface.data.sources.petface import scan
from tests import naive
from tests.conftest import BOMB, EMPTY, TRUNCATED

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def catalog(tree):
    return scan(tree.images).catalog


def samples_of(places):
    """Labels that say which image they belong to, one of them unknown."""
    return Samples(places, {"a": places * 2, "b": np.where(places % 3, places, -1)}, places % 2 > 0)


@pytest.fixture(scope="module")
def all_samples(catalog):
    return samples_of(np.arange(len(catalog)))


@pytest.mark.parametrize("num", [0, 1, 7, 8, 9, 63, 64, 65, 1000])
@pytest.mark.parametrize("batch_size", [1, 2, 8, 64])
def test_slices_are_few_full_and_even(num, batch_size):
    order = np.random.default_rng(num).permutation(num)
    slices = even_slices(order, batch_size)
    sizes = [len(part) for part in slices]
    assert len(slices) == (num + batch_size - 1) // batch_size
    assert all(0 < size <= batch_size for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert [i for part in slices for i in part] == order.tolist()


def test_batches_are_the_naive_pixels_and_labels_in_the_order_given(tree, catalog, all_samples):
    order = np.random.default_rng(1).permutation(len(catalog))[:40]
    paths = naive.photos(tree.images)
    bad = {paths.index(name) for name in (TRUNCATED, BOMB, EMPTY)}
    order = np.concatenate([order, np.array(sorted(bad))])  # each of them at least once
    seen, failed, is_tail = [], [], []
    source = FileImages(catalog, Preprocessing(24))
    for step, batch in enumerate(batches(source, all_samples, order, 16, CPU)):
        assert batch.step == step
        assert batch.images.dtype == torch.uint8 and batch.images.shape[1:] == (3, 24, 24)
        assert all(label.dtype == torch.int64 for label in batch.labels.values())
        for place, image in zip(batch.positions.tolist(), batch.images, strict=True):
            expected = naive.pixels(tree.images / paths[place], 24)
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
        assert batch.labels["a"].tolist() == (batch.positions * 2).tolist()
        assert batch.labels["b"].tolist() == [p if p % 3 else -1 for p in batch.positions]
        is_tail += batch.is_tail.tolist()
        seen += batch.positions.tolist()
        failed += batch.failures
    assert seen == [place for place in order.tolist() if place not in bad]
    assert is_tail == [place % 2 > 0 for place in seen]
    assert {place for place, _ in failed} == bad
    assert all(paths[place] in message for place, message in failed)


def test_an_order_may_repeat_images_and_places_in_a_part_are_not_places_in_the_catalog(catalog):
    places = np.array([20, 21, 22])
    samples = samples_of(places)
    order = np.array([2, 0, 2, 2, 1])
    source = FileImages(catalog, Preprocessing(8))
    (batch,) = batches(source, samples, order, 64, CPU)
    assert batch.positions.tolist() == order.tolist()
    assert batch.labels["a"].tolist() == [44, 40, 44, 44, 42]
    expected = source.read(places[order]).arrays[0]
    assert torch.equal(batch.images, expected.permute(0, 3, 1, 2))


@pytest.mark.parametrize("first", [1, 3, 5, 6])
def test_a_later_first_step_gives_the_rest_of_the_same_batches(catalog, all_samples, first):
    order = np.random.default_rng(2).permutation(45)
    source = FileImages(catalog, Preprocessing(8))
    whole = list(batches(source, all_samples, order, 8, CPU))
    rest = list(batches(source, all_samples, order, 8, CPU, first_step=first))
    assert len(whole) == 6 and [b.step for b in rest] == list(range(first, 6))
    for one, other in zip(whole[first:], rest, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.positions.tolist() == other.positions.tolist()


def test_worker_processes_give_the_same_batches(catalog, all_samples):
    order = np.arange(len(catalog))[:60]
    source = FileImages(catalog, Preprocessing(16))
    alone = list(batches(source, all_samples, order, 16, CPU, num_workers=0))
    helped = list(batches(source, all_samples, order, 16, CPU, num_workers=2))
    assert sum(len(b.failures) for b in alone) > 0
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.positions.tolist() == other.positions.tolist()
        assert one.failures == other.failures
        assert one.labels["b"].tolist() == other.labels["b"].tolist()


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


class Slow:
    """A source that never ends by itself and counts what was asked of it."""

    decodes = True

    def __init__(self, fail_at=None):
        self.num_read, self.fail_at = 0, fail_at

    def read(self, indices):
        if self.num_read == self.fail_at:
            raise OSError("the disk is gone")
        self.num_read += 1
        return Decoded((torch.zeros(len(indices), 2, 2, 3),), np.zeros(len(indices), np.uint8), [])


def decoding_threads():
    return [thread for thread in threading.enumerate() if thread.name == "decode"]


def test_a_consumer_that_leaves_early_takes_the_reader_with_it():
    source, slices = Slow(), [np.arange(2)] * 10_000
    reader = read_ahead(source, slices, 0, depth=3)
    next(reader)
    assert len(decoding_threads()) == 1
    begun = time.monotonic()
    reader.close()
    assert not decoding_threads()
    assert time.monotonic() - begun < 20 and source.num_read < 10


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


def test_leaving_a_loop_over_batches_ends_the_reader_too(catalog, all_samples):
    source = FileImages(catalog, Preprocessing(8))
    for _ in batches(source, all_samples, np.arange(100), 2, CPU):
        break
    assert not decoding_threads()


def test_leaving_worker_processes_early_does_not_hang(catalog, all_samples):
    source = FileImages(catalog, Preprocessing(8))
    for _ in batches(source, all_samples, np.arange(100), 2, CPU, num_workers=1):
        break
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_goes_wrong_in_the_reader_is_raised_in_the_consumer(num_workers):
    reader = read_ahead(Slow(fail_at=2), [np.arange(2)] * 5, num_workers)
    next(reader), next(reader)
    with pytest.raises(OSError, match="the disk is gone"):
        next(reader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_nothing_to_read_is_no_batch(num_workers, catalog, all_samples):
    source = FileImages(catalog, Preprocessing(8))
    empty = np.array([], dtype=np.int64)
    assert list(batches(source, all_samples, empty, 8, CPU, num_workers=num_workers)) == []


def test_worker_count_follows_the_cores_unless_it_is_told(monkeypatch):
    for cores, expected in [(1, 0), (4, 0), (8, 8), (64, 16)]:
        monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _, n=cores: range(n))
        assert module.worker_count(-1) == expected
        assert module.worker_count(0) == 0 and module.worker_count(3) == 3
