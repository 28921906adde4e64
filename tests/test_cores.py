import os

import pytest

from progeo import cores
from progeo.cores import default_workers, usable_cores


@pytest.fixture(autouse=True)
def six_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 3, 5, 8, 13}, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


@pytest.mark.parametrize(
    ("quota", "count"),
    [("max 100000", 6), ("400000 100000", 4), ("250000 100000", 3), ("50000 100000", 1), ("900000 100000", 6), ("", 6)],
)
def test_the_cores_of_a_container_are_those_that_its_quota_pays_for(tmp_path, quota, count):
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == count


def test_without_a_container_they_are_those_that_the_process_is_bound_to(tmp_path):
    assert usable_cores(tmp_path / "cpu.max") == 6


@pytest.mark.parametrize(
    ("num_cores", "processes", "workers"), [(6, 1, 6), (6, 2, 3), (6, 8, 1), (96, 1, 16), (96, 8, 12)]
)
def test_processes_of_a_machine_share_its_cores(monkeypatch, num_cores, processes, workers):
    monkeypatch.setattr(cores, "usable_cores", lambda: num_cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers() == workers
