"""The container files, as far as they can be checked without an engine."""

from __future__ import annotations

import asyncio
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import yaml

from lurm import definitions, jobs
from lurm.cache import CachedEmbedding, Miss, Provenance, RedisCache
from lurm.settings import PREFIX, Settings
from service.drain import DRAIN_S


@pytest.fixture
def dockerfile(repository: Path) -> list[tuple[str, str]]:
    """Instructions and their arguments, continuation lines joined."""
    text = (repository / "docker/Dockerfile").read_text()
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


@pytest.fixture
def compose(repository: Path) -> dict[str, Any]:
    return yaml.safe_load((repository / "docker/compose.yaml").read_text())


def test_every_copied_path_exists_and_enters_the_build(dockerfile: list[tuple[str, str]], repository: Path) -> None:
    copies = [words.split() for name, words in dockerfile if name == "COPY"]
    sources = [source for words in copies if not words[0].startswith("--from") for source in words[:-1]]
    assert {"pyproject.toml", "lurm", "service", "training"} <= set(sources)
    ignored = (repository / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for source in sources:
        assert (repository / source).exists(), source
        assert f"!{source}" in ignored, f"{source} never reaches the build"


def test_nothing_of_a_checkout_but_the_product_enters_the_build(repository: Path) -> None:
    allowed = [line[1:] for line in (repository / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in (".git", ".venv", "artifacts", "tests", "lurm.toml", ".env"):
        assert not any(fnmatch(name, pattern) for pattern in allowed)


def test_what_runs_is_a_later_stage_than_what_builds(dockerfile: list[tuple[str, str]]) -> None:
    stages = [words for name, words in dockerfile if name == "FROM"]
    assert len(stages) == 2
    last = dockerfile[[name for name, _ in dockerfile].index("FROM", 3) :]
    assert any(name == "COPY" and "--from=build" in words for name, words in last)
    assert not any("pip" in words for name, words in last if name == "RUN")


def test_the_image_serves_as_nobody_in_particular(dockerfile: list[tuple[str, str]]) -> None:
    users = [words for name, words in dockerfile if name == "USER"]
    assert users
    assert int(users[-1]) >= 1000, "a number, so that an orchestrator can see it is not root"
    health = next(words for name, words in dockerfile if name == "HEALTHCHECK")
    assert "/health/ready" in health
    assert ("EXPOSE", "8000") in dockerfile
    assert ("VOLUME", "/artifacts /live") in dockerfile


def test_every_variable_is_a_setting(dockerfile: list[tuple[str, str]], compose: dict[str, Any]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    image = [pair for name, words in dockerfile if name == "ENV" for pair in words.split()]
    given = {pair.split("=")[0] for pair in image if pair.startswith(PREFIX)}
    given |= set(compose["services"]["lurm"]["environment"])
    assert {"LURM_ARTIFACTS_DIR", "LURM_HOST", "LURM_REDIS_URL"} <= given <= known


def test_every_service_is_locked_down(compose: dict[str, Any], repository: Path) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    lurm, cache = compose["services"]["lurm"], compose["services"]["redis"]
    assert lurm["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert "/tmp" in lurm["tmpfs"]
    assert all(port.startswith("127.0.0.1:") for port in lurm["ports"])
    assert (repository / "docker" / lurm["build"]["context"] / lurm["build"]["dockerfile"]).is_file()
    # nobody reaches the cache but lurm
    assert "ports" not in cache
    assert cache["networks"] == ["cache"]
    assert compose["networks"]["cache"] == {"internal": True}
    assert cache["user"] != "root"


def test_what_a_server_writes_is_mounted_writable_and_no_more(compose: dict[str, Any]) -> None:
    mounts = compose["services"]["lurm"]["volumes"]
    assert {one["target"]: one.get("read_only", False) for one in mounts} == {
        "/artifacts": True,
        f"/artifacts/{definitions.FOLDER}": False,
        f"/artifacts/{jobs.FOLDER}": False,
        "/live": False,  # where commands on the host look for the ledger by default, or a build brings the erased back
    }
    assert Settings.model_validate({"artifacts_dir": "somewhere"}).live_folder == Path("somewhere/live")
    for one in mounts:
        assert one["source"] == "${ARTIFACTS:-../artifacts}" + one["target"].removeprefix("/artifacts")


def test_open_requests_may_finish(compose: dict[str, Any]) -> None:
    grace_s = int(compose["services"]["lurm"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > DRAIN_S + Settings.model_fields["shutdown_s"].default


@pytest.fixture
def cache(start_redis: Callable[..., Any], compose: dict[str, Any], repository: Path) -> Iterator[redis.Redis]:
    """A real Redis with the options of the compose file."""
    mounted, target, _ = compose["services"]["redis"]["volumes"][0].split(":")
    command = compose["services"]["redis"]["command"]
    assert command[:2] == ["redis-server", target]
    server = start_redis(*command[2:], config=repository / "docker" / mounted)
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        yield client


def test_redis_is_a_bounded_cache_that_writes_nothing(cache: redis.Redis, compose: dict[str, Any]) -> None:
    def configured(name: str) -> str:
        return str(cache.config_get(name)[name])

    assert configured("maxmemory-policy") == "allkeys-lru"
    assert int(configured("maxmemory")) == 256 * 2**20
    assert (configured("save"), configured("appendonly")) == ("", "no")
    assert int(compose["services"]["redis"]["mem_limit"].removesuffix("m")) * 2**20 > 256 * 2**20


def test_redis_does_all_a_cache_needs(cache: redis.Redis) -> None:
    provenance = Provenance(user_id="u1", base="b", seq=3, space_id="s")
    embedding = CachedEmbedding(np.array([0.6, 0.8], np.float32), n_events=3, as_of=1)

    async def put_and_get() -> tuple[int, CachedEmbedding | Miss]:
        through = RedisCache(f"unix://{cache.get_connection_kwargs()['path']}", timeout_ms=2_000, ttl_s=60)
        refused = await through.put_many([(provenance, embedding)])
        (found,) = await through.get_many([provenance])
        await through.close()
        return refused, found

    refused, found = asyncio.run(put_and_get())
    assert refused == 0
    assert isinstance(found, CachedEmbedding)
    assert found.vector_e.tolist() == embedding.vector_e.tolist()


@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("CONFIG", "SET", "dir", "/etc"),
        ("MONITOR",),
        ("EVAL", "return 1", "0"),
        ("SHUTDOWN",),
        ("REPLICAOF", "elsewhere", "6379"),
        ("KEYS", "*"),
    ],
)
def test_redis_refuses_what_no_cache_needs(cache: redis.Redis, command: tuple[str, ...]) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        cache.execute_command(*command)


def test_redis_alone_is_closed_to_other_machines(repository: Path) -> None:
    lines = (repository / "docker/redis.conf").read_text().splitlines()
    assert "protected-mode yes" in lines
    assert "bind 127.0.0.1 -::1" in lines


def test_ci_starts_with_a_shell_that_understands_it(repository: Path) -> None:
    subprocess.run(["/bin/bash", "-n", repository / ".ci/run"], check=True)


def test_the_image_installs_extras_that_there_are(repository: Path) -> None:
    named = set(re.findall(r"extras\['(\w+)'\]", (repository / "docker/Dockerfile").read_text()))
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert named == {"redis", "evaluate", "otel"}
    assert named <= extras.keys()
