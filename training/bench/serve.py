"""serve: what HTTP costs. One worker of ``lurm serve`` on loopback, its load from a process of its own.

    json binary   GET /embed/{id} of users in the cache      raw_json raw_binary   the same bytes from a bare ASGI
    batch         POST /v1/embeddings of 100 of them                               application, under the same uvicorn
    miss          batches with the cache off                 naive                 FastAPI, the vectors in Redis
    single_miss   GET /embed/{id} with the cache off         bulk                  the encoder alone, in one thread
    ingest        POST /v1/events of 100 new events each     alone                 SQLite, 100 rows synced after another

Requests per second are those of connections that ask again as soon as they are answered. Latencies are those of
clients who come by themselves, at half that rate; waiting for a free connection counts. ``_server_cpu`` and
``_load_cpu`` say how busy (1: one core) a server and the load on it were: where a server was not, something else was
the limit. ``_server_us`` is the processor time of one request, which other work on the machine disturbs least.
``rollback_s`` is the longest time from a rollback to an answer of the release before, ``new_release_s`` that of one the
server has never seen, all of whose bytes it compares first.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import orjson
from numpy.typing import NDArray

from lurm.artifacts import open_artifact
from lurm.errors import LurmError
from lurm.release import PARTS, Release, publish, rollback
from lurm.settings import one_thread_per_child
from training.bench import arriving, sharing
from training.bench.load import Load, arrivals, drive, get, give_way, post
from training.bench.made import LogSize
from training.bench.race import Figures, Timing, Track
from training.bench.served import Server, answer, asking, lurm, peer, redis, release_of

CONNECTIONS = 64
BATCH_IDS = 100
MISS_CONNECTIONS = 4  # more would have more users wait than a server lets wait
JSON, BINARY = "application/json", "application/octet-stream"

# the log, how many of its users are in the cache, seconds of a turn
_SIZES = {
    "tiny": (LogSize(6_000, 150, 200, 20), 120, 0.05),
    "small": (LogSize(1_500_000, 5_000, 20_000, 4_000), 2_000, 1.5),
    "full": (LogSize(30_000_000, 100_000, 500_000, 100_000), 20_000, 10.0),
}
_BULK_USERS = 512
_COMPARED = 50
_TOLERANCE = 1e-4
_BUSY = 0.9
_LOOKS_S = 0.002
_PATIENCE_S = 600.0  # with a release of which every byte is compared first


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody who answers requests.

    Attributes:
        server: who.
        requests: what it is asked, one after the other, and again.
        body_bytes: of the answer to each.
        n_rows: that one answer is good for.
        connections: that ask at a time.
    """

    server: Server
    requests: Sequence[bytes]
    body_bytes: Sequence[int]
    n_rows: int = 1
    connections: int = CONNECTIONS


def bench(track: Track, scale: str) -> Figures:
    """Ratios {binary, json, p99}_vs_raw_asgi, batch_vs_single, {miss, single_miss}_vs_bulk, single_miss_vs_both (the
    bare application's answer and the encoder's share of a bulk, one after the other), ingest_vs_alone; with Redis
    vs_naive, on Linux one_vs_four_workers.

    Raises:
        LurmError: an answer is not what it should be.
    """
    size, n_cached, turn_s = _SIZES[scale]
    root = track.folder / "served"
    release = release_of(size, root, track.threads)
    ids = release.history.users.take(np.arange(len(release.history)))
    with ExitStack() as stack:
        generator = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), give_way))
        alone = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
        load = partial(_driven, generator)
        contenders = _contenders(track, stack, load, release, root, ids, n_cached)
        timings, facts = _race(track, contenders, load, turn_s)
        with one_thread_per_child():  # its process starts with the first task
            bulk = [alone.submit(embedded_alone, root).result() for _ in range(track.rounds)]
        timings["bulk"] = Timing(bulk, len(ids))
        speed = {name: timing.n_rows / timing.best for name, timing in timings.items()}
        fresh = stack.enter_context(lurm(track.folder / "fresh", root, live_dir=track.folder / "live"))
        drive_fresh = partial(_driven_at, generator, fresh)
        arrived, told = arriving.race(fresh, drive_fresh, release, track.folder, scale, track.rounds)
        facts |= told | arriving.read_your_write(fresh, release, scale)
        timings |= arrived
        shared, told = sharing.one_vs_four(track.folder, root, partial(_driven_at, generator), track.threads)
        facts |= told
        for name in ("json", "raw_json"):
            facts |= _latencies(name, contenders[name], load, speed[name] / 2, track.rounds, turn_s)
    facts |= _swapped(track.folder / "swapped", root, track.rounds)
    ratios = {
        "binary_vs_raw_asgi": speed["binary"] / speed["raw_binary"],
        "json_vs_raw_asgi": speed["json"] / speed["raw_json"],
        "p99_vs_raw_asgi": facts["raw_json_p99_ms"] / facts["json_p99_ms"],
        "batch_vs_single": speed["batch"] / speed["json"],
        "miss_vs_bulk": speed["miss"] / speed["bulk"],
        "single_miss_vs_bulk": speed["single_miss"] / speed["bulk"],
        "single_miss_vs_both": speed["single_miss"] * (1 / speed["raw_json"] + 1 / speed["bulk"]),
        "ingest_vs_alone": timings["alone"].best / timings["ingest"].best,
    }
    ratios |= shared
    if "naive" in speed:
        ratios["vs_naive"] = speed["json"] / speed["naive"]
    sizes = {
        "n_users": len(ids),
        "n_events": release.history.n_events,
        "n_cached": n_cached,
        "dim": release.encoder.dim,
        "n_connections": CONNECTIONS,
        "batch_ids": BATCH_IDS,
    }
    return Figures(sizes, timings, ratios, facts)


