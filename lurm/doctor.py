"""Looks at this machine as a build and a service will: what is well, what is not, and what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lurm.errors import LurmError, SettingsError
from lurm.settings import Settings

# Distribution -> module, of the libraries that bring native code and so can be installed and still not load.
NATIVE = {
    "numpy": "numpy",
    "scipy": "scipy.sparse",
    "pyarrow": "pyarrow",
    "polars": "polars",
    "orjson": "orjson",
    "xxhash": "xxhash",
    "faiss-cpu": "faiss",
    "safetensors": "safetensors",
    "torch": "torch",
}
MIN_FREE_BYTES = 2**30
COMFORTABLE_FREE_BYTES = 10 * 2**30
COMFORTABLE_MEMORY_BYTES = 2 * 2**30
REDIS_PATIENCE_MS = 2_000


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what was looked at.
        verdict: "fail" means that builds or answers will fail; "warn" that they will be slow, or that
            something expected later is not there yet.
        found: what is.
        advice: what to do; empty when all is well.
    """

    name: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


Checks = Callable[[Settings], Iterator[Check]]


def examine(settings: Settings, further: Iterable[Checks] = ()) -> Iterator[Check]:
    """Every check in order, each yielded as soon as it is known (torch alone takes seconds to load).

    Args:
        settings: of this machine.
        further: what those who stand on lurm look at.
    """
    yield check_python()
    for distribution, module in NATIVE.items():
        yield check_library(distribution, module)
    yield check_cores(settings.threads)
    yield check_memory(settings.memory_limit_bytes)
    yield check_disk(settings.artifacts_dir)
    yield check_writable(settings.artifacts_dir)
    yield check_release(settings.artifacts_dir, settings.release)
    yield check_redis(settings.redis_url)
    yield check_live(settings.live_folder, settings.live_url, settings.artifacts_dir)
    for checks in further:
        yield from checks(settings)


def check_python() -> Check:
    """Which interpreter this is; installation refuses one that is too old."""
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def check_library(distribution: str, module: str) -> Check:
    """A library is installed and its native code loads here."""
    try:
        importlib.import_module(module)
        return Check(distribution, "ok", importlib.metadata.version(distribution))
    except (ImportError, OSError) as error:
        reinstall = f"pip install --force-reinstall {distribution}"
        return Check(distribution, "fail", f"does not load: {error}", f"install it again: {reinstall}")


def check_cores(threads: int) -> Check:
    """Numeric code gets more than one core."""
    found = f"{threads} of {os.cpu_count()} cores"
    if threads < 2:
        return Check("cores", "warn", found, "builds will be slow; allow more cores, or raise LURM_THREADS")
    return Check("cores", "ok", found)


def check_memory(limit_bytes: int) -> Check:
    """A build may hold enough memory to be fast."""
    found = f"a build may hold {_gib(limit_bytes)}"
    if limit_bytes < COMFORTABLE_MEMORY_BYTES:
        advice = f"below {_gib(COMFORTABLE_MEMORY_BYTES)} builds spill early; raise LURM_MEMORY_LIMIT_BYTES"
        return Check("memory", "warn", found, advice)
    return Check("memory", "ok", found)


def check_disk(artifacts_dir: Path) -> Check:
    """There is room for a release where releases go."""
    free = shutil.disk_usage(_existing(artifacts_dir)).free
    found = f"{_gib(free)} free at {artifacts_dir}"
    advice = "free some space: a build needs about twice the size of its event log in Parquet"
    if free < MIN_FREE_BYTES:
        return Check("disk", "fail", found, advice)
    if free < COMFORTABLE_FREE_BYTES:
        return Check("disk", "warn", found, advice)
    return Check("disk", "ok", found)


def check_writable(artifacts_dir: Path) -> Check:
    """A build may write releases; a service only reads them."""
    there = next(path for path in (artifacts_dir, *artifacts_dir.absolute().parents) if path.exists())
    if not there.is_dir():
        advice = "set LURM_ARTIFACTS_DIR to a folder, or to a new name in one"
        return Check("artifacts", "fail", f"{there} is no folder, and releases go to {artifacts_dir}", advice)
    found = f"{artifacts_dir} is writable" if there == artifacts_dir else f"{artifacts_dir} can be created"
    try:
        with tempfile.TemporaryFile(dir=there):
            return Check("artifacts", "ok", found)
    except OSError as error:
        advice = "enough for serving; to build, make it writable or set LURM_ARTIFACTS_DIR elsewhere"
        return Check("artifacts", "warn", f"cannot write to {there}: {error.strerror}", advice)


