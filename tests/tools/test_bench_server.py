"""The load generator counts what a server really did."""

from __future__ import annotations

import csv
import multiprocessing

import pytest

from petface.errors import UserError
from petface.serving.limits import Limits
from tests.serving.made_server import photo, running
from tools import bench_server


def test_the_clients_count_what_the_server_counts():
    requests = [bench_server.request_of(photo(colour)) for colour in ((200, 0, 0), (0, 0, 200))]
    with running(Limits(max_queue=16)) as server:
        load = bench_server.ask_all(server.port, requests, num_clients=4, seconds=0.3)
        counted = bench_server.figures(server.port)
    assert load.statuses == {200: len(load.latencies_s)} and len(load.latencies_s) >= 4
    assert (
        counted["petface_batch_photos_sum"] == len(load.latencies_s) == sum(server.engine.batches)
    )
    assert counted["petface_batch_photos_count"] == len(server.engine.batches)
    assert all(0 < seconds < 30 for seconds in load.latencies_s)


def test_refusals_are_counted_as_such():
    with running(Limits(max_queue=1)) as server:
        server.engine.gate.clear()
        with server.client() as client:
            client.send(bench_server.request_of(photo()))
            load = bench_server.ask_all(
                server.port, [bench_server.request_of(photo())], num_clients=2, seconds=0.05
            )
        server.engine.gate.set()
    assert set(load.statuses) <= {503, 200} and load.statuses[503]


def test_health_is_asked_for_at_its_pace():
    receiving, sending = multiprocessing.Pipe(duplex=False)
    with running(Limits()) as server:
        bench_server.ask_for_health(server.port, 0.1, 0.35, sending)
    assert 1 <= len(receiving.recv()) <= 4


def test_photos_are_spread_over_the_folder(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(bytes([number]))
    (tmp_path / "notes.txt").write_text("no photo")
    assert bench_server.some_photos(tmp_path, 3) == [b"\0", b"\4", b"\x09"]
    assert len(bench_server.some_photos(tmp_path, 99)) == 10
    with pytest.raises(UserError, match="no photo"):
        bench_server.some_photos(tmp_path / "none", 3)


@pytest.mark.slow
def test_it_measures_two_servers(stage1_run, stage2_run, tree, tmp_path, monkeypatch):
    import sys

    flags = ["--stage1-checkpoint", stage1_run.folder / "best.pt", "--stage2-folder",
             stage2_run.folder, "--photos", tree.images / "dog", "--seconds", 2, "--clients", 4,
             "--device", "cpu", "--out", tmp_path / "out.csv"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["bench_server", *map(str, flags)])
    bench_server.main()
    with (tmp_path / "out.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["max_batch"] for row in rows] == ["64", "1"]
    assert rows[1]["mean_batch"] == "1.0" and float(rows[0]["req_per_s"]) > 0
    assert all("200:" in row["statuses"] for row in rows)
