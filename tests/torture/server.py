"""A real server under load, floods and the same load again; then beside evaluations, for long.

python -m tests.torture.server PORT SECONDS CLIENTS [PHOTO...]    # a load; of none: the floods
python -m tests.torture.server evaluate FLAGS_AS_JSON             # again and again
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests import scripts
from tests.serving.made_server import TYPE, form, photo, post, until
from tests.tools.test_serve import Served, served
from tests.torture.fixtures import Workshop
from tests.torture.fuzz import Outcome

MOST = {"cpu_ms": 1.3, "mb": 1.05, "handles": 1.1}  # of the second load, in parts of the first
MAX_HEALTH_S = 3.0  # floods, their clients and the server share a few cores
NUM_SAMPLES = 200
MAX_GROWTH_BYTES = 16_000_000  # of the floor, from the second quarter to the last; or 5 %
_HEAD = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TYPE}\r\n".encode()
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n--B\r\n\r\n"
_ANNOUNCED = _HEAD + b"Content-Length: 4000000\r\n\r\n"


class Clients(NamedTuple):
    """So many clients, the codes that are right (0: closed), and what they send in turn."""

    num: int
    codes: set[int]
    data: Sequence[bytes]
    pause_s: float = 0.0  # between two bytes behind the head
    leave_after_s: float = 60.0


HEALTH = Clients(1, {200}, [b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])


def floods() -> dict[str, Clients]:
    """Return what floods the server at the same time."""
    huge = []
    bad_chunks = (b"zz\r\n", b"-5\r\n", b"3\r\nabcXX", b"F" * 21 + b"\r\n")
    endless = _CHUNKED + b"F" * 20 + b"\r\n"  # h11 takes a length of 20 digits, and waits
    for mode, width, height, kind in (  # the first three are refused, the others just pass
        ("L", 20_000, 20_000, "PNG"), ("1", 65_000, 900, "PNG"), ("P", 16_000, 16_000, "GIF"),
        ("RGBA", 7_000, 7_000, "PNG"), ("I;16", 20_000, 2_400, "PNG"),
        ("RGB", 7_000, 7_000, "JPEG"), ("RGB", 7_000, 7_000, "WEBP"),
    ):  # fmt: skip
        stream = io.BytesIO()
        Image.new(mode, (width, height)).save(stream, kind, progressive=True, method=0)
        huge.append(post("/predict", form(stream.getvalue())))
    return {
        "huge": Clients(32, {200, 413, 503}, huge),
        "slow heads": Clients(100, {0}, [_HEAD], 0.5),
        "slow bodies": Clients(100, {0, 408, 503}, [_ANNOUNCED + form(bytes(999)), endless], 0.5),
        "idle": Clients(1000, {0}, [b""]),
        "bad chunks": Clients(8, {400, 503}, [_CHUNKED + bad for bad in bad_chunks]),
        "gone": Clients(8, {0, 503}, [_ANNOUNCED + form(bytes(2_000_000))[:-9]], 0.0, 0.1),
        "garbage": Clients(8, {0, 400}, [bytes(range(256)) * 9, b"\xff" * 3000]),
        "health": HEALTH,
    }


def _started(*words: object) -> subprocess.Popen[str]:
    """Start this module in a process of its own."""
    command = [sys.executable, "-u", "-m", "tests.torture.server", *map(str, words)]
    own = {"cwd": scripts.REPOSITORY, "env": {**os.environ, **scripts.ENVIRONMENT}}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **own)


# ---- Loads and floods ----


def torture_load(workshop: Workshop, seconds: float) -> list[Outcome]:
    """Load, flood and load a server of the undisturbed networks: it stays as fast and as small."""
    photos = sorted(workshop.data.glob("images/*/*/0*.png"))[:256]
    with served(workshop.scratch("served"), *workshop.models) as server:
        _row(server, "warm up", seconds / 4, photos)  # as large as it will be
        before, flood = _row(server, "load", seconds, photos), _row(server, "floods", seconds, [])
        after = _row(server, "load again", seconds, photos)
        if "Traceback" in (log := server.log.read_text()):
            flood.failures.append(log[log.index("Traceback") :][-600:])
    for name, most in MOST.items():
        if after.counts[name] > most * before.counts[name]:
            after.failures.append(f"{name}: {before.counts[name]:.1f} before the floods")
    return [before, flood, after]


def _row(server: Served, name: str, seconds: float, photos: Sequence[Path]) -> Outcome:
    """Let clients in a process of their own send photos, or floods, and judge what they say."""

    def metric(name: str) -> float:
        return float(server.get("/metrics").decode().partition(f"\n{name} ")[2].split("\n")[0])

    outcome, cpu_s = Outcome("server", name), metric("process_cpu_seconds_total")
    with outcome.timed(), _started(server.port, seconds, 64, *photos) as clients:
        found = json.loads(clients.communicate()[0])
    until(lambda: metric("petface_upload_bytes") == 0)
    time.sleep(3)  # it closes what is left
    server.send(post("/predict", form(photo(side=1200))))  # large: free memory is given back
    cpu_s, num = metric("process_cpu_seconds_total") - cpu_s, found.pop("answers")
    outcome.counts = {"cpu_ms": 1000 * cpu_s / num, "handles": metric("process_open_fds")}
    outcome.counts |= {"mb": metric("process_resident_memory_bytes") / 1e6, **found}
    outcome.failures = [f"{kind}: {v['codes']}" for kind, v in found.items() if v.pop("wrong")]
    if (longest := found["health"]["max_s"]) > MAX_HEALTH_S:
        outcome.failures.append(f"health took {longest} s")
    return outcome


async def _send(port: int, clients: Clients, data: bytes) -> int:
    """Send what is due in a connection of its own; return the code of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    at_once = data.find(b"\r\n\r\n") + 4 if clients.pause_s else len(data)
    writer.write(data[:at_once])

    async def drip() -> None:
        for byte in data[at_once:]:
            await asyncio.sleep(clients.pause_s)
            writer.write(bytes([byte]))

    dripping = asyncio.ensure_future(drip())
    try:
        async with asyncio.timeout(clients.leave_after_s):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length: ")[2].split(b"\r")[0]
            await (reader.readexactly(int(length)) if length else reader.read())
            return int(head.split()[1])
    except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        return 0
    finally:
        dripping.cancel()
        writer.transport.abort()


