import pytest

from petface import distributed


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_alone_a_process_is_the_first_of_one():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)


@pytest.mark.parametrize(("rank", "is_main"), [("0", True), ("1", False), ("3", False)])
def test_torchruns_variables_are_believed(monkeypatch, rank, is_main):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.rank() == int(rank)
    assert distributed.world_size() == 4
    assert distributed.is_main() is is_main
