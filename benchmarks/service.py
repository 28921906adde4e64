"""Benchmark the service: many clients at once, with and without batches, beside one client and beside the command.

Run `python -m benchmarks.service`, with another encoder by `--encoder runs/city`. Each service is a process of its own.
A request has one photo of the toy city. The command is started for each photo, as a script would do.
"""

import argparse
import http.client
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder

PROGEO = [sys.executable, "-m", "progeo"]
ENCODER, DIM = "tiny-resnet", 128
BATCH_SIZE = 32
BOUNDARY = "photo-of-the-benchmark"


@dataclass(frozen=True)
class Load:
    """How a service is run and asked."""

    clients: int
    batch_size: int


@dataclass(frozen=True)
class Measured:
    """What a load took."""

    seconds: Sequence[float]
    """Of each request that was answered."""
    lost: int
    a_second: float
    """Answered requests."""
    photos_a_batch: float
    cpu_ms: float
    """CPU time of a request, without that of decoding."""


def main() -> None:
    """Print a line for every load, and one for the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="encoder of the index; without, a tiny one with random weights")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all loads, of which the fastest counts")
    parser.add_argument("--calls", type=int, default=3, help="calls of the command")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index, photos = build(folder, options.encoder)
        print(
            f"{'':32}"
            + "".join(f"{name:>10}" for name in ("lost", "p50, ms", "p95, ms", "a second", "a batch", "CPU ms"))
        )
        loads = (Load(options.clients, BATCH_SIZE), Load(options.clients, 1), Load(1, BATCH_SIZE))
        with service(index, BATCH_SIZE) as batching, service(index, 1) as single:
            ports = {BATCH_SIZE: batching, 1: single}
            found = [
                [measure(ports[load.batch_size], photos, load.clients, options.requests) for load in loads]
                for _ in range(options.rounds)
            ]
        for load, rounds in zip(loads, zip(*found, strict=True), strict=True):
            fastest = max(rounds, key=lambda each: each.a_second)
            lost = sum(each.lost for each in rounds)
            title = f"{load.clients} clients, batches up to {load.batch_size}"
            print(line(title, replace(fastest, lost=lost)), flush=True)
        print(line("progeo localize", measure_command(index, photos[: options.calls])))


def line(title: str, found: Measured) -> str:
    """Format a row of the table."""
    p50, p95 = 1000 * np.percentile(found.seconds, (50, 95))
    values = (p50, p95, found.a_second, found.photos_a_batch, found.cpu_ms)
    return f"{title:32}{found.lost:10}{''.join(f'{value:10.1f}' for value in values)}"


def build(folder: Path, encoder: str | None) -> tuple[Path, list[Path]]:
    """Build a place index of the toy city; returns it and photos to localize."""
    run("demo", "--only_city", "--out", folder / "toy")
    if encoder is None:
        encoder = str(folder / "encoder")
        save_encoder(folder / "encoder", build_encoder(ENCODER, "random", DIM).eval(), provenance={}, recalls={})
    index, city = folder / "index", folder / "toy/city"
    run("index", "build", encoder, "--folder", city / "train", "--out", index, "--descriptor_cache", folder / "cache")
    return index, sorted((city / "test/queries").iterdir())


def run(*words: object) -> None:
    """Run a command."""
    subprocess.run([*PROGEO, *map(str, words)], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def measure(port: int, photos: Sequence[Path], num_clients: int, num_requests: int) -> Measured:
    """Send the requests from several clients at once, each of which waits for its answer before it goes on."""
    bodies = [body_of(photo) for photo in islice(cycle(photos), num_requests)]
    for body in bodies[:3]:
        request(port, body)
    before, start = numbers(port), time.perf_counter()
    with ThreadPoolExecutor(num_clients) as clients:
        found = list(clients.map(lambda body: request(port, body), bodies))
    total_s = time.perf_counter() - start
    num_batches, num_photos, cpu_s = np.subtract(numbers(port), before)
    answered = [seconds for seconds in found if seconds is not None]
    return Measured(
        answered,
        len(found) - len(answered),
        len(answered) / total_s,
        num_photos / num_batches,
        1000 * cpu_s / len(found),
    )


@contextmanager
def service(index: Path, batch_size: int) -> Iterator[int]:
    """Run a service and give its port."""
    words = ["serve", "--index", str(index), "--port", "0", "--batch_size", str(batch_size)]
    process = subprocess.Popen([*PROGEO, *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = re.search(r":(\d+)/$", process.stderr.readline())
    assert found is not None
    try:
        yield int(found[1])
    finally:
        process.terminate()
        process.communicate()


def body_of(photo: Path) -> bytes:
    """Return a form with a photo."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="photos"; filename="photo.jpg"\r\n\r\n'
    return head.encode() + photo.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()


def request(port: int, body: bytes) -> float | None:
    """Send a form and return the seconds until its answer; None if it is no position."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    connection.request("POST", "/localize", body, headers)
    answer = connection.getresponse()
    is_answered = answer.status == 200 and b'"matches":[{' in answer.read()
    connection.close()
    return time.perf_counter() - start if is_answered else None


def numbers(port: int) -> list[float]:
    """Return the number of batches so far, that of photos in them, and the CPU seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    names = ("progeo_batch_photos_count", "progeo_batch_photos_sum", "process_cpu_seconds_total")
    return [float(re.findall(rf"^{name} (.*)$", text, re.MULTILINE)[0]) for name in names]


def measure_command(index: Path, photos: Sequence[Path]) -> Measured:
    """Localize photos by a call of the command each."""
    seconds = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for photo in photos:
        start = time.perf_counter()
        run("localize", photo, "--index", index, "--num_workers", 0)
        seconds.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(seconds, 0, len(seconds) / sum(seconds), 1.0, 1000 * cpu_s / len(seconds))


if __name__ == "__main__":
    main()
