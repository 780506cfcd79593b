"""The methods of the client, against servers that answer as each test says: what it sends, what it makes of answers."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import resource
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lurm import client as surface
from lurm.client import AsyncClient, Client, with_event_ids
from lurm.client.answers import chunks
from lurm.errors import LurmError, ServiceError, UsageError
from tests.scripted import Ask, Asked, Ledger, Said, a_problem, as_json, batch, binary, embedding, info, scripted

EVENT = {"user_id": "u", "item_id": "i", "timestamp": "2024-03-01T12:00:00Z"}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))), st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_chunks_hold_everything_once_in_order_and_as_much_as_fits(
    weights: list[tuple[int, int]], most: tuple[int, int]
) -> None:
    cuts = list(chunks(weights, most))
    assert [at for cut in cuts for at in cut] == list(range(len(weights)))

    def fits(positions: range) -> bool:
        return all(sum(weights[at][of] for at in positions) <= most[of] for of in (0, 1))

    assert all(fits(cut) or len(cut) == 1 for cut in cuts)
    for cut, after in itertools.pairwise(cuts):
        assert not fits(range(cut.start, after.start + 1))  # the next would not have fitted


# -- what is sent -------------------------------------------------------------------------------------------------


def test_a_request_says_who_asks_and_for_whom(connect: Callable[..., Ask]) -> None:
    with scripted(lambda _: binary()) as server:
        for user_id in ("a/b c", "..", 42, "ü%"):
            url = server.url + "/lurm/"
            connect(httpx.URL(url) if user_id == 42 else url, api_key="k-1")("embed", user_id)
        asked = server.asked
    paths = ["/lurm/embed/a%2Fb%20c", "/lurm/embed/%2E%2E", "/lurm/embed/42", "/lurm/embed/%C3%BC%25"]
    assert [one.path for one in asked] == paths
    assert {one.headers["authorization"] for one in asked} == {"Bearer k-1"}
    assert {one.headers["accept"] for one in asked} == {"application/octet-stream"}
    assert "k-1" not in repr(Client(server.url, "k-1"))


def test_who_is_remembered_is_asked_about_only_whether_something_changed() -> None:
    said = iter([binary(etag='"1"'), Said(304, b"", {"ETag": '"1"'}), binary("t", '"2"'), binary(), binary()])
    with scripted(lambda _: next(said)) as server, Client(server.url, remember=1) as client:
        first, second, third = (client.embed("u") for _ in range(3))
        client.embed("v")
        client.embed("u")
        asked = [one.headers.get("if-none-match") for one in server.asked]
    assert first is second
    assert third.space_id == "t"
    assert asked == [None, '"1"', '"1"', None, None]  # "u" made room for "v"


@pytest.mark.parametrize("end", [b"", b"\xff\xff\xff\xff\0\0\0"])
def test_a_file_is_only_replaced_by_a_whole_stream(connect: Callable[..., Ask], tmp_path: Path, end: bytes) -> None:
    file = tmp_path / "all.arrows"
    file.write_bytes(b"what was there")
    facts = {"X-Lurm-Space-Id": "s", "X-Lurm-Release": "r", "X-Lurm-N-Users": "1"}
    arrow = {"Content-Type": "application/vnd.apache.arrow.stream", **facts}
    for said, told in (
        (Said(200, b"some rows" + end, arrow), f"breaks off after {9 + len(end)} bytes"),
        (Said(200, b"", arrow), "breaks off after 0 bytes"),
        (Said(200, b"<p>Hi", {"Content-Type": "text/html; charset=utf-8"}), "text/html came, expected an Arrow"),
        (Said(200, b"[]", {"Content-Type": "application/json"}), "application/json came"),
        (a_problem(403, "forbidden"), "403"),
    ):
        with scripted(lambda _, said=said: said) as server, pytest.raises(ServiceError, match=told):
            connect(server.url)("export", file)
    assert file.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [file]


def test_a_stream_that_was_refused_is_asked_for_again(connect: Callable[..., Ask], tmp_path: Path) -> None:
    facts = {"X-Lurm-Space-Id": "s", "X-Lurm-Release": "r", "X-Lurm-N-Users": "1"}
    body = b"rows" + b"\xff\xff\xff\xff\0\0\0\0"
    whole = Said(200, body, {"Content-Type": "application/vnd.apache.arrow.stream", **facts})
    said = iter([a_problem(429, "overloaded", **{"Retry-After": "0"}), whole])
    with scripted(lambda _: next(said)) as server:
        found = connect(server.url)("export", str(tmp_path / "all.arrows"))
    assert (found.path.read_bytes(), found.n_users) == (body, 1)


# -- many ---------------------------------------------------------------------------------------------------------


def test_many_ids_go_in_requests_as_large_as_the_service_takes(connect: Callable[..., Ask]) -> None:
    ids = [f"-{n}" if n % 7 == 0 else "x" * (1 + n % 5) for n in range(95)]
    with scripted(embedding) as server:
        many = connect(server.url)("embed_many", iter(ids))
        sizes = sorted(len(json.loads(one.body)["input"]) for one in server.asked if one.body)
    assert sizes == [5] + [10] * 9
    assert many.user_ids == ids
    assert (many.space_id, many.vectors_ne.shape, many.vectors_ne.dtype) == ("s", (95, 2), np.float32)
    assert many.found_n.tolist() == [not one.startswith("-") for one in ids]
    assert many.unknown_ids == [one for one in ids if one.startswith("-")]
    assert np.isnan(many.vectors_ne[~many.found_n]).all()
    assert many.vectors_ne[many.found_n, 0].tolist() == [len(one) for one in ids if not one.startswith("-")]
    assert many.vectors_ne[many.found_n, 1].tolist() == [at % 10 for at in range(95) if at % 7]


def test_a_body_is_never_longer_than_the_service_reads(connect: Callable[..., Ask]) -> None:
    with scripted(lambda asked: info(users=1000, n_bytes=1024) if asked.path == "/info" else batch(asked)) as server:
        many = connect(server.url)("embed_many", ["ü" * (n % 60 + 1) for n in range(500)])
        assert max(len(one.body) for one in server.asked) in range(900, 1025)
    assert many.vectors_ne[:, 0].tolist() == [n % 60 + 1 for n in range(500)]


def test_histories_are_counted_by_their_events(connect: Callable[..., Ask]) -> None:
    event = {"item_id": "i", "timestamp": 1_700_000_000_000}
    histories = {f"h{n}": [event] * n for n in (60, 30, 20, 90, 10)}
    with scripted(embedding) as server:
        many = connect(server.url)("embed_histories", histories)
        bodies = [json.loads(one.body)["input"] for one in server.asked if one.body]
    assert sorted([one["user_id"] for one in body] for body in bodies) == [["h20"], ["h60", "h30"], ["h90", "h10"]]
    assert many.user_ids == list(histories)


def test_nobody_is_embedded_by_asking_nobody(connect: Callable[..., Ask]) -> None:
    with scripted(embedding) as server:
        assert connect(server.url)("embed_many", []).vectors_ne.shape == (0, 2)
        assert connect(server.url)("embed_many", ["-1", "-2"]).vectors_ne.shape == (2, 2)


def test_requests_are_under_way_together(connect: Callable[..., Ask]) -> None:
    meeting = threading.Barrier(3)

    def answer(asked: Asked) -> Said:
        if asked.path != "/info":
            meeting.wait(20)  # breaks unless three are here at a time
        return embedding(asked)

    with scripted(answer) as server:
        assert connect(server.url, in_flight=3)("embed_many", ["u"] * 60).found_n.all()


def test_an_answer_is_of_one_space_though_the_release_changes_between_its_parts(connect: Callable[..., Ask]) -> None:
    order = itertools.count()

    def answer(asked: Asked) -> Said:
        if asked.path == "/info":
            return info("old")
        return batch(asked, "old" if next(order) < 4 else "new")

    with scripted(answer) as server:
        many = connect(server.url, in_flight=1)("embed_many", ["u" * (n % 9 + 1) for n in range(95)])
        assert len(server.asked) == 1 + 10 + 4  # the four odd ones again
    assert many.space_id == "new"
    assert many.vectors_ne[:, 0].tolist() == [n % 9 + 1 for n in range(95)]


def test_a_service_of_two_spaces_is_refused(connect: Callable[..., Ask]) -> None:
    order = itertools.count()
    with (
        scripted(lambda asked: info() if asked.path == "/info" else batch(asked, f"s{next(order)}")) as server,
        pytest.raises(ServiceError, match="changed its release"),
    ):
        connect(server.url)("embed_many", ["u"] * 20)


def test_one_failure_ends_the_whole(connect: Callable[..., Ask]) -> None:
    order = itertools.count()
    with (
        scripted(lambda asked: a_problem(500, "x") if next(order) == 5 else embedding(asked)) as server,
        pytest.raises(ServiceError, match=r"\(500\)"),
    ):
        connect(server.url)("embed_many", ["u"] * 1000)
    assert len(server.asked) < 101


def test_limits_that_changed_are_asked_for_again() -> None:
    users = iter([10, 5])

    def answer(asked: Asked) -> Said:
        if asked.path == "/info":
            return info(users=next(users))
        too_many = len(json.loads(asked.body)["input"]) > 5
        return a_problem(422, "malformed-request") if too_many else batch(asked)

    with scripted(answer) as server, Client(server.url) as client:
        with pytest.raises(UsageError):
            client.embed_many(["u"] * 20)
        assert client.embed_many(["u"] * 20).found_n.all()


# -- events and erasure -------------------------------------------------------------------------------------------


def test_events_get_receipts_in_their_order(connect: Callable[..., Ask]) -> None:
    ledger = Ledger(embedding)
    events = [EVENT | {"user_id": f"u{n % 3}", "event_id": f"e{n % 2000}"} for n in range(2500)]
    events[7] = {"user_id": "u", "item_id": "i"}
    with scripted(ledger) as server:
        receipts = connect(server.url)("send", events)
        sizes = [len(json.loads(one.body)["events"]) for one in server.asked]
    assert sizes == [1000, 1000, 500]
    assert [one.index for one in receipts.receipts] == list(range(2500))
    assert receipts.receipts[7].reason == "an event has a timestamp"
    fates = [one.status for one in receipts.receipts]
    counts = receipts.accepted, receipts.duplicate, receipts.late, receipts.rejected
    assert counts == tuple(fates.count(fate) for fate in ("accepted", "duplicate", "late", "rejected"))
    assert counts[2:] == (0, 1)
    assert receipts.accepted == len(ledger.seen) > 1999


def test_events_sent_again_because_the_answer_was_lost_count_once(connect: Callable[..., Ask]) -> None:
    ledger = Ledger(embedding)
    order = itertools.count()

    def answer(asked: Asked) -> Said:
        said = ledger(asked)
        return said if next(order) else Said(0)  # taken, and the connection lost

    with scripted(answer) as server:
        receipts = connect(server.url)("send", [EVENT] * 3)
        assert server.asked[0].body == server.asked[1].body
    assert (receipts.duplicate, len(ledger.seen)) == (3, 3)


def test_stamped_events_may_be_sent_again() -> None:
    stamped = with_event_ids([EVENT, EVENT, EVENT | {"event_id": "mine"}])
    assert len({one["event_id"] for one in stamped}) == 3
    assert stamped[2]["event_id"] == "mine"
    assert with_event_ids(stamped) == stamped
    assert "event_id" not in EVENT
    with scripted(Ledger(embedding)) as server, Client(server.url) as client:
        assert [client.send(stamped).accepted for _ in range(2)] == [3, 0]


def test_no_events_ask_nothing(connect: Callable[..., Ask]) -> None:
    with scripted(embedding) as server:
        assert connect(server.url)("send", []).receipts == []
        assert server.asked == []


def test_what_json_cannot_say_is_named_by_its_place(connect: Callable[..., Ask]) -> None:
    with scripted(embedding) as server:
        with pytest.raises(UsageError, match="event number 1 cannot"):
            connect(server.url)("send", [EVENT, EVENT | {"item_id": {1}}])
        with pytest.raises(UsageError, match="history number 0 cannot"):
            connect(server.url)("embed_histories", {"u": [{"item_id": {1}}]})


def test_numbers_of_numpy_and_datetimes_are_sent_as_they_are(connect: Callable[..., Ask]) -> None:
    moment = np.datetime64("2024-03-01T12:00:00", "ms")
    with scripted(Ledger(embedding)) as server:
        connect(server.url)("send", [EVENT | {"timestamp": moment.item(), "value": np.float32(0.5)}])
        (event,) = json.loads(server.asked[0].body)["events"]
    assert (event["timestamp"], event["value"]) == ("2024-03-01T12:00:00", 0.5)


def test_an_answer_with_other_receipts_is_no_answer(connect: Callable[..., Ask]) -> None:
    counts = dict.fromkeys(("accepted", "duplicate", "late", "rejected"), 0)
    with scripted(lambda _: as_json({"receipts": [], **counts})) as server, pytest.raises(ServiceError):
        connect(server.url)("send", [EVENT])


def test_erased_is_erased(connect: Callable[..., Ask]) -> None:
    ledger = Ledger(embedding)
    with scripted(ledger) as server:
        ask = connect(server.url)
        ask("send", [EVENT, EVENT | {"user_id": "v"}])
        assert (ask("erase", "u"), ask("erase", "u")) == (1, 0)
    assert [user_id for user_id, _ in ledger.seen] == ["v"]


def test_who_is_erased_is_forgotten_here_too() -> None:
    ledger = Ledger(lambda _: binary())
    with scripted(ledger) as server, Client(server.url, remember=9) as client:
        client.embed("u")
        client.erase("u")
        client.embed("u")
        assert "if-none-match" not in server.asked[-1].headers


# -- readiness, and the surface -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "ready"),
    [(Said(), True), (a_problem(503, "not-ready"), False), (a_problem(429, "overloaded"), False), (Said(0), False)],
)
def test_ready_asks_once(connect: Callable[..., Ask], said: Said, ready: bool) -> None:
    with scripted(lambda _: said) as server:
        assert connect(server.url)("ready") is ready
        assert len(server.asked) == 1


def test_ready_does_not_take_something_else_for_the_service(connect: Callable[..., Ask]) -> None:
    with scripted(lambda _: Said(404, b"nginx")) as server, pytest.raises(ServiceError):
        connect(server.url)("ready")


def test_both_clients_have_the_same_methods() -> None:
    ours = {"close", "aclose"}
    blocking, awaited = (
        {name for name in dir(kind) if not name.startswith("_")} - ours for kind in (Client, AsyncClient)
    )
    assert blocking == awaited
    assert all(getattr(Client, name).__doc__ for name in blocking)
    with Client("http://localhost") as client:
        assert client.embed.__doc__ == Client.embed.__doc__
        assert client.embed.__name__ == "embed"
        assert list(inspect.signature(client.interests).parameters) == ["user_id", "k"]


def test_the_surface_is_what_it_says() -> None:
    assert sorted(surface.__all__) == list(surface.__all__)
    assert all(getattr(surface, name).__doc__ for name in surface.__all__)
    with pytest.raises(AttributeError):
        surface.Nobody  # noqa: B018


def test_a_transport_of_ones_own_is_used() -> None:
    transport = httpx.WSGITransport(lambda _, start: (start("404 Not Found", []), [b""])[1])
    with Client("http://anywhere", transport=transport) as client, pytest.raises(ServiceError, match="404"):
        client.info()


@pytest.mark.parametrize(
    ("method", "arguments", "told"),
    [
        ("send", [EVENT], "events: found one dict, expected a list; put it in brackets"),
        ("send", ["abc"], "events: found one str, expected a list; put it in brackets"),
        ("send", [[["a", "b"]]], "events: number 0 is list, expected a dict each"),
        ("send", [None], "events: found NoneType, expected a list"),
        ("send", [pl.DataFrame([EVENT])], "events: number 0 is Series, expected a dict each"),
        ("embed_histories", [[EVENT]], "histories: found list, expected a dict of lists of events"),
        ("embed_histories", [{"a": [], "b": EVENT}], "history number 1: found one dict, expected a list"),
        ("embed_histories", [{"a": None}], "history number 0: found NoneType, expected a list"),
        ("embed_many", [None], "user ids: found NoneType, expected a list"),
        ("embed_many", [7], "user ids: found int, expected a list"),
        ("embed_many", [b"ab"], "user ids: found one bytes, expected a list"),
        ("embed_many", [bytearray(b"ab")], "user ids: found one bytearray, expected a list"),
        ("lookalikes", [memoryview(b"ab")], "seeds: found one memoryview, expected a list"),
        ("interests", ["u", "x"], "k is str, expected a whole number"),
        ("neighbors", ["u", None], "k is NoneType, expected a whole number"),
        ("neighbors", [None], "expected a user id, an embedding"),
        ("next", ["u", float("nan")], "k is float, expected a whole number"),
        ("forecast", ["u", "week"], "days is str, expected a whole number"),
        ("scenario", ["u", {"do": "add"}], "edits: found one dict, expected a list"),
        ("scenario", ["u", ["add"]], "edits: number 0 is str"),
        ("lookalikes", ["u"], "seeds: found one str, expected a list; put it in brackets"),
        ("lookalikes", [[None]], "a user id is NoneType"),
        ("start_lookalikes", [None], "seeds: found NoneType, expected a list"),
        ("save_audience", ["a", {"users": pl.DataFrame({"user_id": ["u"]})}], "rule number 0 cannot be sent as JSON"),
        ("save_audience", [7, {}], "the name of an audience is int, expected a string"),
        ("audience", [""], "the name of an audience is str, expected a string that is not empty"),
        ("members", ["a", "all"], "limit is str, expected a whole number"),
        ("overlap", [[1, 2]], "a name is int, expected a string"),
        ("job", [None], "the id of a job is NoneType, expected a string"),
        ("export", [None], "destination is NoneType, expected the name of a file"),
        ("export", ["/nonexistent/x.arrows"], r"^/nonexistent/x.arrows cannot be written \(No such file"),
        ("export", ["/"], "^/ cannot be written"),
        ("export", ["a\0b"], "cannot be written"),
    ],
)
def test_what_is_of_a_wrong_shape_is_said_before_it_is_sent(
    connect: Callable[..., Ask], method: str, arguments: list[Any], told: str
) -> None:
    with scripted(embedding) as server:
        with pytest.raises(UsageError, match=told):
            connect(server.url)(method, *arguments)
        assert server.asked == []


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.just(EVENT),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2) | st.just({"a"})
    ),
    max_leaves=4,
)


METHODS = sorted(name for name in dir(AsyncClient) if hasattr(Client, name) and not name.startswith("_"))


@given(st.sampled_from([name for name in METHODS if name != "drive"]), st.data())
def test_whatever_is_passed_an_error_is_one_of_ours(method: str, data: st.DataObject) -> None:
    """Here the service refuses whatever comes through."""
    told = {"type": "urn:lurm:problem:invalid", "title": "no", "status": 422, "detail": "no"}
    headers = {"content-type": "application/problem+json"}
    refusing = httpx.MockTransport(lambda _: httpx.Response(422, json=told, headers=headers))
    with Client("http://anywhere", transport=refusing) as client, contextlib.suppress(LurmError):
        call = getattr(client, method)
        taken = inspect.signature(call).parameters.values()
        named = {one.name: data.draw(anything) for one in taken if one.kind is one.KEYWORD_ONLY}
        call(*(data.draw(anything) for one in taken if one.kind < one.KEYWORD_ONLY), **named)


def test_ids_of_seeds_are_whatever_can_be_walked_through(connect: Callable[..., Ask]) -> None:
    refused = a_problem(422, "invalid")
    given_: list[Any] = [["a", "7"], {"a", 7}, pl.Series(["a", "7"]), np.array(["a", "7"]), (one for one in ("a", "7"))]
    for seeds in given_:
        with scripted(lambda _: refused) as server, pytest.raises(UsageError, match=r"^no\n"):
            connect(server.url)("lookalikes", seeds, exclude=pl.Series(["b"]), negatives={"c"})
        sent = json.loads(server.asked[0].body)
        assert (sorted(sent["seeds"]), sent["exclude"], sent["negatives"]) == (["7", "a"], ["b"], ["c"])
    with scripted(lambda _: refused) as server, pytest.raises(UsageError, match=r"^no\n"):
        connect(server.url)("lookalikes", [{"user_id": "a", "weight": 2.0}, np.int64(7)])
    assert json.loads(server.asked[0].body)["seeds"] == [{"user_id": "a", "weight": 2.0}, "7"]


def test_a_full_disk_is_said_and_leaves_nothing(connect: Callable[..., Ask]) -> None:
    facts = {"X-Lurm-Space-Id": "s", "X-Lurm-Release": "r", "X-Lurm-N-Users": "1"}
    with scripted(lambda _: Said(200, b"rows" * 2**20, facts)) as server, tempfile.TemporaryDirectory() as folder:
        was = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, was[1]))
        try:
            with pytest.raises(UsageError, match=r"users.arrows cannot be written \(File too large"):
                connect(server.url)("export", Path(folder) / "users.arrows")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, was)
        assert list(Path(folder).iterdir()) == []


def test_a_balanced_audience_brings_its_mix(connect: Callable[..., Ask]) -> None:
    mix = [{"value": "DE", "wanted": 0.25, "n_users": 3}]
    told = {"users": [], "n_users": 12, "n_eligible": 90, "space_id": "s", "health": {}, "reach": [], "interests": []}
    said = iter([as_json({**told, "mix": mix}), as_json(told)])
    with scripted(lambda _: next(said)) as server:
        ask = connect(server.url)
        found, older = (ask("lookalikes", ["a"], balance={"attribute": "country"}) for _ in range(2))
    assert (found.mix, older.mix) == (mix, [])