async def _go_on(port: int, seconds: float, clients: Clients) -> dict[str, Any]:
    """Let clients send again and again; return what came, and how long each waited."""
    waits_s, codes = [0.0, 0.0], dict.fromkeys(sorted(clients.codes), 0)

    async def repeat(number: int) -> None:
        while True:
            begun = time.monotonic()
            code = await _send(port, clients, clients.data[number % len(clients.data)])
            codes[code] = codes.get(code, 0) + 1
            waits_s.append(time.monotonic() - begun)
            number += clients.num
            await asyncio.sleep(0.02 * (clients.num < 64))

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*map(repeat, range(clients.num)))
    parts = statistics.quantiles(waits_s, n=20)
    found = {"per_s": len(waits_s) / seconds, "p50_s": parts[9], "p95_s": parts[18]}
    wrong = not codes.keys() <= clients.codes
    return {**found, "max_s": max(waits_s), "codes": codes, "wrong": wrong}


async def _all(port: int, seconds: float, num: int, photos: Sequence[str]) -> dict[str, Any]:
    data = []
    for number, name in enumerate(photos):
        path = "/predict" if num > 1 or number % 20 else "/explain?head=species"
        data.append(post(path, form(Path(name).read_bytes())))
    # 400: a photo that is broken on purpose
    kinds = {"load": Clients(num, {200, 400}, data), "health": HEALTH} if photos else floods()
    found = await asyncio.gather(*(_go_on(port, seconds, kind) for kind in kinds.values()))
    answers = sum(sum(one["codes"].values()) for one in found)
    return {"answers": answers, **dict(zip(kinds, found, strict=True))}


# ---- Memory over time ----


