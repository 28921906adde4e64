"""Work that processes divide by claims."""

import os
import socket
import subprocess
import sys
import time

import pytest

from progeo.features.claims import Claims


@pytest.fixture
def claims(tmp_path):
    """Claims of two processes, of which only the first runs; those of the second are abandoned after 0.2 s."""
    with Claims(tmp_path, stale_s=0.2) as mine:
        yield mine, Claims(tmp_path, stale_s=0.2)


def test_work_is_claimed_once_until_it_is_released(claims, tmp_path):
    mine, others = claims
    assert mine.take("1")
    assert not others.take("1")
    assert others.take("2")
    assert mine.names() == others.names() == ["1", "2"]
    assert others.holder("1") == f"process {os.getpid()} on {socket.gethostname()}"
    mine.release("1")
    assert others.take("1")
    others.release("1")
    others.release("2")
    assert not list(tmp_path.iterdir())


def test_a_claim_is_kept_while_its_process_lives_and_abandoned_after_it_stops(claims):
    mine, others = claims
    assert mine.take("kept")
    assert others.take("stopped")
    assert not mine.take("stopped")
    deadline = time.monotonic() + 10
    while not mine.take("stopped"):
        assert time.monotonic() < deadline
        assert not others.take("kept")
        time.sleep(0.05)
    assert not others.take("kept")


@pytest.fixture
def space(claims):
    """What a claim of this process says of where its number counts."""
    assert claims[0].take("mine")
    _, number, space = (claims[0].folder / ".claim_mine").read_text().split()
    assert number == str(os.getpid())
    return space


@pytest.mark.parametrize("is_here", [True, False])
def test_the_claim_of_a_process_that_has_ended_on_this_machine_is_free_at_once(is_here, space, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    ended.stdout.read()
    for is_waited_for in (False, True):  # until then, its number is not free for another
        if is_waited_for:
            ended.wait()
        # A container may have the host name of this machine, and another process with this number.
        (tmp_path / ".claim_1").write_text(f"{socket.gethostname()} {ended.pid} {space if is_here else 'container'}\n")
        time.sleep(0.01)
        with Claims(tmp_path, stale_s=60) as claims:
            assert claims.take("1") == is_here
        assert (tmp_path / ".claim_1").exists() != is_here


@pytest.mark.parametrize(
    "content", ["", "\udcff", "one two three", "HOST", "HOST 0x1 SPACE", "HOST -1 SPACE", "HOST 1 SPACE 2"]
)
def test_a_claim_with_any_content_is_one(content, space, tmp_path):
    content = content.replace("HOST", socket.gethostname()).replace("SPACE", space)
    (tmp_path / ".claim_1").write_bytes(content.encode("utf-8", "surrogateescape"))
    with Claims(tmp_path, stale_s=60) as claims:
        assert not claims.take("1")


def test_the_end_of_a_process_releases_its_claims(tmp_path):
    with pytest.raises(KeyError), Claims(tmp_path) as claims:
        assert claims.take("1")
        assert claims.take("2")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(OSError, match=rf"^{tmp_path}/gone could not be written to: No such file"):
        Claims(tmp_path / "gone").take("1")


def test_a_disk_that_is_full_is_named(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Claims(tmp_path) as claims:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            with pytest.raises(OSError, match=rf"^{tmp_path} could not be written to: File too large"):
                claims.take("1")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
