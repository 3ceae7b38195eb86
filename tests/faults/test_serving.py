"""What clients do wrong, on the real server: each gets its answer, the others theirs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serving.made_server import form, photo, post, until
from tests.tools.test_serve import served

QUEUE = 4


@pytest.fixture(scope="module")
def server(stage1_run, stage2_run, tmp_path_factory):
    flags = [
        "--stage1-checkpoint", stage1_run.folder / "best.pt",
        "--stage2-folder", stage2_run.folder, "--max-queue", QUEUE, "--max-body-mb", 1,
        "--body-timeout-s", 1, "--head-timeout-s", 1, "--max-pixels-per-photo", 1_000_000,
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


def resident_bytes(server) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


def test_a_thousand_at_once_beyond_the_queue(server):
    """200 or 503, nothing else; meanwhile the health check answers, and memory stays flat."""
    data = post("/predict", form(photo(side=300)))
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(lambda _: server.send(data), range(100)))  # as large as it will be
        before = resident_bytes(server)
        is_over, healthy = threading.Event(), []

        def watch():
            while not is_over.is_set():
                healthy.append(server.get("/health"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        codes = list(pool.map(lambda _: server.send(data).code, range(1000)))
        is_over.set()
        watcher.join()
    assert set(codes) == {200, 503}
    assert len(healthy) > 3 and all(b'"ok"' in answer for answer in healthy)
    assert resident_bytes(server) < before + 50_000_000


def test_a_thousand_idle_connections_are_closed_while_others_are_answered(server):
    idle = [server.client() for _ in range(1000)]
    assert b'"ok"' in server.get("/health")
    assert server.send(post("/predict", form(photo()))).code == 200
    for client in idle:
        assert client.is_closed()
        client.socket.close()


def test_slow_clients_keep_nobody_from_being_answered(server):
    slow = [server.client() for _ in range(10 * QUEUE)]
    for client in slow:
        client.send(post("/predict", form(photo()))[:-40])
    assert server.send(post("/predict", form(photo()))).code == 200
    for client in slow:
        assert client.reply().code == 408
        assert client.is_closed()
        client.socket.close()
