"""Far more of everything than can be answered: what is refused is told so at once, the rest comes in time.

``LURM_TEST_SECONDS`` says for how long; CI does it for a few.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from lurm.release import Release
from tests.server.conftest import RunningServer
from tests.server.test_live import event
from tests.waiting import until

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("LURM_TEST_SECONDS", "6"))
KINDS = ("cached", "uncached", "POST", "neighbors")
N_CLIENTS = 240
DEADLINE_S = 2.0
FORGOTTEN_S = 8 * DEADLINE_S  # nobody waits so long whose deadline is kept, however busy the machine
N_ROUNDS = 4  # the first is not judged by its memory
# Bytes. What is kept of every request grows in every round; what an allocator happens to keep does not.
MOST_GROWTH, MOST_IN_QUIETEST_ROUND = 64 * 2**20, 6 * 2**20


def resident_bytes(server: RunningServer) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_ten_times_too_much_is_refused_in_order_and_what_is_admitted_is_answered_in_time(
    start_server: Callable[..., RunningServer], tmp_path: Path, release: Release
) -> None:
    limits = {"request_timeout_s": DEADLINE_S, "queue_users": 4, "batch_users": 2, "batch_wait_ms": 0}
    server = start_server(**limits, live_dir=tmp_path / "live", cache_bytes=20_000)
    users, numbers = release.history.users.take(np.arange(100)), itertools.count()
    statuses: Counter[tuple[str, int]] = Counter()
    slowest: Counter[int] = Counter()

    def request(kind: str, n: int) -> bytes:
        user = users[n % 100]
        if kind == "POST":
            events = [event(f"w{n % 50}", f"i{n}-{at}", 1_700_000_000_000 + n) for at in range(20)]
            body = json.dumps({"events": events}).encode()
            return b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        path = {
            "cached": f"/embed/{users[0]}",
            "uncached": f"/embed/{user}",
            "neighbors": f"/v1/users/{user}/neighbors?k=50",
        }
        return f"GET {path[kind]} HTTP/1.1\r\nHost: x\r\n\r\n".encode()

    async def ask(kind: str, ends: float) -> None:
        reader, writer = await asyncio.open_connection(*server.address)
        while time.monotonic() < ends:
            writer.write(request(kind, next(numbers)))
            started = time.monotonic()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            taken = time.monotonic() - started
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            content = await reader.readexactly(int(fields[b"content-length"]))
            status = int(head.split(b" ", 2)[1])
            statuses[kind, status] += 1
            slowest[status] = max(slowest[status], int(1000 * taken))  # type: ignore[assignment]
            if status != 200:
                assert status in (429, 503), content
                assert int(fields[b"retry-after"]) >= 1
                assert fields[b"content-type"] == b"application/problem+json"
        writer.close()

    async def load(seconds: float) -> None:
        ends = time.monotonic() + seconds
        await asyncio.gather(*(ask(kind, ends) for kind in KINDS * (N_CLIENTS // len(KINDS))))

    def all_were_admitted() -> bool:
        if all(statuses[kind, 200] for kind in KINDS):
            return True
        asyncio.run(load(SECONDS / N_ROUNDS))
        return False

    resident = []
    for _ in range(N_ROUNDS):
        asyncio.run(load(SECONDS / N_ROUNDS))
        resident.append(resident_bytes(server))
    growths = np.diff(resident)
    until(all_were_admitted, "somebody is never admitted")
    refused = sum(n for (_, status), n in statuses.items() if status != 200)
    print(dict(statuses), "slowest, ms:", dict(slowest), "growth, bytes:", growths)  # noqa: T201
    assert refused > 100, "this was no overload"
    assert max(slowest.values()) < 1000 * FORGOTTEN_S
    assert growths.min() < MOST_IN_QUIETEST_ROUND
    assert growths.sum() < MOST_GROWTH
    with server.client() as client:
        body = {"events": [event("w", "i", 1_700_000_000_000)]}
        until(lambda: is_answered(client.get(f"/embed/{users[0]}")), "it does not recover")
        until(lambda: is_answered(client.post("/v1/events", json=body)), "it does not recover")


def is_answered(answer: httpx.Response) -> bool:
    """Whether it is; a refusal is waited out, as work goes on that nobody waits for any more."""
    if answer.status_code in (429, 503):
        time.sleep(int(answer.headers["retry-after"]))
    else:
        assert answer.status_code == 200, answer.text
    return answer.status_code == 200
