"""What clients do wrong, on the real server: each gets its answer, the others theirs."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from tests.serving.made_server import form, photo, post, until
from tests.tools.test_serve import served

QUEUE = 4


@pytest.fixture(scope="module")
def server(stage1_run, stage2_run, tmp_path_factory):
    flags = [
        "--stage1-checkpoint", stage1_run.folder / "best.pt",
        "--stage2-folder", stage2_run.folder, "--max-queue", QUEUE, "--max-body-mb", 1,
        "--body-timeout-s", 1, "--head-timeout-s", 1, "--max-pixels-per-photo", 20_000_000,
        "--max-pixels-at-once", 60_000_000,
    ]  # fmt: skip
    with served(tmp_path_factory.mktemp("serve"), *flags) as made:
        yield made
        assert "Traceback" not in made.log.read_text()


@pytest.fixture(autouse=True)
def stays_healthy(server):
    """After each fault nothing is left behind, and a photo is answered as before."""
    yield
    until(lambda: b'"photos_waiting":0' in server.get("/health"))
    until(lambda: b"petface_upload_bytes 0.0" in server.get("/metrics"))
    assert server.send(post("/predict", form(photo()))).code == 200


def resident_bytes(server, of: str = "VmRSS") -> int:
    """What the server has in memory; `of="VmHWM"`: the most that it ever had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split(f"{of}:")[1].split()[0]) * 1024


@contextmanager
def watched(server):
    """Ask for the server's health all the time; every answer must be good."""
    is_over, healthy = threading.Event(), []

    def watch():
        while not is_over.is_set():
            healthy.append(server.get("/health"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
    assert len(healthy) > 3 and all(b'"ok"' in answer for answer in healthy)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [("RGBA", "PNG", {}), ("LA", "PNG", {}), ("RGB", "JPEG", {"progressive": True}),
     ("RGB", "WEBP", {"lossless": True, "quality": 0, "method": 0})],
)  # fmt: skip
def test_small_bodies_with_huge_pictures(server, mode, kind, options):
    """Few are decoded at a time, others wait or are told to; then the memory is there again."""
    stream = io.BytesIO()
    Image.new(mode, (4_400, 4_400)).save(stream, kind, **options)
    huge = post("/predict", form(stream.getvalue()))
    assert len(huge) < 400_000
    server.send(huge)
    before = resident_bytes(server)
    with ThreadPoolExecutor(24) as pool, watched(server):
        codes = list(pool.map(lambda _: server.send(huge).code, range(24)))
    assert set(codes) == {200, 503} and codes.count(200) >= 3
    assert resident_bytes(server, "VmHWM") < before + 3 * 20 * 4_400**2
    until(lambda: resident_bytes(server) < before * 1.05)


def test_a_thousand_at_once_beyond_the_queue(server):
    """200 or 503, nothing else; meanwhile the health check answers, and memory stays flat."""
    data = post("/predict", form(photo(side=300)))
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(lambda _: server.send(data), range(100)))  # as large as it will be
        before = resident_bytes(server)
        with watched(server):
            codes = list(pool.map(lambda _: server.send(data).code, range(1000)))
    assert set(codes) == {200, 503}
    assert resident_bytes(server) < before + 50_000_000


def test_idle_and_slow_clients_keep_nobody_from_being_answered(server):
    idle = [server.client() for _ in range(1000)]
    slow = [server.client() for _ in range(10 * QUEUE)]
    for client in slow:
        client.send(post("/predict", form(photo()))[:-40])
    assert b'"ok"' in server.get("/health")
    assert server.send(post("/predict", form(photo()))).code == 200
    for client in [*idle, *slow]:
        assert client in idle or client.reply().code == 408
        assert client.is_closed()
        client.socket.close()
