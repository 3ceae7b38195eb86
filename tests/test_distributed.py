import itertools
import os
import signal

import numpy as np
import pytest
import torch

from petface import devices, distributed
from petface.data import loading as batches
from petface.errors import UserError
from petface.training.runs import StopRequest


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def place(monkeypatch, rank, world_size):
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world_size)):
        monkeypatch.setenv(name, str(value))


def test_torchruns_variables_are_believed(monkeypatch):
    found = [(distributed.rank(), distributed.world_size(), distributed.is_main())]
    for rank in (0, 1, 3):
        place(monkeypatch, rank, 4)
        found.append((distributed.rank(), distributed.world_size(), distributed.is_main()))
    assert found == [(0, 1, True), (0, 4, True), (1, 4, False), (3, 4, False)]


@pytest.mark.parametrize(
    ("set_names", "message"),
    [
        ({"RANK": "1"}, "set without WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "set without RANK"),
        ({"RANK": "x", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "RANK='x' is no number"),
    ],
)
def test_half_an_environment_is_refused_in_one_line(monkeypatch, set_names, message):
    for name, value in set_names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        distributed.start("cpu")


def test_torchrun_with_one_process_is_a_process_alone(monkeypatch):
    place(monkeypatch, 0, 1)
    distributed.start("cpu")
    assert distributed.begin_gather(3, 4)() == [[3, 4]]
    assert distributed.gather_objects("x") == ["x"] and distributed.broadcast_object(5) == 5
    assert distributed.part_ways([1, 2, 3]) == [1, 2, 3] and distributed.describe(64) == ""
    assert distributed.local_rank() is None and distributed.place() == ()


def test_the_shares_of_all_processes_are_the_batches_of_one(monkeypatch):
    """Shares side by side are one process's batches with as many images a step."""
    for n in (*range(20), 97, 128, 1000):
        order = np.random.default_rng(n).permutation(n)
        for batch_size, world_size in itertools.product((1, 2, 3, 8, 64), (1, 2, 3, 4, 8)):
            shares, turns = [], []
            for rank in range(world_size):
                place(monkeypatch, rank, world_size)
                shares.append(batches.own_share(order, batch_size))
                turns.append(batches.own_batches(order, batch_size))
            place(monkeypatch, 0, 1)
            whole = batches.even_slices(order, batch_size * world_size)
            assert {len(share) for share in shares} == {len(whole)}
            for step, expected in enumerate(whole):
                parts = [share[step] for share in shares]
                assert np.concatenate(parts).tolist() == expected.tolist()
                sizes = {len(part) for part in parts}
                assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
            places = [divmod(k, world_size) for k in range(sum(map(len, turns)))]
            in_turn = [turns[turn][number].tolist() for number, turn in places]
            assert in_turn == [p.tolist() for p in batches.even_slices(order, batch_size)]


def test_a_launchers_copy_of_a_signal_is_not_the_second_one(monkeypatch):
    place(monkeypatch, 1, 2)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exit_code == 143


def test_each_process_takes_its_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    place(monkeypatch, 1, 4)
    assert [str(devices.choose_device(wanted)) for wanted in ("auto", "cuda")] == ["cuda:1"] * 2
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match="DEVICE 'cuda:1' is one device; under torchrun"):
        distributed.start("cuda:1")
    place(monkeypatch, 2, 4)
    with pytest.raises(UserError, match="processes on this machine and 2 GPUs"):
        distributed.start("auto")


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_cuda_then_mps_then_the_cpu(monkeypatch, cuda, mps, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    device = devices.choose_device("auto")
    assert device.type == wanted
    if wanted == "mps":
        assert str(devices.choose_precision("auto", device)) == "fp32"


def test_a_named_gpu_is_that_of_what_names_no_number(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    found = [str(devices.choose_device(name)) for name in ("cuda", "cpu", "cuda:1")]
    assert found[-1] == "cuda:1" and chosen == [torch.device("cuda", 1)]


def test_gpus_are_not_waited_for_at_the_end(monkeypatch):
    done = []
    monkeypatch.setattr(distributed, "_on_devices", "NCCL")
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: done.append("all"))
    monkeypatch.setattr(distributed.dist.distributed_c10d, "_abort_process_group", done.append)
    distributed.stop()
    assert done == ["NCCL", "all"] and distributed._on_devices is None


def test_devices_and_precisions_are_chosen_or_refused_by_name():
    cpu = devices.choose_device("cpu")
    assert cpu.type == "cpu"
    for wanted in ("cuda:99", "gpu", "meta-physical"):
        with pytest.raises(UserError, match=f"DEVICE '{wanted}' cannot be used"):
            devices.choose_device(wanted)
    for name, scales in (("fp32", False), ("bf16", False), ("fp16", True)):
        precision = devices.choose_precision(name, cpu)
        assert str(precision) == name and precision.grad_scaler(cpu).is_enabled() == scales
    assert str(devices.choose_precision("auto", cpu)) in ("fp32", "bf16")
