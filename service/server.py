"""Runs the application: binds, opens, announces, serves with one process or several, drains, ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import logging.config
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from uvicorn import Config, Server
from uvicorn.config import STARTUP_FAILURE

import lurm
from lurm.allocator import keep_freed_memory
from lurm.console import emit
from lurm.errors import UsageError
from lurm.live.place import left_behind
from lurm.release import Release, held_through
from lurm.settings import Settings
from service import logs
from service.app import create_app
from service.bootstrap import cache_for, live_of
from service.drain import DRAIN_S, Workers
from service.keys import read_keys
from service.protocol import GuardedProtocol
from service.releases import Source, vetting
from service.tracing import tracing_for

_log = logging.getLogger(__name__)
_BACKLOG = 2048
_PATIENCE_S = 60  # with a worker that does not answer its parent: it may still be loading libraries


def run(settings: Settings, *, as_json: bool = False) -> None:
    """Serve a release until SIGTERM or Ctrl-C and the drain; open requests are finished first.

    Args:
        settings: where to listen, what to serve.
        as_json: say so as one JSON document on stdout, too.

    Raises:
        UsageError: the address cannot be listened on.
        ArtifactError: there is no release, or it is damaged, or the live events are, or the ledger of erasures.
        SettingsError: LURM_REDIS_URL, LURM_LIVE_URL, LURM_OTEL_ENDPOINT or the API keys cannot be used.
        Unavailable: the Redis of live events does not answer.
    """
    with _listen(settings.host, settings.port) as listener:
        source = Source(settings.artifacts_dir)
        release = source.open(settings.release)
        cache_for(settings)  # what is wrong with it is said here, not by every worker
        if (tracing := tracing_for(settings)) is not None:  # likewise
            tracing.close()
        n_keys = len(read_keys(settings))
        local = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
        if settings.drain_s is None:  # nobody balances load between this process and others who cannot be reached
            settings = settings.model_copy(update={"drain_s": 0.0 if local else DRAIN_S})
        signal.signal(signal.SIGTERM, _end)
        logging.config.dictConfig(logs.configuration(settings.log_level))
        live_store = asyncio.run(_live_store(settings))
        if not n_keys and not local:
            _log.warning(
                "LURM_HOST lets other machines in and no API keys are configured, so all of them may ask anything; "
                "make keys with `lurm key` and name their file in LURM_API_KEYS_FILE"
            )
        _announce(listener, release, as_json=as_json)
        release_id = release.release_id
        del release  # whoever serves opens it again, and can let it go for another
        if settings.workers == 1:
            _run_here(settings, listener, source, release_id)
        else:
            _run_workers(settings, listener, source, release_id, live_store)


async def _live_store(settings: Settings) -> str:
    """The store of live events, begun here for all; what is wrong with it, or with the ledger, is said here, too."""
    held = functools.partial(held_through, settings.artifacts_dir)
    if behind := left_behind(settings.live_folder, settings.live_url, held):
        _log.warning("%s; %s", *behind)
    async with live_of(settings) as live:
        return live.events.store_id


def _run_here(settings: Settings, listener: socket.socket, source: Source, release_id: str) -> None:
    keep_freed_memory()
    server = Server(Config(create_app(settings, source, release_id), **_options(settings)))
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when it has drained
        server.run(sockets=[listener])


def _run_workers(settings: Settings, listener: socket.socket, source: Source, release_id: str, live_store: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="lurm-workers-") as folder,
        vetting(source, release_id, Path(folder), pinned=settings.release is not None),
    ):
        # prometheus_client asks the environment, when it is imported, where the workers share their metrics.
        environment = Path(folder) / "environment"
        environment.write_text(f"PROMETHEUS_MULTIPROC_DIR={folder}\n")
        app = functools.partial(_worker_app, settings, Path(folder), live_store)
        options = _options(settings) | {"env_file": environment, "workers": settings.workers}
        config = Config(app, factory=True, **options)
        Workers(config, sockets=[listener]).run()


def _worker_app(settings: Settings, shared: Path, live_store: str) -> Any:
    keep_freed_memory()
    source = Source(settings.artifacts_dir, sound=shared)
    try:
        return create_app(settings, source, source.wanted() or "", shared_metrics=shared, live_store=live_store)
    except Exception as error:
        _log.error("the server process did not start", exc_info=error)
        raise SystemExit(STARTUP_FAILURE) from None


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "http": GuardedProtocol,
        "ws": "none",
        "lifespan": "on",
        "log_config": logs.configuration(settings.log_level),
        "access_log": False,  # paths hold user ids
        "server_header": False,
        "proxy_headers": False,
        "backlog": _BACKLOG,
        "timeout_graceful_shutdown": settings.shutdown_s,
        "timeout_worker_healthcheck": _PATIENCE_S,
    }


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that clients that come while the release is being opened wait instead of failing."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --host and --port"
        ) from error


def _announce(listener: socket.socket, release: Release, *, as_json: bool) -> None:
    """Say where, and on a terminal what to try. Elsewhere lines are kept, and must not hold a user id."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if as_json:
        emit({"url": url, "release": release.release_id, "space_id": release.space_id}, as_json=True)
    line = f"lurm {lurm.__version__} serves {release.name!r} ({len(release.history):,} users) at {url}"
    if not sys.stderr.isatty():
        _log.info("%s, docs at %s/docs", line, url)
        return
    somebody = quote(release.history.users[0], safe="")
    users = f"{url}/v1/users/{somebody}"
    tries = (f"{url}/embed/{somebody}", f"{users}/interests", f"'{users}/neighbors?k=5'")
    lines = [line, *(f"  curl {one}" for one in tries), f"  {url}/docs", ""]
    sys.stderr.write("\n".join(lines))


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)
