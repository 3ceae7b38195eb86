import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch

from petface.data import ahead
from petface.data.ahead import in_thread, in_workers
from tests import scripts


def squares(part):
    return torch.full((2,), part * part)


def itself(tensor):
    return [tensor]


def dies_in(folder, number, part):
    """Make the square of a part; the process that comes to 5 first dies, `number` times in all."""
    if part == 5 and multiprocessing.parent_process() is not None:
        for time in range(number):
            try:
                (folder / str(time)).mkdir()
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
    return squares(part)


def fails(_part):
    raise RuntimeError("the disk is gone")


@pytest.fixture(autouse=True)
def _nothing_has_died(monkeypatch):
    monkeypatch.setattr(ahead, "_num_deaths", 0)


def values(items):
    return [int(item[0]) for item in items]


def test_workers_keep_the_order():
    assert values(in_workers(squares, range(20), 2, 3, itself)) == [
        part * part for part in range(20)
    ]
    assert values(in_workers(squares, [], 2, 3, itself)) == []
    assert values(in_workers(squares, [7], 2, 3, itself)) == [49]  # more workers than parts


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_goes_wrong_in_the_work_is_raised_and_not_tried_again(num_workers, capfd):
    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(in_workers(fails, range(3), num_workers, 2, itself))
    assert "failed" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("num_workers", "num_deaths", "words"),
    [(2, 1, ["1 go on"]), (2, 9, ["1 go on", "a thread of this process goes on"])],
)
def test_a_worker_that_dies_is_replaced_by_fewer(tmp_path, capfd, num_workers, num_deaths, words):
    work = functools.partial(dies_in, tmp_path, num_deaths)
    before = signal.getsignal(signal.SIGCHLD)
    found = values(in_workers(work, range(12), num_workers, 2, itself))
    assert found == [part * part for part in range(12)]
    said = [
        line for line in capfd.readouterr().err.splitlines() if "loading process failed" in line
    ]
    assert len(said) == len(words) == len(list(tmp_path.iterdir()))
    assert all(word in line for word, line in zip(words, said, strict=True))
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGCHLD) == before  # torch's own would raise anywhere
    again = values(in_workers(work, range(12), num_workers, 2, itself))
    assert again == found and capfd.readouterr().err == "", "as few as were left begin"


def test_the_death_of_a_worker_is_noticed_outside_the_main_thread_too(tmp_path, capfd):
    work, found = functools.partial(dies_in, tmp_path, 1), []
    thread = threading.Thread(
        target=lambda: found.extend(in_workers(work, range(12), 2, 2, itself))
    )
    thread.start()
    thread.join()
    assert values(found) == [part * part for part in range(12)]
    assert "1 go on" in capfd.readouterr().err


def two_megabytes(part):
    return torch.full((500_000,), float(part))


SMALL_MEMORY = """
from tests.data.test_ahead import in_workers, itself, two_megabytes, values
if __name__ == "__main__":
    print(values(in_workers(two_megabytes, range(9), 4, 3, itself)))
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
    assert done.stdout == "[0, 1, 2, 3, 4, 5, 6, 7, 8]\n"
    assert "No space left on device" in done.stderr and "--shm-size" in done.stderr
    assert "2 go on" in done.stderr and "Traceback" not in done.stderr


def test_a_thread_keeps_the_order_and_closes_what_it_reads():
    closed = threading.Event()

    def items():
        try:
            yield from range(1000)
        finally:
            closed.set()

    assert list(in_thread(items(), 2)) == list(range(1000))
    assert closed.is_set()
    closed.clear()
    reader = in_thread(items(), 2)
    assert [next(reader), next(reader)] == [0, 1]
    reader.close()
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "decode"]
