"""`lurm embed`, `lurm key` and `lurm serve` from the command line."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis
import typer
from typer.testing import CliRunner, Result

from lurm.erasure import Ledger
from lurm.errors import ArtifactMissing, DataError, SettingsError, UsageError
from lurm.events import Event
from lurm.history import HistoryBatch
from lurm.live import Arriving, Unavailable
from lurm.live.redis import PREFIX, RedisLiveEvents
from lurm.release import Release
from lurm.settings import load
from service.__main__ import register
from service.offline import histories_now
from tests.conftest import RedisServer


def run(*words: str) -> Result:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def events_file(folder: Path, release: Release, user_id: str, name: str) -> Path:
    base, own = release.history, release.history.history(user_id)
    lines = [
        {
            "user_id": name,
            "item_id": base.items[int(own.item_rows[at])],
            "timestamp": int(own.timestamps[at]),
            "behavior": base.behaviors[int(own.behavior_rows[at])],
            "value": float(own.values[at]),
            "location": base.locations[int(own.location_rows[at])] if own.location_rows[at] >= 0 else "",
        }
        for at in range(len(own))
    ]
    file = folder / "events.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return file


def test_embed_prints_what_the_encoder_says(release_root: Path, release: Release, tmp_path: Path) -> None:
    ids = [release.history.users[at] for at in range(3)]
    file = events_file(tmp_path, release, ids[0], "stranger")
    result = run("embed", *ids, "--events", str(file), "--artifacts-dir", str(release_root), "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["unknown"] == []
    assert [row["user_id"] for row in answer["embeddings"]] == [*ids, "stranger"]
    expected = release.encoder.embed(HistoryBatch.of([release.history.history(one) for one in ids]))
    found = np.array([row["embedding"] for row in answer["embeddings"]], np.float32)
    assert np.abs(found[:3] - expected).max() < 1e-5
    assert np.abs(found[3] - expected[0]).max() < 1e-5
    assert answer["embeddings"][3]["n_events"] == len(release.history.history(ids[0]))


def test_nothing_is_embedded_without_live_events_that_cannot_be_read(
    release_root: Path, release: Release, start_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    store, ledger = start_redis("--appendonly", "yes"), Ledger.open(tmp_path)
    known, other = release.history.users.take(np.arange(2))

    async def append() -> None:
        live = await RedisLiveEvents.open(store.url, ledger)
        await live.append([Arriving(Event(known, "i", "view", release.history.watermark), None)])
        await live.close()

    asyncio.run(append())
    config = load({"artifacts_dir": release_root, "live_dir": tmp_path, "live_url": store.url})
    (one, _), _ = histories_now(release, [known, other], config)
    assert len(one) == release.history.tail(known) + 1
    with redis.Redis.from_url(store.url) as plain:
        plain.set(f"{PREFIX}u:{ledger.digest(other).hex()}", "not a hash")
    with pytest.raises(Unavailable):
        histories_now(release, [known, other], config)


def test_events_of_a_file_need_nothing_of_what_came_live(
    release_root: Path, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LURM_LIVE_DIR", str(tmp_path / "live"))
    monkeypatch.setenv("LURM_LIVE_URL", "redis://127.0.0.1:1")  # where nobody answers
    words = ("--artifacts-dir", str(release_root), "--json")
    known = release.history.users[0]
    told = json.loads(run("embed", "--events", str(events_file(tmp_path, release, known, "new")), *words).stdout)
    assert [one["user_id"] for one in told["embeddings"]] == ["new"]
    assert not (tmp_path / "live").exists()
    with pytest.raises(Unavailable):
        run("embed", known, *words)


def test_why_live_events_cannot_be_read_is_said(release_root: Path, release: Release, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    live = {"live_dir": tmp_path / "file" / "live", "live_url": "redis://127.0.0.1:1"}  # which is never asked
    config = load({"artifacts_dir": release_root, **live})
    with pytest.raises(Unavailable, match=f"; {live['live_dir']} cannot be written to .*; set LURM_LIVE_DIR$"):
        histories_now(release, [release.history.users[0]], config)


def test_embed_in_words_is_one_line_a_user(release_root: Path, release: Release) -> None:
    ids = [release.history.users[at] for at in range(3)]
    lines = run("embed", *ids, "--artifacts-dir", str(release_root)).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ids


def test_unknown_users_are_named_and_the_others_still_embedded(release_root: Path, release: Release) -> None:
    known = release.history.users[0]
    result = run("embed", "nobody", known, "--artifacts-dir", str(release_root), "--json")
    assert result.exit_code == 3
    answer = json.loads(result.stdout)
    assert answer["unknown"] == ["nobody"]
    assert [row["user_id"] for row in answer["embeddings"]] == [known]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"item_id": "a", "timestamp": 0}', "user_id: Field required"),
        ('{"user_id": "u", "item_id": "a", "timestamp": "soon"}', "timestamp: not a moment"),
        ('{"user_id": "u", "item_id": "a", "timestamp": 1293840000}', "timestamp: lies before 1980"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_line_is_named(release_root: Path, tmp_path: Path, line: str, complaint: str) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text('{"user_id": "u", "item_id": "a", "timestamp": 0}\n' + line)
    with pytest.raises(DataError, match=f"line 2: {complaint}"):
        run("embed", "--events", str(file), "--artifacts-dir", str(release_root))


def test_what_cannot_be_done_is_said(release_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="whom"):
        run("embed", "--artifacts-dir", str(release_root))
    with pytest.raises(DataError, match="cannot be read"):
        run("embed", "--events", str(tmp_path / "nowhere"), "--artifacts-dir", str(release_root))
    with pytest.raises(ArtifactMissing, match="lurm build"):
        run("embed", "x", "--artifacts-dir", str(tmp_path))


def test_key_shows_a_new_key_once_and_its_line() -> None:
    answer = json.loads(run("key", "etl", "--scope", "read", "--scope", "export", "--rate", "100", "--json").stdout)
    assert answer.keys() == {"name", "key", "line"}
    digest = hashlib.sha256(answer["key"].encode()).hexdigest()
    assert answer["line"].split() == ["etl", "read,export", digest, "100"]
    lines = run("key", "etl", "--scope", "read").stdout.splitlines()
    (secret,) = [line for line in lines if line.startswith("lurm_")]
    assert lines[-1].split() == ["etl", "read", hashlib.sha256(secret.encode()).hexdigest()]


@pytest.mark.parametrize("words", [["etl"], ["etl", "--scope", "reed"], ["e t l", "--scope", "read"]])
def test_key_says_what_it_expected(words: list[str]) -> None:
    with pytest.raises(UsageError, match=r"read, write, admin|letters"):
        run("key", *words)


def test_serve_says_what_is_missing_before_it_starts(
    release_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtifactMissing, match="lurm build"):
        run("serve", "--artifacts-dir", str(tmp_path), "--port", "0")
    with pytest.raises(SettingsError, match=r"LURM_REDIS_URL = .*no Redis URL"):
        run("serve", "--artifacts-dir", str(release_root), "--port", "0", "--redis-url", "http://localhost")
    monkeypatch.setenv("LURM_API_KEYS", "somebody read")
    with pytest.raises(SettingsError, match="LURM_API_KEYS line 1: it has 2 words, expected: name"):
        run("serve", "--artifacts-dir", str(release_root), "--port", "0")
    monkeypatch.delenv("LURM_API_KEYS")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(UsageError, match=r"cannot listen on 127\.0\.0\.1 port"):
            run("serve", "--artifacts-dir", str(release_root), "--port", port)