def embedded_alone(root: Path) -> float:
    """Seconds it takes to embed all users of the current release, in large batches, by this thread alone."""
    release = Release.open(root, verify=False)
    release.encoder.embed(next(release.history.scan(max_users=_BULK_USERS)))
    started = perf_counter()
    for batch in release.history.scan(max_users=_BULK_USERS):
        release.encoder.embed(batch)
    return perf_counter() - started


def _swapped(room: Path, root: Path, rounds: int) -> dict[str, float]:
    """How long it takes a server to answer from a release it has never seen, and the longest of some rollbacks.

    Raises:
        LurmError: a server does not follow.
    """
    parts = {part: open_artifact(root / "stages" / part, part) for part in PARTS}
    with lurm(room, root) as server, asking(server) as ask:

        def served_after_s(release_id: str) -> float:
            moved = perf_counter()
            while orjson.loads(ask("/info"))["release"] != release_id:
                if perf_counter() > moved + _PATIENCE_S:
                    raise LurmError(f"serve: {release_id} is not served, expected it soon. No ratio is told")
                sleep(_LOOKS_S)
            return perf_counter() - moved

        new_s = served_after_s(publish(root, parts, name="the same once more", metrics={}))
        return {"new_release_s": new_s, "rollback_s": max(served_after_s(rollback(root)) for _ in range(rounds))}


Drive = Callable[..., Load]


def _driven(generator: ProcessPoolExecutor, asked: Contender, n: int, due_n: NDArray[np.float64] | None = None) -> Load:
    """The load of n requests to a contender, made by another process."""
    body_bytes = asked.body_bytes or None
    made = generator.submit(
        drive,
        asked.server.port,
        asked.requests,
        n,
        connections=asked.connections,
        body_bytes=body_bytes,
        due_n=due_n,
    )
    return made.result()


def _driven_at(
    generator: ProcessPoolExecutor, server: Server, requests: Sequence[bytes], connections: int = CONNECTIONS
) -> Load:
    """The load of each request once, made by another process."""
    return generator.submit(drive, server.port, requests, len(requests), connections=connections).result()


def _contenders(
    track: Track, stack: ExitStack, load: Drive, release: Release, root: Path, ids: list[str], n_cached: int
) -> dict[str, Contender]:
    """All servers, running, and what they are asked, after their answers were compared."""
    room, cached = track.folder, ids[:n_cached]
    known_ue = release.embeddings.vectors_ue[:_COMPARED]

    def ready(server: Server, requests: Sequence[bytes], n_rows: int = 1, connections: int = CONNECTIONS) -> Contender:
        """Ask everything once, so that what can be cached is, and once more, to know how long the answers are."""
        untold = Contender(server, requests, (), n_rows, connections)
        load(untold, len(requests))
        return replace(untold, body_bytes=load(untold, len(requests)).body_bytes_n.tolist())

    ours = stack.enter_context(lurm(room / "ours", root))
    cold = stack.enter_context(lurm(room / "cold", root, cache_bytes=0))
    json_gets, binary_gets = ([get(f"/embed/{id_}", kind) for id_ in cached] for kind in (JSON, BINARY))
    batches, misses = (_batches(some) for some in (cached, ids))
    contenders = {
        "json": ready(ours, json_gets),
        "binary": ready(ours, binary_gets),
        "batch": ready(ours, batches, BATCH_IDS),
        "miss": ready(cold, misses, BATCH_IDS, MISS_CONNECTIONS),
        "single_miss": ready(cold, [get(f"/embed/{id_}") for id_ in ids]),
    }
    for name, gets, kind in (("raw_json", json_gets, JSON), ("raw_binary", binary_gets, BINARY)):
        body = room / f"{name}.body"
        body.write_bytes(answer(ours, f"/embed/{cached[0]}", kind))
        contenders[name] = ready(stack.enter_context(peer(room / name, "raw", str(body), kind)), gets)
    redis_url = stack.enter_context(redis(room / "redis"))
    if redis_url is None:
        track.reporter.say("  redis-server, or redis for Python, is not installed: vs_naive is left out")
    else:
        (room / "ids.json").write_bytes(orjson.dumps(cached))
        np.save(room / "vectors.npy", release.embeddings.vectors_ue[:n_cached])
        files = str(room / "ids.json"), str(room / "vectors.npy")
        contenders["naive"] = ready(stack.enter_context(peer(room / "naive", "naive", redis_url, *files)), json_gets)

    some = cached[:_COMPARED]
    for name, server in (("json", ours), ("single_miss", cold)):
        agree(name, [orjson.loads(answer(server, f"/embed/{id_}"))["embedding"] for id_ in some], known_ue)
    agree("binary", [np.frombuffer(answer(ours, f"/embed/{id_}", BINARY), "<f4") for id_ in some], known_ue)
    for name, server in (("batch", ours), ("miss", cold)):
        items = orjson.loads(answer(server, "/v1/embeddings", body=_batch(some)))["data"]
        agree(name, [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in items], known_ue)
    if "naive" in contenders:
        agree("naive", [orjson.loads(answer(contenders["naive"].server, f"/embed/{id_}")) for id_ in some], known_ue)
    for name, kind in (("raw_json", JSON), ("raw_binary", BINARY)):
        if answer(contenders[name].server, "/") != answer(ours, f"/embed/{cached[0]}", kind):
            raise LurmError(f"serve: {name} answers other bytes than lurm, expected the same. No ratio is told")
    return contenders


