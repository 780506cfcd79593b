"""Keys: what a line may say, what is refused and with which words, who gets in, how often."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lurm.errors import SettingsError, UsageError
from lurm.settings import describe, load
from service.keys import PUBLIC, SCOPES, Bucket, Key, Keys, charge, needed_by, needs, new_key, public, read_keys
from service.problems import Forbidden, RateLimited, Unauthorized, respond
from service.telemetry import Telemetry

ABSENT = Path("no-such-file.toml")
DIGEST, OTHER = "ab" * 32, "cd" * 32
SECRET = "s3cret-of-somebody"


class Clock:
    """Monotonic seconds, when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def keys_of(text: str, tmp_path: Path) -> list[Key]:
    file = tmp_path / "keys"
    file.write_text(text)
    return read_keys(load({"api_keys_file": file}, file=ABSENT))


def asked(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"headers": list(headers), "state": {}}


def bearer(secret: str) -> dict[str, Any]:
    return asked((b"authorization", f"Bearer {secret}".encode()))


def keys_with(
    *keys: Key, rate: float | None = None, telemetry: Telemetry | None = None, clock: Clock | None = None
) -> Keys:
    return Keys(keys, rate=rate, telemetry=telemetry or Telemetry(), clock=clock or Clock())


# -- lines -------------------------------------------------------------------------------------------------------


def test_a_file_and_a_variable_say_the_same_and_add_up(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who may come\n\nweb  read,write  {DIGEST}  12.5   # the website\r\n")
    found = read_keys(load({"api_keys_file": file, "api_keys": f"etl export {OTHER.upper()};"}, file=ABSENT))
    assert found == [
        Key("web", frozenset({"read", "write"}), bytes.fromhex(DIGEST), 12.5),
        Key("etl", frozenset({"export"}), bytes.fromhex(OTHER)),
    ]
    assert read_keys(load(file=ABSENT)) == []


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"web read {DIGEST}\n", encoding="utf-8-sig")
    assert [key.name for key in read_keys(load({"api_keys_file": file}, file=ABSENT))] == ["web"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (SECRET, "it has 1 words, expected: name"),
        (f"a read {DIGEST} 1 {SECRET}", "it has 5 words, expected: name"),
        (f"{SECRET}/ read {DIGEST}", "the name is not 1 to 64"),
        (f"{'x' * 65} read {DIGEST}", "the name is not 1 to 64"),
        (f"a read,{SECRET} {DIGEST}", "expected one or more of read, write, admin, export"),
        (f"a , {DIGEST}", "expected one or more of read, write, admin, export"),
        (f"a Read {DIGEST}", "expected one or more of read, write, admin, export"),
        (f"a read lurm_{SECRET}", "expected|not the 64 hexadecimal digits"),
        (f"a read {DIGEST}0", "not the 64 hexadecimal digits"),
        (f"a read {DIGEST} {SECRET}", "the rate is not a number"),
        (f"a read {DIGEST} 0", "the rate is not a number"),
        (f"a read {DIGEST} -1", "the rate is not a number"),
        (f"a read {DIGEST} inf", "the rate is not a number"),
        (f"a read {DIGEST} nan", "the rate is not a number"),
        (f"first read {OTHER}", "stands in an earlier line"),
        (f"other read {DIGEST[::-1].replace('ba', 'ab')}", "stands in an earlier line"),
    ],
)
def test_a_malformed_line_is_named_and_not_repeated(line: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=rf"LURM_API_KEYS_FILE line 3: .*({expected})") as refused:
        keys_of(f"# comment\nfirst read {DIGEST}\n{line}\n", tmp_path)
    assert SECRET not in str(refused.value)
    assert DIGEST not in str(refused.value)


def test_an_entry_of_the_variable_is_named_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LURM_API_KEYS", f"a read {DIGEST}; b reed {OTHER}")
    with pytest.raises(SettingsError, match="LURM_API_KEYS line 2: a scope is unknown"):
        read_keys(load(file=ABSENT))


