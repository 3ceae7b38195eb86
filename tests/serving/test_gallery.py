"""POST /embed: the embeddings of the library, what it refuses, what the card says of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from petface.data import images
from petface.identity.embed import load_embedder
from petface.inference.loading import ComputeOptions
from petface.serving.requests import Limits
from tests.serving.made_server import form, identity_checkpoint, photo, post, running
from tests.serving.test_app import failed

RED, BLUE = photo((200, 20, 10)), photo((10, 20, 200))
MATCHING = {"threshold": 0.5, "false_match_rate": 0.01}


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    path = identity_checkpoint(tmp_path_factory.mktemp("identity") / "best.pt")
    return load_embedder(path, ComputeOptions.choose("cpu"))


@pytest.fixture(scope="module")
def server(embedder):
    limits = Limits(max_queue=4, max_photos=3, max_body_mb=0.1, max_pixels=10_000)
    with running(limits, embedder=embedder) as made:
        yield made


def embed(server, *contents):
    return server.send(post("/embed", form(*contents, field="photos")))


def test_the_embeddings_are_those_of_the_library_in_their_places(server, embedder):
    reply = embed(server, RED, b"no photo", BLUE)
    found = reply.json()
    assert reply.code == 200 and {**found, "photos": ()} == {"size": 16, **MATCHING, "photos": ()}
    red, broken, blue = found["photos"]
    assert set(broken) == {"status", "message"} and broken["status"] == "unreadable"
    for entry, content in ((red, RED), (blue, BLUE)):
        pixels = images.resize(images.decode(content), 32, "stretch")
        (wanted,) = embedder.network.answer_pixels(torch.from_numpy(pixels)[None])
        assert set(entry) == {"status", "embedding"} and entry["status"] == "ok"
        assert entry["embedding"] == pytest.approx(wanted[0].tolist(), abs=1e-5)
        assert np.linalg.norm(entry["embedding"]) == pytest.approx(1, abs=1e-5)
    assert red["embedding"] != pytest.approx(blue["embedding"], abs=1e-3)
    assert server.metric("petface_photos_total", status="unreadable") == 1
    assert server.waiting() == server.metric("petface_upload_bytes") == 0


@pytest.mark.parametrize(
    "body, code, status",
    [
        (form(b"no photo", field="photos"), 400, "unreadable"),
        (form(photo(side=101), field="photos"), 413, "too_large"),
        (form(b"x" * 100_000, field="photos"), 413, "too_large"),
        (form(*[RED] * 4, field="photos"), 422, "invalid"),
        (form(RED), 422, "invalid"),
    ],
)
def test_its_limits_are_those_of_every_route(server, body, code, status):
    failed(server.send(post("/embed", body)), code, status)
    other = post("/embed", form(RED, field="photos"), extra="Origin: http://evil.example\r\n")
    failed(server.send(other), 403, "refused")


def test_without_a_network_it_says_so_and_so_does_the_card(server):
    identity = server.get("/model_card").json()["identity"]
    assert len(identity.pop("sha256")) == 64 and identity == MATCHING
    with running(Limits()) as bare:
        assert "IDENTITY_CHECKPOINT" in failed(embed(bare, RED), 409, "no_gallery")
        assert bare.get("/model_card").json()["identity"] is None


def test_a_network_whose_answer_is_no_number_gives_no_embedding(server, embedder, monkeypatch):
    bad = lambda pixels: (torch.full((len(pixels), 16), torch.nan),)  # noqa: E731
    monkeypatch.setattr(embedder.network, "answer_pixels", bad)
    failed(embed(server, RED), 409, "non_finite")
