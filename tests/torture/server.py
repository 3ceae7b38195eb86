"""A real server under load, under floods, then under the same load: as fast, and no larger.

python -m tests.torture.server PORT SECONDS [PHOTO...]    # a load of photos; of none: the floods
"""

from __future__ import annotations

import asyncio
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from tests import scripts
from tests.serving.made_server import TYPE, form, photo, post, until
from tests.tools.test_serve import Served, served
from tests.torture.fixtures import Workshop
from tests.torture.outcome import Outcome

MOST = {"cpu_ms": 1.3, "mb": 1.05, "handles": 1.1}  # of the second load, in parts of the first
MAX_HEALTH_S = 3.0  # floods, their clients and the server share a few cores
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
    bad_chunks = (b"zz\r\n", b"-5\r\n", b"3\r\nabcXX", b"F" * 20 + b"\r\n")
    for mode, width, height, kind in (  # the first three are refused, the others just pass
        ("L", 20_000, 20_000, "PNG"), ("1", 65_000, 900, "PNG"), ("P", 16_000, 16_000, "GIF"),
        ("RGBA", 7_000, 7_000, "PNG"), ("I;16", 20_000, 2_400, "PNG"),
        ("RGB", 7_000, 7_000, "JPEG"), ("RGB", 7_000, 7_000, "WEBP"),
    ):  # fmt: skip
        Image.new(mode, (width, height)).save(
            stream := io.BytesIO(), kind, progressive=True, method=0
        )
        huge.append(post("/predict", form(stream.getvalue())))
    return {
        "huge": Clients(32, {200, 413, 503}, huge),
        "slow heads": Clients(100, {0}, [_HEAD], 0.5),
        "slow bodies": Clients(100, {0, 408, 503}, [_ANNOUNCED + form(bytes(999))], 0.5),
        "idle": Clients(1000, {0}, [b""]),
        "bad chunks": Clients(8, {400, 503}, [_CHUNKED + bad for bad in bad_chunks]),
        "gone": Clients(8, {0, 503}, [_ANNOUNCED + form(bytes(2_000_000))[:-9]], 0.0, 0.1),
        "garbage": Clients(8, {0, 400}, [bytes(range(256)) * 9, b"\xff" * 3000]),
        "health": HEALTH,
    }


def torture_load(workshop: Workshop, seconds: float) -> list[Outcome]:
    """Load, flood and load a server of the undisturbed networks."""
    flags = ["--stage1-checkpoint", workshop.straight("stage1") / "best.pt"]
    flags += ["--stage2-folder", workshop.straight("stage2")]
    photos = sorted(workshop.data.glob("images/*/*/0*.png"))[:256]
    with served(workshop.scratch("served"), *flags) as server:
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
    with outcome.timed():
        command = [sys.executable, "-m", "tests.torture.server", server.port, seconds, *photos]
        found = json.loads(subprocess.check_output([*map(str, command)], cwd=scripts.REPOSITORY))
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

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*map(repeat, range(clients.num)))
    parts = statistics.quantiles(waits_s, n=20)
    found = {"per_s": len(waits_s) / seconds, "p50_s": parts[9], "p95_s": parts[18]}
    wrong = not codes.keys() <= clients.codes
    return {**found, "max_s": max(waits_s), "codes": codes, "wrong": wrong}


async def _all(port: int, seconds: float, photos: Sequence[str]) -> dict[str, Any]:
    data = [post("/predict", form(Path(name).read_bytes())) for name in photos]
    kinds = {"load": Clients(64, {200, 400}, data), "health": HEALTH} if photos else floods()
    found = await asyncio.gather(*(_go_on(port, seconds, kind) for kind in kinds.values()))
    num = sum(sum(one["codes"].values()) for one in found)
    return {"answers": num, **dict(zip(kinds, found, strict=True))}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_all(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))))
