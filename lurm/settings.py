"""Every ``LURM_*`` variable: meaning, unit, bounds, default. The only reader of the environment.

Order of precedence: command-line flag > environment > ``lurm.toml`` in the working folder > default.
Hyper-parameters are not settings: they live in the config class beside their model and in the recipe.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from lurm.errors import SettingsError

PREFIX = "LURM_"
FILE = Path("lurm.toml")

_THREADS_OF_LIBRARIES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_CGROUP_LIMITS = (  # version 2, version 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_BYTES = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*$", re.IGNORECASE)
_IN_AUTHORITY, _IN_QUERY = re.compile(r"(?<=://).*@"), re.compile(r"([?&][^=&]*=)[^&#]*")
_IN_EITHER = re.compile(r"(?<=://).*\?.*@.*")  # a password with a ? or a query with an @
_REDIS, _REDIS_SCHEMES = ("live_url", "stream_url", "redis_url"), ("redis://", "rediss://", "unix://")
_SECRET = {"api_keys", *_REDIS}
_SCALE = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class Settings(BaseSettings):
    """How lurm runs on this machine; one frozen object, read once at a front door and passed on."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    artifacts_dir: Path = Field(Path("artifacts"), description="Folder of stages, releases and the current pointer.")
    data: Path | None = Field(None, description="Folder of real datasets; read by optional tests and benchmarks alone.")
    memory_limit_bytes: int = Field(
        default_factory=lambda: int(_memory_bytes() * 0.6),
        ge=128 * 2**20,
        description="Memory a build may hold before it spills to disk, in bytes; 4G and 512M are understood. "
        "Default: 60 % of this machine, or of what its container is allowed.",
    )
    threads: int = Field(
        default_factory=lambda: _cores(),
        ge=1,
        le=1024,
        description="Threads of numeric code in one process. Default: the cores this process may use.",
    )
    live_dir: Path | None = Field(
        None,
        description="Folder of live events and of the ledger of erasures; builds read it, too. Default: live, in the "
        "folder of artifacts.",
    )
    live_url: str | None = Field(
        None,
        description="Redis that keeps live events where several hosts serve, e.g. redis://host:6379/1. Default: a "
        "SQLite file in LURM_LIVE_DIR, for the processes of one host.",
    )
    live_lookup_ms: int = Field(
        100,
        ge=1,
        le=2_000,
        description="Longest wait of an answer for that Redis, in ms; past it the answer is without the newest events.",
    )
    stream_url: str | None = Field(
        None, description="Redis whose stream of events `lurm consume` reads, e.g. redis://host:6379/2."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level logged.")

    host: str = Field("127.0.0.1", description="Address `lurm serve` listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port `lurm serve` listens on; 0 takes a free one.")
    workers: int = Field(1, ge=1, le=256, description="Server processes; they share the mapped release.")
    release: str | None = Field(
        None, description="Release id to serve. Default: the current one, and the next when it moves."
    )

    api_keys_file: Path | None = Field(
        None,
        description="File of API keys, one a line as `lurm key` prints it, followed as it changes: to revoke a key, "
        "remove its line. Default: no keys, everything is open.",
    )
    api_keys: SecretStr | None = Field(
        None, description="The same lines, with `;` between them; hashes of keys, never keys."
    )
    rate_limit: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Requests per second with one key to one server process, inputs of a batch counted singly. "
        "Past it: 429. A rate in the key's own line goes before. Default: no limit.",
    )

    otel_endpoint: str | None = Field(
        None,
        description="Collector of OpenTelemetry (OTLP over HTTP) that is told of every request, e.g. "
        "http://collector:4318; needs lurm[otel]. Default: no tracing.",
    )

    redis_url: str | None = Field(
        None, description="Redis used as embedding cache, e.g. redis://host:6379/0. Default: in-memory cache."
    )
    redis_timeout_ms: int = Field(
        20, ge=1, le=10_000, description="Longest wait for Redis, in ms; past it the answer is computed."
    )
    cache_bytes: int = Field(
        256 * 2**20,
        ge=0,
        description="Bound of the in-memory cache, in bytes; 256M is understood. 0 turns it off.",
    )
    near_cache_bytes: int = Field(
        16 * 2**20,
        ge=0,
        description="Bound of what a process keeps at hand of the Redis cache, in bytes; 16M is understood. 0 turns it "
        "off. As every cached value it is compared before it is used.",
    )
    cache_ttl_s: int = Field(86_400, ge=1, description="Lifetime of a cached embedding in Redis, in seconds.")

    audience_seeds: int = Field(
        100,
        ge=2,
        description="Fewest seeds of a lookalike audience, two or more, fewest users, if any, whom a filter leaves for "
        "it or for a saved one, and fewest people who share a reason that is told. What "
        "audiences share, and who came and went with a release, is not told where it, or sizes beside it, would count "
        "some users, and fewer; nor are values of attributes, and their parts of a mix. Lists stay lists: who is in an "
        "audience is told to whoever may read, and sizes of several questions can be taken from each other.",
    )

    job_users: int = Field(
        5_000_000, ge=0, description="Users of a release beyond which an audience is a job, unless the request says."
    )
    jobs: int = Field(16, ge=1, le=1000, description="Jobs that may wait or run at a time. Past it: 429.")
    jobs_kept: int = Field(
        100, ge=1, le=100_000, description="Jobs that are kept after their end; the oldest go first."
    )
    job_ttl_s: int = Field(
        86_400, ge=1, description="How long a job and its result are kept after its end, in seconds."
    )

    batch_users: int = Field(64, ge=1, le=4096, description="Most users one encoder call embeds.")
    batch_events: int = Field(
        100_000, ge=1, description="Most events of theirs, about 6 ms of work; a longer history is alone in its call."
    )
    batch_wait_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Longest a request waits for others to share a batch, in ms; whatever waits "
        "when the encoder gets free shares one anyway.",
    )
    queue_users: int = Field(1024, ge=1, description="Users waiting for the encoder before requests get 429.")
    request_timeout_s: float = Field(10.0, gt=0, le=600, description="Deadline of one request, in seconds.")
    request_users: int = Field(1000, ge=1, le=100_000, description="Most inputs of one POST /v1/embeddings.")
    request_events: int = Field(
        50_000, ge=1, le=10_000_000, description="Most inline events of one POST /v1/embeddings."
    )
    exports: int = Field(2, ge=1, le=64, description="Most exports of one server process at a time; past it: 429.")
    body_bytes: int = Field(
        8 * 2**20, ge=1024, description="Largest request body, in bytes; 8M is understood. Past it: 413."
    )
    drain_s: float | None = Field(
        None,
        ge=0,
        le=600,
        description="How long requests are answered after SIGTERM, in seconds, while /health/ready says no and answers "
        "close their connections. Default: 5, or 0 where LURM_HOST is a loopback address.",
    )
    shutdown_s: int = Field(
        20, ge=1, le=600, description="How long open requests may finish after SIGTERM and the drain, in seconds."
    )

    @property
    def live_folder(self) -> Path:
        """Where live events and the ledger of erasures are."""
        return self.live_dir or self.artifacts_dir / "live"

    @field_validator("memory_limit_bytes", "cache_bytes", "near_cache_bytes", "body_bytes", mode="before")
    @classmethod
    def _bytes(cls, value: object) -> object:
        if isinstance(value, str):
            match = _BYTES.match(value)
            if not match:
                raise ValueError(f"{value!r} is not a number of bytes; write 4G, 512M or 1048576")
            return int(float(match[1]) * _SCALE[match[2].lower()])
        return value

    @field_validator(*_REDIS, mode="after")
    @classmethod
    def _redis(cls, url: str | None) -> str | None:
        if url and not url.startswith(_REDIS_SCHEMES):
            raise ValueError("no Redis URL; expected redis://host:6379/0, rediss://host:6379/0 or unix:///path")
        return url

    @field_validator("artifacts_dir", "data", "live_dir", "api_keys_file", mode="after")
    @classmethod
    def _at_home(cls, path: Path | None) -> Path | None:
        """Where ``~`` leads, which no shell has seen in a variable or a file."""
        try:
            return path and path.expanduser()
        except RuntimeError:
            raise ValueError("nobody knows where ~ is; write the folder in full") from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags and the environment only; ``load`` merges the file beneath them."""
        return init_settings, env_settings


@contextmanager
def one_thread_per_child() -> Iterator[None]:
    """Processes started within take one thread for numeric work; two that each take all cores are ten times slower.

    Numeric libraries read this when they are loaded; limits set later do not reach all of them.
    """
    before = {name: os.environ.get(name) for name in _THREADS_OF_LIBRARIES}
    os.environ.update(dict.fromkeys(_THREADS_OF_LIBRARIES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def environment_of(**settings: object) -> dict[str, str]:
    """The environment for a process that is to have these settings (names in lower case), and no other of ours."""
    others = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    return others | {PREFIX + name.upper(): str(value) for name, value in settings.items()}


def load(overrides: Mapping[str, Any] | None = None, *, file: Path = FILE) -> Settings:
    """Settings from flags, the environment, the file and the defaults.

    Args:
        overrides: values of command-line flags by setting name; None values count as not given.
        file: a TOML file with setting names (without prefix, lower case) at its top level; may be absent.

    Raises:
        SettingsError: an unknown name (with a did-you-mean), a malformed file or a value out of bounds.
    """
    known = list(Settings.model_fields)
    from_file = _read_file(file)
    for name in from_file:
        if name not in known:
            raise SettingsError(f"unknown setting {name} in {file}; {_hint(name, known)}")
    for variable in _variables():
        if _field_of(variable) not in known:
            hint = _hint(_field_of(variable), known, PREFIX)
            raise SettingsError(f"unknown setting {variable} in the environment; {hint}")
    in_environment = _in_environment()
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    beneath = {name: value for name, value in from_file.items() if name not in in_environment}
    try:
        return Settings(**{**beneath, **given})
    except ValidationError as error:
        problems = [
            f"{PREFIX}{str(e['loc'][0]).upper()} = {_told(e['loc'][0], e['input'])}: {e['msg']}"
            for e in error.errors()
            if e["loc"]
        ]
        raise SettingsError("; ".join(problems) + ". See `lurm config`.") from error


def describe(settings: Settings, *, file: Path = FILE) -> list[dict[str, Any]]:
    """One row per setting: variable, value, default, source, description; secrets in URLs are hidden.

    ``source`` is "environment", "file" or "default": what decides the value where no flag does.
    """
    in_environment, in_file = _in_environment(), _read_file(file)
    return [
        {
            "variable": PREFIX + name.upper(),
            "value": _shown(getattr(settings, name)),
            "default": _shown(field.get_default(call_default_factory=True)),
            "source": "environment" if name in in_environment else "file" if name in in_file else "default",
            "description": field.description,
        }
        for name, field in Settings.model_fields.items()
    ]


def markdown() -> str:
    """The table of every setting for the documentation; the same on every machine."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        fixed = "" if field.default is None else f"`{_shown(field.default)}`"
        default = "by machine" if field.default_factory else fixed
        lines.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join([*lines, ""])


