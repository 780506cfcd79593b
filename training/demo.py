"""The main job end to end, told to a person: a log, a build, a service, and what the service knows."""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lurm import settings
from lurm.console import own_command
from lurm.dataset import Dataset
from lurm.errors import LurmError
from lurm.progress import TerminalReporter
from lurm.release import Release
from training import pipeline, recipes
from training.recipes import Recipe
from training.world import Truth, WorldConfig, simulate
from training.world.verdict import judge

_START_S = 60.0
_SHOWN = 6
_PIPE_COLUMNS = 118
_BARS = "▁▂▃▄▅▆▇█"


def show(path: Path | None, recipe: str | None, folder: Path, *, keep_serving: bool, as_json: bool) -> dict[str, Any]:
    """Build a release of a dataset (a simulated world by default), serve it and print what it answers.

    Returns:
        the answers, by question.

    Raises:
        LurmError: a step failed.
    """
    started = time.monotonic()
    reporter = TerminalReporter()
    console = Console(stderr=as_json, highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    is_simulated = path is None
    if path is None:
        path = folder / "world"
        if not (path / "dataset.toml").is_file():
            reporter.say("simulate a world:")
            simulate(path, WorldConfig(), reporter=reporter)
    dataset = Dataset.open(path, recipe=recipes.read(recipe) if recipe else None)
    config = settings.load()
    root = folder / "artifacts" / re.sub(r"[^\w-]+", "-", dataset.name)
    built = pipeline.build(
        dataset,
        root,
        recipe=Recipe.of(dataset.extra),
        memory_limit_bytes=config.memory_limit_bytes,
        threads=config.threads,
        reporter=reporter,
    )
    with _serving(root, reporter) as url:
        release = Release.open(root, verify=False)
        user_id = _someone(release)
        answers = _ask(url, user_id)
        _print(console, dataset.name, built.metrics, user_id, answers)
        if is_simulated:
            verdict = judge(release, Truth.load(path))
            answers["planted_truth"] = {**asdict(verdict), "lift": verdict.lift}
            console.print(
                "\n[bold]Against the planted truth[/] of this world: its groups of items are recovered with an adjusted"
                f"\n  Rand index of {verdict.adjusted_rand:.3f}; {verdict.neighbor_share:.0%} of neighbours share the "
                f"planted main interest, {verdict.lift:.1f} times chance"
            )
        console.print(f"\n[bold]Done[/] in {time.monotonic() - started:.0f} s. To serve this release yourself:")
        console.print(f"  {own_command()} serve --artifacts-dir {shlex.quote(str(root))}", markup=False, soft_wrap=True)
        if keep_serving:
            reporter.say(f"serving at {url} until Ctrl-C")
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(3600)
    return {"release": built.release_id, "user_id": user_id, **answers}


@contextlib.contextmanager
def _serving(root: Path, reporter: TerminalReporter) -> Iterator[str]:
    """The URL of a service of our own that has said it is ready; stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "lurm", "serve", "--artifacts-dir", str(root), "--port", str(port)]
    reporter.say(f"serve: {url}")
    with subprocess.Popen([*command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
        try:
            _await_ready(url, server)
            yield url
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.communicate(timeout=30)
            server.kill()


def _await_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    with httpx.Client() as client:
        while time.monotonic() < deadline:
            if server.poll() is not None:
                said = server.stderr.read().decode(errors="replace")[-2000:] if server.stderr else ""
                raise LurmError(f"the service ended with code {server.returncode} before it was ready:\n{said}")
            with contextlib.suppress(httpx.TransportError):
                if client.get(f"{url}/health/ready", timeout=2.0).status_code == 200:
                    return
            time.sleep(0.1)
    raise LurmError(f"the service at {url} was not ready after {_START_S:.0f} s")


def _someone(release: Release) -> str:
    """A user with more events than three quarters of the others, but no outlier."""
    n_events = release.embeddings.n_events
    goal = np.quantile(n_events, 0.8)
    return release.history.users[int(np.argmin(np.abs(n_events - goal)))]


def _ask(url: str, user_id: str) -> dict[str, Any]:
    """Every question of the demo, and its answer as the service gave it."""
    with httpx.Client(base_url=url, timeout=30.0) as client:

        def get(path: str, **query: Any) -> Any:
            response = client.get(path.format(quote(user_id, safe="")), params=query)
            response.raise_for_status()
            return orjson.loads(response.content)

        interests = get("/v1/users/{}/interests", k=_SHOWN)
        first = get("/embed/{}")
        asked = time.perf_counter()
        again = get("/embed/{}")
        took_ms = (time.perf_counter() - asked) * 1000
        return {
            "info": get("/info"),
            "embedding": first,
            "embedding_again": {
                "source": again["source"],
                "ms": took_ms,
                "equal": again["embedding"] == first["embedding"],
            },
            "interests": interests["interests"],
            "neighbors": get("/v1/users/{}/neighbors", k=_SHOWN)["neighbors"],
        }


def _print(console: Console, name: str, facts: dict[str, Any], user_id: str, answers: dict[str, Any]) -> None:
    embedding = answers["embedding"]
    console.print(
        f"\n[bold]{escape(name)}[/]: {facts['n_users']:,} users, {facts['n_events']:,} events, "
        f"{facts['n_items']:,} items in {facts['n_interests']:,} interests"
    )
    console.print(
        f"\n[bold]Who is {escape(user_id)}?[/] {embedding['n_events']} events, the last on {embedding['as_of'][:10]}"
    )
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("interest", ratio=1, no_wrap=True)
    table.add_column("share", justify="right", min_width=5)
    table.add_column("last 12 × 30 days", min_width=17, no_wrap=True)
    table.add_column("for example", ratio=1, no_wrap=True)
    for interest in answers["interests"]:
        examples = "; ".join(interest["titles"][:2])
        trend = _sparkline(interest["trend"])
        table.add_row(escape(interest["description"]), f"{interest['share']:.0%}", trend, escape(examples))
    console.print(table)
    console.print("\n[bold]Who is like them?[/]")
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("user", no_wrap=True, max_width=30)
    table.add_column("cosine", justify="right", min_width=6)
    table.add_column("interests they share", ratio=1, no_wrap=True)
    for neighbor in answers["neighbors"]:
        shared = " | ".join(i["description"] for i in neighbor["shared_interests"][:3])
        table.add_row(escape(neighbor["user_id"]), f"{neighbor['score']:.3f}", escape(shared))
    console.print(table)
    head = ", ".join(f"{x:+.3f}" for x in embedding["embedding"][:5])
    again = answers["embedding_again"]
    same = "the same" if again["equal"] else "DIFFERENT"
    console.print(
        f"\n[bold]Their vector[/] {embedding['dim']} numbers of unit length in space {embedding['space_id']}:"
    )
    console.print(f"  [{head}, …]", markup=False)
    console.print(f"  asked again: from the {again['source']} in {again['ms']:.1f} ms, {same}")
    console.print("\n[bold]Ask it yourself[/] while `lurm serve` runs:")
    base, quoted = "http://127.0.0.1:8000", quote(user_id, safe="")
    body = orjson.dumps({"input": [user_id]}).decode()
    for line in (
        f"curl {base}/embed/{quoted}",
        f"curl '{base}/v1/users/{quoted}/interests?k=5'",
        f"curl '{base}/v1/users/{quoted}/neighbors?k=5'",
        f"curl {base}/v1/embeddings -H 'content-type: application/json' -d {shlex.quote(body)}",
    ):
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _sparkline(counts: list[int]) -> str:
    top = max(counts, default=0)
    return "".join(_BARS[round(n / top * (len(_BARS) - 1))] if n else " " for n in counts) if top else ""