def check_release(artifacts_dir: Path, release_id: str | None) -> Check:
    """The release that would be served opens, and every byte of it is as published."""
    try:
        # Here, since it loads the libraries whose absence a doctor must survive.
        from lurm.release import Release, current, list_releases

        if release_id is None and current(artifacts_dir) is None and not list_releases(artifacts_dir):
            return Check("release", "warn", f"none yet in {artifacts_dir}", "lurm build PATH makes one")
        release = Release.open(artifacts_dir, release_id, verify=True)
    except ImportError as error:
        return Check("release", "fail", f"cannot be opened: {error}", "install the libraries above first")
    except LurmError as error:
        advice = (
            "lurm release list shows all, lurm release activate ID makes one active, lurm release rollback goes back, "
            "lurm build PATH makes another"
        )
        return Check("release", "fail", str(error), advice)
    return Check("release", "ok", f"{release.release_id}, every byte as published")


def check_redis(url: str | None) -> Check:
    """The configured Redis answers as a cache; without one the service computes what it could have cached."""
    if url is None:
        return Check("redis", "ok", "not configured; embeddings are cached in memory")
    try:
        # Here, since it loads the libraries whose absence a doctor must survive.
        from lurm.cache import Miss, Provenance, RedisCache

        async def look_up() -> object:
            cache = RedisCache(url, timeout_ms=REDIS_PATIENCE_MS, ttl_s=1)
            try:
                return (await cache.get_many([Provenance(user_id="", base="", seq=0, space_id="")]))[0]
            finally:
                await cache.close()

        if asyncio.run(look_up()) is Miss.ABSENT:
            return Check("redis", "ok", "answers")
    except (ImportError, SettingsError) as error:
        return Check("redis", "fail", str(error), "correct or unset LURM_REDIS_URL, or install what is missing")
    found = f"no usable answer within {REDIS_PATIENCE_MS} ms"
    advice = "start it, or correct address and password in LURM_REDIS_URL; until then all embeddings are computed"
    return Check("redis", "warn", found, advice)


def check_live(folder: Path, url: str | None, root: Path) -> Check:
    """Live events and the ledger of erasures open, as before a service starts, and have room; none are begun."""
    try:
        # Here, since it loads the libraries whose absence a doctor must survive.
        from lurm.erasure import LedgerCorrupt, ledger_of
        from lurm.live import Unavailable
        from lurm.live.place import is_begun, left_behind, open_live
        from lurm.release import held_through

        held = functools.partial(held_through, root)

        async def why_not(place: Path) -> str | None:
            is_begun_here = place == folder
            async with open_live(place, url, held, store_id=None if is_begun_here else "") as live:
                if not is_begun_here and await live.events.last():
                    raise LedgerCorrupt(f"Redis holds live events, and {folder} no ledger of erasures; put it back")
                try:
                    await live.written_to()[0].ensure_room()
                except Unavailable as error:
                    return live.why_not or str(error)
                return None

        with contextlib.ExitStack() as opened:
            place, found = folder, f"{folder} opens"
            ledger_of(folder, root)
            if not is_begun(folder, None):
                found = "none yet, and can be begun"
                place = Path(opened.enter_context(tempfile.TemporaryDirectory(dir=_existing(folder))))
            refused = (asyncio.run(why_not(place)) or "").replace(str(place), str(folder))
    except (ImportError, LurmError) as error:
        advice = "mend it, or correct LURM_LIVE_URL and LURM_LIVE_DIR; until then `lurm serve` does not start"
        return Check("live", "fail", str(error), advice)
    except OSError as error:
        refused = f"{folder} cannot be written to ({error.strerror}); set LURM_LIVE_DIR"
    if refused:
        return Check("live", "warn", refused, "until then a service takes neither events nor erasures")
    if behind := left_behind(folder, url, held):
        return Check("live", "warn", *behind)
    return Check("live", "ok", found)


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(there for there in (path, *path.absolute().parents) if there.is_dir())


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"
