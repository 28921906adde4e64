"""Do the same work many times in one process and print, as JSON, what the process holds meanwhile."""

import gc
import json
import sys
import threading
import time
from contextlib import redirect_stdout
from itertools import cycle
from pathlib import Path

from progeo.cli import main

_SAMPLES = 40


def held() -> dict[str, int]:
    """Memory in kB, open files, threads and child processes of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    return {
        "memory_kb": int(status["VmRSS"].split()[0]),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": int(status["Threads"]),
        "children": len(children),
    }


def repeat(work, count):
    """Call `work` `count` times, looking at the process at equal distances."""
    for number in range(count):
        work()
        if number % max(1, count // _SAMPLES) == 0:
            gc.collect()
            yield held()


def sampled(work):
    """Call `work` once, looking at the process all the time."""
    rows, done = [], threading.Event()

    def look():
        while not done.wait(0.5):
            rows.append(held())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return rows


def localizing(index, photos, count):
    files = cycle(sorted(Path(photos).iterdir()))
    words = ("--index", index, "--num_workers", "0")
    return repeat(lambda: main(["localize", str(next(files)), *words]), int(count))


def evaluating(count, *words):
    return repeat(lambda: main(["evaluate", *words]), int(count))


def training(*words):
    return sampled(lambda: main(["train", "encoder", *words]))


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    time.sleep(0.1)
    with redirect_stdout(sys.stderr):
        rows = list({"localize": localizing, "evaluate": evaluating, "train": training}[kind](*arguments))
    print(f"rows {json.dumps(rows)}", flush=True)
