import psutil
import pytest
import torch

from progeo.cores import usable_cores
from progeo.engine.devices import list_devices, main_memory


def test_the_memory_of_a_container_is_what_it_may_take_and_has_not(tmp_path):
    (tmp_path / "memory.max").write_text("9000000\n")
    (tmp_path / "memory.current").write_text("5000000\n")
    (tmp_path / "memory.stat").write_text("anon 3000000\nfile 2000000\ninactive_file 1500000\n")
    assert main_memory(tmp_path) == (9_000_000, 9_000_000 - (5_000_000 - 1_500_000))
    (tmp_path / "memory.current").write_text("15000000\n")
    assert main_memory(tmp_path) == (9_000_000, 0)


def test_the_memory_of_a_job_is_that_of_the_narrowest_group_around_it(tmp_path):
    for name, limit, used in (("job_7", 9000, 5000), ("job_7/step_0", "max", 4000), ("other", 10, 10)):
        (tmp_path / name).mkdir()
        for file, text in (("max", limit), ("current", used), ("stat", "anon 1")):
            (tmp_path / name / f"memory.{file}").write_text(f"{text}\n")
    (tmp_path / "own").write_text("1:name=systemd:/x\n0::/job_7/step_0\n")
    assert main_memory(tmp_path, tmp_path / "own") == (9000, 4000)
    (tmp_path / "own").write_text("0::/\n")
    assert main_memory(tmp_path, tmp_path / "own")[0] == psutil.virtual_memory().total


@pytest.mark.parametrize("limit", [None, "max\n"])
def test_without_a_limit_it_is_that_of_the_machine(tmp_path, limit):
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    total, free = main_memory(tmp_path)
    assert total == psutil.virtual_memory().total and 0 < free <= total


def test_the_last_device_is_the_cpu():
    last = list_devices()[-1]
    assert (last.name, last.what.split()[0]) == ("cpu", str(usable_cores()))
    assert 0 < last.free_bytes <= last.total_bytes


@pytest.mark.gpu
def test_gpus_come_first_with_their_own_memory():
    first = list_devices()[0]
    assert (first.name, first.what) == ("cuda:0", torch.cuda.get_device_name(0))
    assert first.total_bytes == torch.cuda.get_device_properties(0).total_memory
    assert 0 < first.free_bytes <= first.total_bytes