def torture_soak(workshop: Workshop, seconds: float) -> list[Outcome]:
    """Watch a process that evaluates and a server under a light load, at the same time."""
    begun, folder, data = time.monotonic(), workshop.scratch("soak"), workshop.data
    _, stage1, _, stage2 = workshop.models
    what = {"images_root": data / "images", "annotations_root": data / "annotations"}
    what |= {"stage1_checkpoint": stage1, "stage2_folder": stage2, "out_dir": folder / "out"}
    flags = json.dumps({name: str(path) for name, path in what.items()})
    photos = sorted(data.glob("images/*/*/*.png"))
    with served(folder, *workshop.models) as server, _started("evaluate", flags) as evaluator:
        try:
            evaluator.stdout.readline()  # after the first evaluation
            with _started(server.port, seconds, 1, *photos) as clients:
                outcomes = watch({"evaluation": evaluator, "server": server.process}, seconds)
                load = json.loads(clients.communicate()[0])["load"]
        finally:
            evaluator.kill()
        outcomes[0].counts |= {"evaluations": 1 + len(evaluator.stdout.readlines())}
    outcomes[1].counts |= {"photos": sum(load["codes"].values())}
    if load["wrong"]:
        outcomes[1].failures.append(f"answers: {load['codes']}")
    for outcome in outcomes:
        outcome.seconds = time.monotonic() - begun
    return outcomes


def watch(processes: dict[str, subprocess.Popen[str]], seconds: float) -> list[Outcome]:
    """Take samples of processes, and judge them."""
    taken: dict[str, list[tuple[float, int, int]]] = {name: [] for name in processes}
    start = time.monotonic()
    for number in range(NUM_SAMPLES):
        time.sleep(max(0.0, start + seconds * (number + 1) / NUM_SAMPLES - time.monotonic()))
        for name, process in processes.items():
            with contextlib.suppress(OSError):  # it is gone
                own, now = Path(f"/proc/{process.pid}"), time.monotonic() - start
                pages = int((own / "statm").read_text().split()[1])
                num_handles = len(list((own / "fd").iterdir()))
                taken[name].append((now, pages * os.sysconf("SC_PAGE_SIZE"), num_handles))
    outcomes = [Outcome("soak", name, *judge(np.array(own))) for name, own in taken.items()]
    for outcome, process in zip(outcomes, processes.values(), strict=True):
        if process.poll() is not None:
            outcome.failures.append(f"it ended with code {process.returncode}")
    return outcomes


def judge(samples: np.ndarray) -> tuple[dict[str, object], list[str]]:
    """Compare the second quarter of (N, 3) samples with the last; the first is for warming up.

    Columns: seconds, bytes of memory, open handles. Memory rises and falls with each evaluation,
    so its floor, above a tenth of the samples, is what tells a leak.
    """
    quarter = len(samples) // 4
    if quarter < 2:
        return {}, [f"only {len(samples)} samples"]
    halves = samples[quarter : 2 * quarter], samples[-quarter:]
    before, after = (np.quantile(part[:, 1], 0.1) for part in halves)
    handles = [np.median(part[:, 2]) for part in halves]
    slope = np.polyfit(samples[quarter:, 0] / 3600, samples[quarter:, 1], 1)[0]
    failures = []
    if after - before > max(MAX_GROWTH_BYTES, 0.05 * before):
        failures.append(f"memory grew from {before / 1e6:.0f} to {after / 1e6:.0f} MB")
    if handles[1] - handles[0] > 2:
        failures.append(f"open handles grew from {handles[0]:.0f} to {handles[1]:.0f}")
    counts: dict[str, object] = {"mb": f"{before / 1e6:.0f} -> {after / 1e6:.0f}"}
    counts |= {"handles": f"{handles[0]:.0f} -> {handles[1]:.0f}", "mb_per_hour": slope / 1e6}
    return counts, failures


def _evaluate_on(flags: dict[str, str]) -> None:
    """Evaluate again and again; say after each how often it was.

    What the C library keeps free between two of them is given back, so that what grows is in use.
    """
    from inference_engine import evaluate_full_dataset

    how = {"device": "cpu", "precision": "fp32", "num_workers": 0, "force": True}
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)  # glibc has it
    for number in itertools.count(1):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            evaluate_full_dataset(**flags, **how)
        trim(0)
        print(f"evaluations: {number}", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "evaluate":
        _evaluate_on(json.loads(sys.argv[2]))
    _port, _seconds, _num, *_photos = sys.argv[1:]
    print(json.dumps(asyncio.run(_all(int(_port), float(_seconds), int(_num), _photos))))
