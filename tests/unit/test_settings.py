"""Settings: who wins, what is refused and with which words, what is shown."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pydantic
import pytest

from lurm.errors import SettingsError
from lurm.settings import PREFIX, Settings, _memory_bytes, describe, environment_of, load, markdown

ABSENT = Path("no-such-file.toml")
Toml = Callable[[str], Path]


@pytest.fixture
def toml(tmp_path: Path) -> Toml:
    def write(text: str) -> Path:
        file = tmp_path / "lurm.toml"
        file.write_text(text)
        return file

    return write


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(
    toml: Toml, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = toml("port = 1001\nworkers = 3\nqueue_users = 7\nrequest_users = 8")
    monkeypatch.setenv("LURM_PORT", "1002")
    monkeypatch.setenv("LURM_WORKERS", "4")
    found = load({"port": 1003, "request_users": 9}, file=file)
    assert (found.port, found.request_users) == (1003, 9)
    assert (found.workers, found.queue_users, found.batch_users) == (4, 7, 64)


def test_a_flag_that_was_not_given_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LURM_PORT", "1002")
    assert load({"port": None}, file=ABSENT).port == 1002


def test_an_empty_variable_is_no_variable(toml: Toml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LURM_PORT", "")
    assert load(file=toml("port = 1001")).port == 1001


def test_variables_are_known_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("lurm_port", "1002")
    assert load(file=ABSENT).port == 1002


def test_an_unknown_variable_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LURM_REDIS_ULR", "redis://h")
    with pytest.raises(SettingsError, match=r"LURM_REDIS_ULR in the environment; did you mean LURM_REDIS_URL\?"):
        load(file=ABSENT)


def test_an_unknown_name_in_the_file_is_refused_with_the_nearest_name(toml: Toml) -> None:
    with pytest.raises(SettingsError, match=r"setting prot in .*lurm.toml; did you mean port\?"):
        load(file=toml("prot = 1"))


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "lurm.toml").write_bytes(b"\xef\xbb\xbfport = 1001\n")
    assert load(file=tmp_path / "lurm.toml").port == 1001


def test_a_table_in_the_file_is_refused(toml: Toml) -> None:
    with pytest.raises(SettingsError, match="zzz"):
        load(file=toml("[zzz]\nport = 1"))


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe", b"port = 1\nport = 2"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "lurm.toml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"lurm.toml is not TOML"):
        load(file=file)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LURM_PORT", "65536"),
        ("LURM_PORT", "-1"),
        ("LURM_PORT", "http"),
        ("LURM_WORKERS", "0"),
        ("LURM_BATCH_WAIT_MS", "nan"),
        ("LURM_REQUEST_TIMEOUT_S", "inf"),
        ("LURM_REQUEST_TIMEOUT_S", "0"),
        ("LURM_LOG_LEVEL", "loud"),
        ("LURM_MEMORY_LIMIT_BYTES", "many"),
        ("LURM_CACHE_BYTES", "4 parsecs"),
        ("LURM_BODY_BYTES", "-1"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"{variable} = '{value}'"):
        load(file=ABSENT)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1048576", 2**20),
        ("512M", 2**29),
        ("4G", 2**32),
        ("4g", 2**32),
        ("4GiB", 2**32),
        ("1.5 GB", 3 * 2**29),
        ("2T", 2**41),
        ("300000k", 300_000 * 2**10),
    ],
)
def test_bytes_are_written_as_people_write_them(
    written: str, meant: int, toml: Toml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LURM_CACHE_BYTES", written)
    found = load({"memory_limit_bytes": 2**27}, file=toml(f'body_bytes = "{written}"'))
    assert (found.cache_bytes, found.body_bytes) == (meant, meant)


@pytest.mark.parametrize("name", ["artifacts_dir", "live_dir", "data", "api_keys_file"])
def test_a_folder_at_home_is_at_home(name: str, toml: Toml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert getattr(load(file=toml(f'{name} = "~/own"')), name) == tmp_path / "own"
    monkeypatch.setenv(f"LURM_{name.upper()}", "~/other")
    assert getattr(load(file=ABSENT), name) == tmp_path / "other"
    monkeypatch.setenv(f"LURM_{name.upper()}", "~nobody-of-this-name/own")
    with pytest.raises(SettingsError, match=r"nobody knows where ~ is; write the folder in full"):
        load(file=ABSENT)


@pytest.mark.parametrize("name", ["redis_url", "live_url", "stream_url"])
@pytest.mark.parametrize("url", ["hunter2@host:6379", "http://:hunter2@host", "hunter2"])
def test_what_is_no_redis_url_is_refused_when_it_is_read_and_kept_secret(
    name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LURM_{name.upper()}", url)
    with pytest.raises(SettingsError, match=rf"LURM_{name.upper()} = .*expected redis://host:6379/0") as caught:
        load(file=ABSENT)
    assert "hunter2" not in str(caught.value)


def test_settings_do_not_change_under_a_running_service() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load(file=ABSENT).port = 1


def test_describe_shows_every_setting_and_what_decided_it(toml: Toml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LURM_PORT", "1002")
    file = toml("workers = 3\nport = 1")
    rows = {row["variable"]: row for row in describe(load(file=file), file=file)}
    assert rows.keys() == {PREFIX + name.upper() for name in Settings.model_fields}
    shown = {name: (rows[name]["value"], rows[name]["source"]) for name in ("LURM_PORT", "LURM_WORKERS")}
    assert shown == {"LURM_PORT": (1002, "environment"), "LURM_WORKERS": (3, "file")}
    assert (rows["LURM_HOST"]["source"], rows["LURM_PORT"]["default"]) == ("default", 8000)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@host:6379/0",
        "rediss://:hunter2@host",
        "redis://:p@hunter2@host",
        "redis://host:6379/0?password=hunter2",
        "redis://:p#hunter2@host",
        "unix://:hunter2@/host.sock?password=hunter2",
    ],
)
def test_describe_hides_passwords(url: str) -> None:
    rows = {row["variable"]: row for row in describe(load({"redis_url": url}, file=ABSENT), file=ABSENT)}
    assert "hunter2" not in str(rows)
    assert "host" in rows["LURM_REDIS_URL"]["value"]


@pytest.mark.parametrize("url", ["redis://a?db=0&username=hunter2&password=p@hunter2", "redis://:p?hunter2@a"])
def test_describe_hides_all_where_a_password_may_be_anywhere(url: str) -> None:
    rows = {row["variable"]: row for row in describe(load({"redis_url": url}, file=ABSENT), file=ABSENT)}
    assert rows["LURM_REDIS_URL"]["value"] == "redis://***"


def test_the_documented_table_is_the_same_on_every_machine() -> None:
    table = markdown()
    this_machine = load(file=ABSENT)
    assert str(this_machine.memory_limit_bytes) not in table
    assert "| `LURM_THREADS` | by machine |" in table
    assert "| `LURM_REDIS_URL` |  |" in table
    assert "| `LURM_PORT` | `8000` |" in table


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_means_and_in_which_unit(name: str) -> None:
    meaning = Settings.model_fields[name].description
    assert meaning is not None
    assert meaning.endswith(".")
    units = {"_bytes": "bytes", "_ms": "in ms", "_s": "seconds"}
    for suffix, word in units.items():
        if name.endswith(suffix):
            assert word in meaning


def test_a_container_that_may_hold_less_than_the_machine_is_believed(tmp_path: Path) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    unlimited, small, absent = tmp_path / "max", tmp_path / "small", tmp_path / "absent"
    unlimited.write_text("max\n")
    small.write_text(f"{2**29}\n")
    assert _memory_bytes([absent]) == _memory_bytes([unlimited]) == machine
    assert _memory_bytes([unlimited, small]) == 2**29


def test_a_process_can_be_given_these_settings_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LURM_PORT", "1")
    monkeypatch.setenv("lurm_workers", "9")
    monkeypatch.setenv("ELSE", "x")
    given = environment_of(cache_bytes=0)
    assert {name: value for name, value in given.items() if name.upper().startswith(PREFIX)} == {
        "LURM_CACHE_BYTES": "0"
    }
    assert given["ELSE"] == "x"
