"""The server as a user starts it, with trained networks."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from petface.data.images import Preprocessing
from petface.errors import UserError
from petface.identity.embed import load_embedder
from petface.inference.two_stage import TwoStageInference
from petface.models import checkpoints
from petface.models.architecture import Architecture
from petface.models.embedding import EmbeddingModel
from tests.scripts import REPOSITORY
from tests.serving.made_server import PATIENCE_S, Client, form, post, until
from tools import serve

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass
class Served:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self) -> Client:
        return Client(self.port)

    def send(self, data: bytes) -> Any:
        with self.client() as client:
            return client.ask(data)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE_S) as reply:
            return reply.read()


@contextmanager
def served(folder: Path, *flags: object) -> Iterator[Served]:
    """Start `python -m tools.serve` on a free port; wait until it is ready; end it."""
    command = [sys.executable, "-m", "tools.serve", "--port", 0, "--device", "cpu", *flags]
    log = folder / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            list(map(str, command)), cwd=REPOSITORY, env=ENVIRONMENT, text=True,
            stdout=subprocess.PIPE, stderr=stream,
        )  # fmt: skip
    try:
        lines = iter(process.stdout)
        ready = next((line for line in lines if line.startswith("ready: ")), None)
        assert ready, log.read_text()
        yield Served(process, ready.split()[1], log)
    finally:
        process.kill()
        process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def models(stage1_run, stage2_run, tmp_path_factory) -> list[object]:
    identity = tmp_path_factory.mktemp("identity") / "best.pt"
    model = EmbeddingModel(16, 0, Architecture("resnet18"))
    content = {"kind": "identity", "embedding_size": 16, "model": model.state_dict()}
    checkpoints.save(identity, {**content, "preprocessing": Preprocessing(24).to_dict()})
    return ["--stage1-checkpoint", stage1_run.folder / "best.pt",
            "--stage2-folder", stage2_run.folder, "--identity-checkpoint", identity]  # fmt: skip


@pytest.fixture(scope="module")
def engine(models) -> TwoStageInference:
    return TwoStageInference(models[1], models[3], "cpu")


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    with served(tmp_path_factory.mktemp("serve"), *models) as made:
        yield made
        made.process.send_signal(signal.SIGINT)
        assert made.process.wait(PATIENCE_S) == 0


@pytest.fixture(scope="module")
def photos(tree, engine) -> dict[str, bytes]:
    """One photo from a file, a phone held sideways, and in grey; others, one of no specialist."""

    yaks = (path.read_bytes() for path in sorted((tree.images / "yak").rglob("*.png")))
    yak = next(yak for yak in yaks if engine.infer(yak)["status"] == "no_specialist")
    png, chimp = ((tree.images / n / "000000/00.png").read_bytes() for n in ("cat", "chimp"))
    image, sideways = Image.open(io.BytesIO(png)), Image.Exif()
    sideways[0x0112] = 6
    image.save(jpeg := io.BytesIO(), "JPEG", exif=sideways, quality=95)
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(deep := io.BytesIO(), "PNG")
    found = {"jpeg": jpeg.getvalue(), "16 bit": deep.getvalue()}
    return {**found, "png": png, "chimp": chimp, "yak": yak}


def test_answers_are_those_of_the_library_to_the_last_digit(server, engine, photos):
    def as_json(answer: Any) -> Any:
        return json.loads(json.dumps(answer))

    found = set()
    for name, content in photos.items():
        for topk in (1, 3):
            reply = server.send(post(f"/predict?topk={topk}", form(content)))
            wanted = engine.infer(content, topk)
            assert (reply.code, reply.json()) == (200, as_json(wanted)), name
            found.add(reply.json()["status"])
    assert found == {"ok", "no_specialist"}
    given = [*photos.values()][:3]
    reply = server.send(post("/predict_animal", form(*given, b"none", field="photos")))
    assert (reply.code, reply.json()) == (200, as_json(engine.infer_animal([*given, b"none"])))
    for species, code in (("cat", 200), ("yak", 404), ("../../etc", 404)):
        path = f"/explain?head=breed&species={species}"
        reply = server.send(post(path, form(photos["png"])))
        assert reply.code == code, reply.body
        if code == 200:
            assert reply.body == engine.explain(photos["png"], head="breed", species="cat")


def test_answers_do_not_depend_on_who_else_is_answered(server, engine, tree):
    """Batches change the last digits only; names must not move between photos."""
    given = [path.read_bytes() for path in sorted(tree.images.rglob("*/01.png"))]
    answers = {content: engine.infer(content) for content in given}
    given = [content for content in given if answers[content]["species"]]
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda one: server.send(post("/predict", form(one))), given * 2))
    metrics = server.get("/metrics").decode()
    names = (f"petface_batch_photos_{name} (.+)" for name in ("sum", "count"))
    num, num_batches = (float(re.search(name, metrics)[1]) for name in names)
    assert num > num_batches
    for content, reply in zip(given * 2, replies, strict=True):
        answer, wanted = reply.json(), answers[content]
        assert list(answer["attributes"]) == list(wanted["attributes"])
        found = dict(map(tuple, answer["species"]["topk"]))
        assert found == pytest.approx(dict(wanted["species"]["topk"]), abs=1e-4)


def test_an_embedding_is_that_of_the_library_and_the_card_names_no_folder(
    server, engine, models, photos
):
    network = load_embedder(models[5], engine.options).network
    pixels = engine.prepare(photos["png"], rules=[Preprocessing(24)]).at(Preprocessing(24))
    (wanted,) = network.answer_pixels(torch.from_numpy(pixels)[None])
    (found,) = server.send(post("/embed", form(photos["png"], field="photos"))).json()["photos"]
    assert found["embedding"] == pytest.approx(wanted[0].tolist(), abs=1e-5)
    card = server.get("/model_card").decode()
    assert set(json.loads(card)["specialists"]) == {"cat", "chimp", "dog"}
    assert json.loads(card)["no_specialist"] == ["yak"]
    assert str(models[3]) not in card and "/" not in json.loads(card)["stage1"]["path"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stage1-checkpoint", "none.pt", "--port", 0], "none.pt"),
        (["--port", "TAKEN"], "port {} of 127.0.0.1: "),
        ([], 'uvicorn: python -m pip install ".[serve]"'),
    ],
)
def test_what_cannot_be_served_is_told(monkeypatch, server, flags, words):
    if not flags:
        for name in [name for name in sys.modules if name.startswith("petface.serving")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "uvicorn", None)
    line = [str(server.port if flag == "TAKEN" else flag) for flag in flags]
    monkeypatch.setattr(sys, "argv", ["serve", *line])
    with pytest.raises(UserError, match=re.escape(words.format(server.port))):
        serve.main()


def test_stopped_it_answers_what_it_has_begun(models, photos, tmp_path):
    with served(tmp_path, *models, "--host", "0.0.0.0") as server:
        data = post("/predict", form(photos["png"]))
        with server.client() as client, server.client() as idle:
            client.send(data[:-20])
            until(lambda: b"petface_upload_bytes 0.0" not in server.get("/metrics"))
            server.process.terminate()
            until(lambda: socket.socket().connect_ex(("127.0.0.1", server.port)))  # takes no more
            client.send(data[-20:])
            assert client.reply().code == 200
            assert idle.is_closed()
        assert server.process.wait(PATIENCE_S) == 0
        warning, *lines = server.log.read_text().splitlines()
    assert warning.startswith("WARNING: ") and "no authentication" in warning
    assert "/predict 200 " in lines[-1]
