"""Measure the server under load: requests per second, latency, memory, and its health check.

    python -m tools.bench_server --config configs/bench_server/demo.toml
    python -m tools.bench_server --photos data/PetFace/images/cat --seconds 10

Starts `python -m tools.serve` twice, with micro-batches and with each photo alone, and lets CLIENTS
connections ask again and again for SECONDS, while another process asks for /health ten times a
second. Prints the figures and their ratio; results/serving_<hardware>.csv holds them. The clients
are one process on the same machine, and take their part of its cores from the server.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petface import files
from petface.data.images import IMAGE_SUFFIXES
from petface.errors import UserError, run_script
from petface.settings import Positive, PositiveFloat, read_settings
from tools.hardware import hardware_name

# ---- What answers ----
STAGE1_CHECKPOINT: str = "runs/cnn_folder_224_raw_aug/best.pt"  # as in tools.serve
STAGE2_FOLDER: str = "runs/stage2"
DEVICE: str = "auto"
MAX_BATCH: Positive = 64  # photos per batch, against 1
SERVER_FLAGS: tuple[str, ...] = ()  # more for tools.serve: --server-flags=--niceness,0

# ---- Who asks ----
PHOTOS: str = "data/PetFace/images"  # a folder; photos below it are sent in turn
NUM_PHOTOS: Positive = 200  # at most, spread evenly over the folder
CLIENTS: Positive = 64  # connections, each with one request at a time
SECONDS: PositiveFloat = 60.0  # measured, per server; before it a tenth as warm-up
HEALTH_EVERY_S: PositiveFloat = 0.1
OUT: str = ""  # "" = results/serving_<hardware>.csv

_COLUMNS = ("max_batch", "clients", "seconds", "requests", "req_per_s", "p50_ms", "p95_ms",
            "p99_ms", "mean_batch", "cpu_ms_per_req", "health_p50_ms", "health_p99_ms",
            "health_max_ms", "rss_half_mib", "rss_end_mib", "rss_growth", "statuses")  # fmt: skip


@dataclass
class Load:
    """What the clients have seen."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


def request_of(photo: bytes) -> bytes:
    """Lay a photo out as a whole HTTP request."""
    head = b'--B\r\nContent-Disposition: form-data; name="photo"; filename="p"\r\n\r\n'
    body = head + photo + b"\r\n--B--\r\n"
    lines = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return lines.encode() + body


