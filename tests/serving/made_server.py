"""A fake engine, and a real server around it that tests talk to over sockets."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from petface.data import images
from petface.data.images import ImageError, Preprocessing
from petface.errors import UserError
from petface.identity.embed import Embedder
from petface.inference.stages import Photo
from petface.inference.two_stage import refusal
from petface.serving.app import Service, make_app
from petface.serving.requests import Limits
from petface.serving.server import bind, make_server

RULE = Preprocessing(8)
CLASSES = ("red", "green", "blue")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)  # how a phone's photo begins
PATIENCE_S = 30.0  # for what takes milliseconds on a machine that is not busy


class FakeEngine:
    """Names the strongest colour channel; 'closed' until `gate` is set, and keeps what it did."""

    can_explain = True

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.poison = None  # a photo whose first pixel has this value breaks its batch
        self.num_batches = self.num_prepared = 0

    def prepare(self, image: Any, max_pixels: int | None = None, rules: Any = ()) -> Photo:
        photo = Photo(images.decode(image, max_pixels))
        for rule in rules or [RULE]:
            photo.at(rule)
        photo.source = None
        self.num_prepared += 1
        return photo

    def answer(self, photos: Sequence[Photo], topk: int = 3) -> list[dict[str, Any]]:
        self.num_batches += 1
        assert self.gate.wait(PATIENCE_S)
        self.batches.append(len(photos))
        return [self._answer(photo, topk) for photo in photos]

    def answer_animal(self, photos: Sequence[Photo | ImageError], topk: int = 3) -> dict[str, Any]:
        good = [photo for photo in photos if isinstance(photo, Photo)]
        answers = iter(self.answer(good, topk))
        first = self._answer(good[0], topk)
        del first["image"]
        return {
            "photos": [refusal(p) if isinstance(p, ImageError) else next(answers) for p in photos],
            "animal": {**first, "num_photos": len(good)},
        }

    def explain(self, image: Photo, *, species: Any, head: str, label: Any) -> bytes:
        del species, label
        if head not in ("species", "breed"):
            raise UserError(f"unknown head {head!r}; known: species")
        return png(image.at(RULE))

    def describe(self) -> dict[str, Any]:
        network = {"sha256": "0123456789abcdef" * 4, "preprocessing": {"resize": "stretch"}}
        network |= {"num_animals": 720, "made_up": True}
        return {
            "engine": "fake",
            "precision": "fp32",
            "can_explain": self.can_explain,
            "stage1": {**network, "heads": {"species": list(CLASSES)}},
            "specialists": {"cat": {**network, "heads": {"breed": ["Siamese", "Sphynx"]}}},
            "no_specialist": list(CLASSES),
        }

    def _answer(self, photo: Photo, topk: int) -> dict[str, Any]:
        pixels = photo.at(RULE)
        if self.poison is not None and int(pixels[0, 0, 0]) == self.poison:
            raise RuntimeError("poison")
        share = pixels.reshape(-1, 3).sum(axis=0) + 1.0
        share = share / share.sum()
        best = sorted(zip(CLASSES, share.tolist(), strict=True), key=lambda pair: -pair[1])[:topk]
        entry = {"label": best[0][0], "topk": best, "sure": None, "answer": best[0][0]}
        return {"image": None, "status": "no_specialist", "species": entry, "attributes": {}}


class Colours:
    """The identity network of the fakes: the direction of a photo's mean colour; black has none."""

    preprocessing = Preprocessing(4)

    def answer_pixels(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        colour = pixels.float().mean(dim=(1, 2))
        return (colour / colour.norm(dim=1, keepdim=True),)


EMBEDDER = Embedder(Colours(), "", "ab" * 32, threshold=0.9, false_match_rate=0.01)


def png(pixels: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def photo(colour: Sequence[int] = (200, 20, 10), side: int = 12) -> bytes:
    """A PNG of one colour."""
    return png(np.full((side, side, 3), colour, np.uint8))


def form(*contents: bytes, field: str = "photo", name: str = "kept-secret.png") -> bytes:
    """The body of a form whose boundary is B; see `TYPE`."""
    parts = [
        f'--B\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + content
        + b"\r\n"
        for content in contents
    ]
    return b"".join(parts) + b"--B--\r\n"


TYPE = "multipart/form-data; boundary=B"


def post(path: str, body: bytes, content_type: str = TYPE, extra: str = "") -> bytes:
    """A whole request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Reply:
    """One answer of a server."""

    code: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A connection that sends and reads bytes as they are."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._rest = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> Reply:
        """Read one answer with a content-length."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        while len(self._rest) < length:
            self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return Reply(int(first.split()[1]), headers, body)

    def ask(self, data: bytes) -> Reply:
        self.send(data)
        return self.reply()

    def is_closed(self) -> bool:
        """Read until the server closes; fails after some patience if it does not."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError(f"closed after {self._rest!r}")
        self._rest += data


@dataclass
class Running:
    """A server in a thread of this process."""

    port: int
    engine: FakeEngine

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def client(self) -> Client:
        return Client(self.port)

    def send(self, data: bytes) -> Reply:
        with self.client() as client:
            return client.ask(data)

    def get(self, path: str) -> Reply:
        return self.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def waiting(self) -> int:
        return self.get("/health").json()["photos_waiting"]

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, 0 where it was never counted."""
        families = text_string_to_metric_families(self.get("/metrics").body.decode())
        for sample in (sample for family in families for sample in family.samples):
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
        return 0.0


@contextmanager
def running(limits: Limits, engine: Any = None, embedder: Any = None) -> Iterator[Running]:
    """Run a server around a fake engine, as `tools.serve` does, and stop it."""
    engine = engine or FakeEngine()
    taken = bind("127.0.0.1", 0)
    service = Service(engine, limits, embedder)
    server = make_server(make_app(service, ("localhost", "127.0.0.1")), limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    port = taken.getsockname()[1]
    thread.start()
    try:
        yield Running(port, engine)
    finally:
        engine.gate.set()
        server.should_exit = True
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


def until(condition: Any) -> None:
    """Wait for what another thread does."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.005)
