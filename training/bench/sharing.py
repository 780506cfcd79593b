"""What more workers cost in memory: they map one release, so four should hold little more than one.

Counted is proportional memory (a page that four processes map counts a quarter for each) of what is mapped from the
release and of what is private, beyond what the same processes take for a release of next to nothing: that is the
interpreter, the libraries and what they allocate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lurm.release import Release
from training.bench.load import get
from training.bench.made import LogSize
from training.bench.served import Server, lurm, release_of

WORKERS = (1, 4)
_TINY = LogSize(2_000, 50, 60, 10)


def one_vs_four(
    folder: Path, root: Path, load: Callable[[Server, Sequence[bytes]], object], threads: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The ratio of memory of one worker to that of four, and both in bytes; empty where the system does not tell.

    Args:
        folder: for the release of next to nothing.
        root: the release that counts.
        load: asks a server for each of some users.
        threads: to make the other release with.
    """
    if not Path("/proc/self/smaps").exists():
        return {}, {}
    tiny = folder / "tiny"
    release_of(_TINY, tiny, threads)
    beyond = {}
    for n_workers in WORKERS:
        held = {}
        for name, at in (("tiny", tiny), ("whole", root)):
            history = Release.open(at, verify=False).history
            gets = [get(f"/embed/{id_}") for id_ in history.users.take(np.arange(len(history)))]
            room = folder / f"sharing-{name}-{n_workers}"
            with lurm(room, at, workers=n_workers, cache_bytes=0, live_dir=room / "live") as server:
                load(server, gets)
                held[name] = _proportional_bytes(server.process, at)
        beyond[n_workers] = max(held["whole"] - held["tiny"], 1)
    facts = {f"{n}_workers_bytes": float(n_bytes) for n, n_bytes in beyond.items()}
    return {"one_vs_four_workers": beyond[1] / beyond[4]}, facts


def _proportional_bytes(process: int, root: Path) -> int:
    """Of a process and all it has started: what is mapped from this folder, and what no file holds."""
    n_bytes = 0
    for one in _with_children(process):
        counts = False
        for line in Path(f"/proc/{one}/smaps").read_text().splitlines():
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                path = words[5] if len(words) > 5 else ""
                counts = not path.startswith("/") or path.startswith(str(root.resolve()))
            elif counts and words[0] == "Pss:":
                n_bytes += int(words[1]) * 1024
    return n_bytes


def _with_children(process: int) -> list[int]:
    found = [process]
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if parent == process:
            found += _with_children(int(path.parent.name))
    return found