async def ask_again_and_again(
    port: int, requests: Iterator[bytes], load: Load, end_s: float
) -> None:
    """Be one client with one connection, until a time of the monotonic clock."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < end_s:
        start_s = time.monotonic()
        writer.write(next(requests))
        head = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head)
        await reader.readexactly(int(found[1]) if found else 0)
        load.latencies_s.append(time.monotonic() - start_s)
        load.statuses[int(head[9:12])] += 1
    writer.close()


def ask_all(port: int, requests: Sequence[bytes], num_clients: int, seconds: float) -> Load:
    """Be all clients for `seconds`."""

    async def run() -> Load:
        load, turn = Load(), itertools.cycle(requests)
        end_s = time.monotonic() + seconds
        await asyncio.gather(
            *(ask_again_and_again(port, turn, load, end_s) for _ in range(num_clients))
        )
        return load

    return asyncio.run(run())


def ask_for_health(port: int, every_s: float, seconds: float, results: Any) -> None:
    """Ask for /health on a new connection each time; send the seconds each took."""
    taken = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        start_s = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b""
            while data := client.recv(65536):
                answer += data
        assert answer.startswith(b"HTTP/1.1 200"), answer
        taken.append(time.monotonic() - start_s)
        time.sleep(max(0.0, start_s + every_s - time.monotonic()))
    results.send(taken)


@contextmanager
def server(flags: Sequence[object], log: Path) -> Iterator[tuple[int, int]]:
    """Run a server; give its port and process number."""
    command = [sys.executable, "-m", "tools.serve", "--port", "0", *map(str, flags)]
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True)
    assert process.stdout is not None
    try:
        ready = next((line for line in process.stdout if line.startswith("ready: ")), None)
        if ready is None:
            raise UserError(f"the server did not start: {log.read_text(encoding='utf-8').strip()}")
        yield int(ready.rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        process.wait(30)


def figures(port: int) -> dict[str, float]:
    """Read the server's own figures."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        text = b""
        while data := client.recv(65536):
            text += data
    names = "petface_batch_photos_sum|petface_batch_photos_count|process_cpu_seconds_total"
    found = re.findall(rf"^({names}) (\S+)$", text.decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def resident_mib(process: int) -> float:
    """Read the memory that a process has in use (Linux)."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def measure(
    flags: Sequence[object],
    requests: Sequence[bytes],
    *,
    max_batch: int,
    num_clients: int,
    seconds: float,
    health_every_s: float,
) -> dict[str, object]:
    """Measure one server; give a row of `_COLUMNS`."""
    with (
        tempfile.TemporaryDirectory() as folder,
        server([*flags, "--max-batch", max_batch], Path(folder, "log")) as (port, process),
    ):
        ask_all(port, requests, num_clients, seconds / 10)
        before = figures(port)
        results, end = multiprocessing.Pipe(duplex=False)
        arguments = (port, health_every_s, seconds, end)
        prober = multiprocessing.get_context("fork").Process(target=ask_for_health, args=arguments)
        prober.start()
        start_s = time.monotonic()
        first = ask_all(port, requests, num_clients, seconds / 2)
        half_mib = resident_mib(process)
        second = ask_all(port, requests, num_clients, seconds / 2)
        took_s, end_mib = time.monotonic() - start_s, resident_mib(process)
        health_s = results.recv()
        prober.join()
        after = figures(port)
    latencies_s = first.latencies_s + second.latencies_s
    statuses = first.statuses + second.statuses
    grown = {name: after[name] - before[name] for name in after}
    p50, p95, p99 = (float(p) * 1000 for p in np.percentile(latencies_s, (50, 95, 99)))
    num_batches = max(1.0, grown["petface_batch_photos_count"])
    return {
        "max_batch": max_batch,
        "clients": num_clients,
        "seconds": round(took_s, 1),
        "requests": len(latencies_s),
        "req_per_s": round(len(latencies_s) / took_s, 1),
        "p50_ms": round(p50, 1),
        "p95_ms": round(p95, 1),
        "p99_ms": round(p99, 1),
        "mean_batch": round(grown["petface_batch_photos_sum"] / num_batches, 1),
        "cpu_ms_per_req": round(grown["process_cpu_seconds_total"] / len(latencies_s) * 1000, 1),
        "health_p50_ms": round(statistics.median(health_s) * 1000, 1),
        "health_p99_ms": round(float(np.percentile(health_s, 99)) * 1000, 1),
        "health_max_ms": round(max(health_s) * 1000, 1),
        "rss_half_mib": round(half_mib),
        "rss_end_mib": round(end_mib),
        "rss_growth": round(end_mib / half_mib - 1, 4),
        "statuses": " ".join(f"{code}:{num}" for code, num in sorted(statuses.items())),
    }


def some_photos(folder: Path, num: int) -> list[bytes]:
    """Read photos below a folder, spread evenly over it."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise UserError(f"PHOTOS {folder}: there is no photo below it")
    places = np.linspace(0, len(found) - 1, min(num, len(found))).astype(int)
    return [found[place].read_bytes() for place in places]


def main() -> None:
    s = read_settings(sys.modules[__name__])
    requests = [request_of(photo) for photo in some_photos(Path(s.PHOTOS), s.NUM_PHOTOS)]
    flags = ["--stage1-checkpoint", s.STAGE1_CHECKPOINT, "--stage2-folder", s.STAGE2_FOLDER,
             "--device", s.DEVICE, *s.SERVER_FLAGS]  # fmt: skip
    rows = []
    for max_batch in (s.MAX_BATCH, 1):
        row = measure(
            flags,
            requests,
            max_batch=max_batch,
            num_clients=s.CLIENTS,
            seconds=s.SECONDS,
            health_every_s=s.HEALTH_EVERY_S,
        )
        print("\n".join(f"{name}: {value}" for name, value in row.items()) + "\n", flush=True)
        rows.append(row)
    device = "cuda" if s.DEVICE != "cpu" and torch.cuda.is_available() else "cpu"
    out = Path(s.OUT or f"results/serving_{hardware_name(torch.device(device))}.csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_csv(out, _COLUMNS, [[row[name] for name in _COLUMNS] for row in rows])
    ratio = float(str(rows[0]["req_per_s"])) / float(str(rows[1]["req_per_s"]))
    print(f"ratio_to_single: {ratio:.2f}\nresults: {out}")


if __name__ == "__main__":
    run_script(main)