def _race(
    track: Track, contenders: Mapping[str, Contender], load: Drive, turn_s: float
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Timings, and how busy servers and load were; contenders alternate, each has as many requests every turn."""
    n_asked = {}
    for name, asked in contenders.items():
        n = len(asked.requests)
        n_asked[name] = max(n, int(n / load(asked, n).seconds * turn_s))
    turns: dict[str, list[tuple[float, float, float | None, int | None]]] = {name: [] for name in contenders}
    for number in range(track.rounds):
        for name, asked in contenders.items():
            before_s = asked.server.cpu_s()
            made = load(asked, n_asked[name])
            after_s = asked.server.cpu_s()
            server_s = None if before_s is None or after_s is None else after_s - before_s
            turns[name].append((made.seconds, made.cpu_s, server_s, asked.server.resident_bytes()))
            rate = n_asked[name] / made.seconds
            track.reporter.say(f"  {name}, turn {number + 1} of {track.rounds}: {rate:,.0f} requests/s")
    timings, facts = {}, {}
    for name, asked in contenders.items():
        resident = max((n_bytes for *_, n_bytes in turns[name] if n_bytes is not None), default=None)
        timings[name] = Timing([seconds for seconds, *_ in turns[name]], n_asked[name] * asked.n_rows, resident)
        seconds, load_s, server_s, _ = min(turns[name])
        facts[f"{name}_load_cpu"] = load_s / seconds
        if server_s is None:
            continue
        facts[f"{name}_server_cpu"] = server_s / seconds
        facts[f"{name}_server_us"] = min(one[2] for one in turns[name] if one[2] is not None) / n_asked[name] * 1e6
        if server_s / seconds < _BUSY:
            track.reporter.say(
                f"  {name}: its server was busy for {server_s / seconds:.0%} of its fastest turn (the load "
                f"{load_s / seconds:.0%}): the machine or the load was the limit, not the server"
            )
    return timings, facts


def _latencies(
    name: str, asked: Contender, load: Drive, rate_per_s: float, rounds: int, turn_s: float
) -> dict[str, float]:
    """Median and 99th percentile of the better turns of a contender at this rate, in ms."""
    n = max(int(rate_per_s * turn_s), len(asked.requests))
    percentiles = [
        np.percentile(load(asked, n, arrivals(n, rate_per_s, np.random.default_rng(turn))).latency_n, (50, 99)) * 1e3
        for turn in range(rounds)
    ]
    p50_ms, p99_ms = np.min(percentiles, axis=0).tolist()
    return {f"{name}_open_per_s": rate_per_s, f"{name}_p50_ms": p50_ms, f"{name}_p99_ms": p99_ms}


def agree(name: str, answered: Sequence[object], known_ue: NDArray[np.float32]) -> None:
    """Compare the embeddings a contender answered with those that were published.

    Raises:
        LurmError: they differ by more than rounding.
    """
    answered_ue = np.array(answered, np.float32)
    if answered_ue.shape != known_ue.shape or not np.allclose(answered_ue, known_ue, rtol=0, atol=_TOLERANCE):
        raise LurmError(f"serve: {name} answers other embeddings than were published. No ratio is told")


def _batches(ids: Sequence[str]) -> list[bytes]:
    """Requests for all of them, but for what is left of the last batch."""
    starts = range(0, len(ids) - BATCH_IDS + 1, BATCH_IDS)
    return [post("/v1/embeddings", _batch(ids[at : at + BATCH_IDS])) for at in starts]


def _batch(ids: Sequence[str]) -> bytes:
    return orjson.dumps({"input": list(ids), "encoding_format": "base64"})