@pytest.mark.parametrize("text", ["", "\n\n", "# a read " + DIGEST])
def test_a_file_without_a_key_does_not_open_the_door(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LURM_API_KEYS_FILE holds no key"):
        keys_of(text, tmp_path)


def test_a_file_that_cannot_be_read_does_not_open_the_door(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LURM_API_KEYS_FILE cannot be read: No such file"):
        read_keys(load({"api_keys_file": tmp_path / "nowhere"}, file=ABSENT))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="LURM_API_KEYS_FILE cannot be read: it is not UTF-8"):
        read_keys(load({"api_keys_file": tmp_path / "bytes"}, file=ABSENT))


@pytest.mark.parametrize("twice", [f"a write {OTHER}", f"b read {DIGEST}"])
def test_a_key_stands_in_one_place(twice: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"a read {DIGEST}")
    with pytest.raises(SettingsError, match="both LURM_API_KEYS_FILE and LURM_API_KEYS"):
        read_keys(load({"api_keys_file": tmp_path / "keys", "api_keys": twice}, file=ABSENT))


def test_settings_show_no_hash(tmp_path: Path) -> None:
    settings = load({"api_keys": f"a read {DIGEST}"}, file=ABSENT)
    assert DIGEST not in repr(settings) + str(describe(settings, file=ABSENT))
    file = tmp_path / "lurm.toml"
    file.write_text(f'api_keys = ["a read {DIGEST}"]')
    with pytest.raises(SettingsError, match=r"LURM_API_KEYS = \*\*\*: ") as refused:
        load(file=file)
    assert DIGEST not in str(refused.value)


def test_a_new_key_is_random_and_its_line_lets_it_in(tmp_path: Path) -> None:
    secret, made = new_key("web", ["write", "read"], 12.5)
    other, _ = new_key("web", ["read"])
    assert secret != other
    assert len(secret) >= 43
    assert secret not in made.line
    assert made.line.split()[1:] == ["read,write", hashlib.sha256(secret.encode()).hexdigest(), "12.5"]
    (read,) = keys_of(made.line, tmp_path)
    assert read == made
    keys_with(read).admit("write", bearer(secret))


def test_a_strange_scope_is_named_to_who_asks_for_it() -> None:
    with pytest.raises(UsageError, match="no scope 'erase', expected one or more of read, write, "):
        new_key("web", ["read", "erase"])
    assert new_key("web", ["read,write"])[1].scopes == {"read", "write"}


@pytest.mark.parametrize(
    ("name", "scopes", "rate"), [("a b", ["read"], None), ("a", ["reed"], None), ("a", ["read"], 0.0)]
)
def test_a_key_that_could_not_be_read_back_is_not_made(name: str, scopes: list[str], rate: float | None) -> None:
    with pytest.raises(UsageError, match=r"expected|is not"):
        new_key(name, scopes, rate)


# -- who gets in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer %s")],
        [(b"authorization", b"bearer   %s ")],
        [(b"x-api-key", b"%s")],
        [(b"authorization", b"Basic abc"), (b"x-api-key", b"%s")],
    ],
)
def test_a_key_comes_in_either_header(headers: list[tuple[bytes, bytes]]) -> None:
    secret, key = new_key("web", ["read"])
    filled = [(name, value % secret.encode() if b"%s" in value else value) for name, value in headers]
    keys_with(key).admit("read", asked(*filled))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Basic %s")],
        [(b"authorization", b"%s")],
        [(b"authorization", b"Bearer x%s")],
        [(b"authorization", b"Bearer \xff\x00")],
        [(b"x-api-key", b"")],
        [(b"x-api-key", "schlüssel".encode())],
    ],
)
def test_no_key_and_a_wrong_key_are_401_and_neither_is_repeated(headers: list[tuple[bytes, bytes]]) -> None:
    secret, key = new_key("web", ["read"])
    filled = [(name, value.replace(b"%s", secret.encode())) for name, value in headers]
    with pytest.raises(Unauthorized) as refused:
        keys_with(key).admit("read", asked(*filled))
    answer = respond(refused.value, "id")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert secret not in str(refused.value)


def test_the_hash_itself_is_no_key() -> None:
    _, key = new_key("web", ["read"])
    with pytest.raises(Unauthorized):
        keys_with(key).admit("read", bearer(key.digest.hex()))


def test_a_scope_opens_itself_and_nothing_else() -> None:
    for own in SCOPES:
        secret, key = new_key(own, [own])
        keys = keys_with(new_key("first", ["read"])[1], key, new_key("last", ["read"])[1])
        for needed in SCOPES:
            if needed == own:
                keys.admit(needed, bearer(secret))
            else:
                with pytest.raises(Forbidden, match=f"lacks the scope {needed}"):
                    keys.admit(needed, bearer(secret))