def _told(name: int | str, value: object) -> str:
    """A value that was refused, unless it is nobody's business."""
    return "***" if name in _SECRET else repr(value)


def _shown(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return "***"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return _IN_QUERY.sub(r"\1***", _IN_AUTHORITY.sub("***@", _IN_EITHER.sub("***", value)))
    return value


def _variables() -> list[str]:
    """The names in the environment that claim to be ours, in whatever case they were written."""
    return [variable for variable in os.environ if variable.upper().startswith(PREFIX)]


def _in_environment() -> set[str]:
    """Settings the environment gives a value; an empty variable counts as not set."""
    return {_field_of(variable) for variable in _variables() if os.environ[variable]}


def _field_of(variable: str) -> str:
    return variable[len(PREFIX) :].lower()


def _memory_bytes(limits: Sequence[Path] = _CGROUP_LIMITS) -> int:
    """Memory of this machine, or of its container where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = [limit.read_text().strip() for limit in limits if limit.is_file()]
    return min([machine, *(int(n_bytes) for n_bytes in allowed if n_bytes.isdigit())])


def _cores() -> int:
    """Cores this process may use; all of them where the system cannot tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not TOML: {error}") from error


def _hint(name: str, known: Sequence[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, known, n=1)
    told = (prefix + near[0]).upper() if prefix and near else "".join(near)
    return f"did you mean {told}?" if near else "`lurm config` lists them all."