def test_without_keys_everybody_may_do_what_routes_declare() -> None:
    for needed in (*SCOPES, PUBLIC):
        keys_with().admit(needed, asked())


def test_what_declares_nothing_is_closed_to_everybody() -> None:
    secret, key = new_key("all", SCOPES)
    for keys in (keys_with(), keys_with(key)):
        with pytest.raises(Forbidden, match="declares no scope"):
            keys.admit(None, bearer(secret))


def test_a_declaration_stands_on_the_endpoint() -> None:
    class Route:
        def __init__(self, **parts: object) -> None:
            self.__dict__ |= parts

    async def endpoint() -> None: ...

    assert needed_by(Route(endpoint=endpoint)) is None
    assert needs("write")(endpoint) is endpoint
    assert needed_by(Route(endpoint=endpoint, app=object())) == "write"
    assert needed_by(Route(app=public(Route()))) == PUBLIC
    assert needed_by(Route()) is None


# -- how often ---------------------------------------------------------------------------------------------------


def test_a_bucket_lets_through_a_burst_and_then_its_rate() -> None:
    clock = Clock()
    bucket = Bucket(4.0, clock)
    assert [bucket.take() for _ in range(5)] == [0, 0, 0, 0, 0.25]
    clock.now += 0.25
    assert [bucket.take(), bucket.take()] == [0, 0.25]
    clock.now += 3600
    assert sum(bucket.take() == 0 for _ in range(100)) == 4, "an hour of silence saves up no more than a second"


def test_a_rate_below_one_still_lets_one_through() -> None:
    clock = Clock()
    bucket = Bucket(0.1, clock)
    assert bucket.take() == 0
    assert bucket.take() == pytest.approx(10)
    clock.now += 10.001
    assert bucket.take() == 0


def test_each_key_has_a_rate_and_a_bucket_of_its_own() -> None:
    clock, telemetry = Clock(), Telemetry()
    slow, slow_key = new_key("slow", ["read"], 1)
    usual, usual_key = new_key("usual", ["read"])
    keys = keys_with(slow_key, usual_key, rate=2, telemetry=telemetry, clock=clock)

    def n_admitted(secret: str) -> int:
        n = 0
        for _ in range(5):
            try:
                keys.admit("read", bearer(secret))
                n += 1
            except RateLimited as refused:
                answer = respond(refused, "id")
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        return n

    assert (n_admitted(slow), n_admitted(usual)) == (1, 2)
    clock.now += 10
    assert (n_admitted(slow), n_admitted(usual)) == (1, 2)
    told = telemetry.exposition().decode()
    assert 'lurm_http_refusals_total{key="slow",reason="rate"} 8.0' in told
    assert 'lurm_http_refusals_total{key="usual",reason="rate"} 6.0' in told
    assert slow not in told


def test_a_batch_counts_as_many_requests_as_it_has_inputs() -> None:
    clock = Clock()
    keys = keys_with(rate=10, clock=clock)
    batch = asked()
    keys.admit("read", batch)
    charge(batch, 29)
    with pytest.raises(RateLimited) as refused:
        keys.admit("read", asked())
    assert refused.value.retry_after_s == pytest.approx(2.1)
    clock.now += 2.11
    keys.admit("read", asked())


def test_keys_that_stay_have_as_much_left_as_before() -> None:
    clock = Clock()
    stays, stays_key = new_key("stays", ["read"], 1)
    slower, slower_key = new_key("slower", ["read"], 1)
    gone, gone_key = new_key("gone", ["read"])
    keys = keys_with(stays_key, slower_key, gone_key, clock=clock)
    keys.admit("read", bearer(stays))
    keys.admit("read", bearer(slower))
    keys.hold([stays_key, replace(slower_key, rate=0.5)])
    with pytest.raises(RateLimited):
        keys.admit("read", bearer(stays))
    keys.admit("read", bearer(slower))
    with pytest.raises(Unauthorized):
        keys.admit("read", bearer(gone))


def test_public_routes_are_not_limited_and_cost_nothing() -> None:
    keys = keys_with(rate=1)
    for _ in range(10):
        keys.admit(PUBLIC, asked())
    keys.admit("read", asked())
    charge(asked(), 5)  # nobody is charged for what no rate holds for


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "many"])
def test_a_rate_for_all_is_a_number_above_0(rate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LURM_RATE_LIMIT", rate)
    with pytest.raises(SettingsError, match="LURM_RATE_LIMIT"):
        load(file=ABSENT)
