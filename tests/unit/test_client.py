"""The client against servers in trouble: when it sends again, and what it raises."""

from __future__ import annotations

import itertools
import logging
import random
import socket
import threading
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lurm.client import AsyncClient, Client
from lurm.client.exchange import RetryBudget
from lurm.errors import DataError, LurmError, Overloaded, ServiceError, UnknownUser, UsageError
from tests.scripted import Ask, Asked, Said, a_problem, binary, embedding, scripted

SECRET = "Zoë Æther 7731004219"  # an id that would be seen wherever it got out; no port is as long


@given(st.lists(st.booleans()), st.floats(0, 1), st.floats(0, 20))
def test_a_budget_is_never_exceeded(calls: list[bool], share: float, spare: float) -> None:
    budget = RetryBudget(share, spare)
    n_calls = n_retries = 0
    for is_call in calls:
        if is_call:
            budget.earn()
            n_calls += 1
        else:
            n_retries += budget.spend()
        assert n_retries <= spare + share * n_calls + 1e-9


def test_a_budget_refuses_only_what_it_has_not() -> None:
    budget = RetryBudget(0.25, 2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(4):
        budget.earn()
    assert [budget.spend() for _ in range(2)] == [True, False]


@pytest.mark.parametrize("ask", [("embed", "x" * 100_000), ("find_interests", "x" * 100_000)], ids=lambda ask: ask[0])
def test_what_does_not_go_into_an_address_is_said_before_it_is_sent(
    connect: Callable[..., Ask], ask: tuple[str, str]
) -> None:
    with scripted(lambda _: Said(500)) as server:
        with pytest.raises(UsageError, match="it is too long"):
            connect(server.url)(*ask)
        assert server.asked == []


# -- sending again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble", [a_problem(503, "took-too-long"), a_problem(429, "overloaded"), Said(0), Said(503, b"<h1>proxy</h1>")]
)
def test_what_passes_is_asked_again(connect: Callable[..., Ask], trouble: Said) -> None:
    said = itertools.chain([trouble, trouble], itertools.repeat(binary()))
    waits: list[float] = []
    with scripted(lambda _: next(said)) as server:
        assert connect(server.url, waits=waits)("embed", "u").vector_e.tolist() == pytest.approx([0.6, 0.8])
        assert len(server.asked) == 3
    assert len(waits) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 422, 500, 502, 504])
def test_what_does_not_pass_is_not(connect: Callable[..., Ask], status: int) -> None:
    with scripted(lambda _: a_problem(status, "x", **{"Retry-After": "1"})) as server:
        with pytest.raises(LurmError):
            connect(server.url)("embed", "u")
        assert len(server.asked) == 1


def test_nobody_there_is_tried_a_few_times(connect: Callable[..., Ask]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    waits: list[float] = []
    with pytest.raises(ServiceError, match="connection failed") as caught:
        connect(f"http://127.0.0.1:{port}", retries=4, waits=waits)("info")
    assert caught.value.status is None
    assert len(waits) == 4


def test_an_answer_that_takes_too_long_is_not_asked_for_again(connect: Callable[..., Ask]) -> None:
    over = threading.Event()

    def answer(_: Asked) -> Said:
        over.wait(30)
        return binary()

    with scripted(answer) as server:
        try:
            with pytest.raises(ServiceError, match="No answer in time"):
                connect(server.url, timeout_s=0.2)("embed", "u")
            assert len(server.asked) == 1
        finally:
            over.set()


def test_waits_are_drawn_from_nothing_to_twice_the_last(connect: Callable[..., Ask]) -> None:
    drawn = []
    with scripted(lambda _: a_problem(503, "x")) as server:
        for seed in range(60):
            waits: list[float] = []
            with pytest.raises(ServiceError):
                connect(server.url, retries=4, waits=waits, rng=random.Random(seed))("embed", "u")
            drawn.append(waits)
    most = np.max(drawn, axis=0)
    assert (most <= 0.2 * 2 ** np.arange(4)).all()
    assert (most > 0.9 * 0.2 * 2 ** np.arange(4)).all()
    assert (np.min(drawn, axis=0) < 0.1 * most).all()


@pytest.mark.parametrize(
    ("headers", "least"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:09 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 9),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT", "Date": "Wed, 21 Oct 2015 07:28:09 GMT"}, 0),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "-3"}, 0),
    ],
)
def test_retry_after_is_honoured(connect: Callable[..., Ask], headers: dict[str, str], least: float) -> None:
    said = itertools.chain([a_problem(429, "overloaded", **headers)], itertools.repeat(binary()))

    waits: list[float] = []
    with scripted(lambda _: next(said)) as server:
        connect(server.url, waits=waits)("embed", "u")
    (wait,) = waits
    assert least <= wait <= least + 0.2


def test_who_is_to_stay_away_for_long_is_told_at_once(connect: Callable[..., Ask]) -> None:
    with scripted(lambda _: a_problem(429, "overloaded", **{"Retry-After": "3600"})) as server:
        with pytest.raises(Overloaded) as caught:
            connect(server.url)("embed", "u")
        assert len(server.asked) == 1
    assert caught.value.retry_after_s == 3600


def test_a_service_in_trouble_gets_a_tenth_more_not_four_times_as_much() -> None:
    with scripted(lambda _: a_problem(503, "x")) as server, Client(server.url, sleep=lambda _: None) as client:
        threads = [threading.Thread(target=_fail, args=(client, 50)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 200 + 5 <= len(server.asked) <= 200 + 5 + 20


def _fail(client: Client, n_times: int) -> None:
    for _ in range(n_times):
        with pytest.raises(ServiceError):
            client.embed("u")


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (a_problem(404, "unknown-user"), UnknownUser),
        (a_problem(404, "no-such-path"), ServiceError),
        (a_problem(422, "malformed-request"), UsageError),
        (a_problem(422, "unusable-events"), DataError),
        (a_problem(413, "body-too-large"), UsageError),
        (a_problem(429, "overloaded"), Overloaded),
        (a_problem(503, "not-ready"), ServiceError),
        (a_problem(500, "internal-error"), ServiceError),
        (Said(502, b"<html>Bad gateway</html>"), ServiceError),
        (Said(307, b"", {"Location": "https://elsewhere.example/"}), ServiceError),
        (Said(500, b"{", {"Content-Type": "application/problem+json"}), ServiceError),
        (Said(500, b"[1]", {"Content-Type": "application/problem+json"}), ServiceError),
        (Said(599, b""), ServiceError),
        (Said(200, b"hello"), ServiceError),
        (Said(304, b""), ServiceError),
        (Said(0), ServiceError),
    ],
)
def test_every_failure_is_an_error_of_ours_that_keeps_ids_to_itself(
    connect: Callable[..., Ask], said: Said, kind: type[LurmError], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with scripted(lambda _: said) as server:
        ask = connect(server.url, retries=1)
        for method in ("embed", "interests", "neighbors"):
            with pytest.raises(LurmError) as caught:
                ask(method, SECRET)
            assert type(caught.value) is kind
            if isinstance(caught.value, ServiceError):
                assert caught.value.status == (said.status or None)
            told = "".join(traceback.format_exception(caught.value, chain=True)) + caplog.text
            assert not any(part in told for part in ("Zo", "ther", "7731004219"))


def test_an_error_names_its_request() -> None:
    with (
        scripted(lambda _: a_problem(500, "internal-error")) as server,
        Client(server.url) as client,
        pytest.raises(ServiceError, match=r"internal-error \(500\): no") as caught,
    ):
        client.info()
    assert (caught.value.title, caught.value.detail, caught.value.request_id) == ("internal-error", "no", "r-1")
    assert caught.value.__notes__ == ["request_id: r-1"]


@pytest.mark.parametrize("user_id", ["", None, 1.0, True, b"u", "\ud800"])
def test_what_is_no_id_is_not_sent(connect: Callable[..., Ask], user_id: Any) -> None:
    with scripted(embedding) as server:
        for method in ("embed", "erase"):
            with pytest.raises(UsageError):
                connect(server.url)(method, user_id)
        assert server.asked == []


def test_one_text_is_not_taken_letter_by_letter(connect: Callable[..., Ask]) -> None:
    with scripted(embedding) as server:
        for method, asked in (("embed_many", "u1"), ("embed_many", b"u1"), ("overlap", "ab"), ("embed_many", [b"u1"])):
            with pytest.raises(UsageError, match="expected a"):
                connect(server.url)(method, asked)
        assert server.asked == []


@pytest.mark.parametrize("missing", ["", None, float("nan"), np.datetime64("NaT"), "\ud800"])
def test_a_missing_id_is_an_error_in_its_place(connect: Callable[..., Ask], missing: Any) -> None:
    with scripted(embedding) as server:
        many = connect(server.url)("embed_many", ["u1", missing, *["-"] * 9, missing])
        told = connect(server.url)("embed_histories", {"a": [], missing: []})
    assert (many.found_n.nonzero()[0].tolist(), many.user_ids[0]) == ([0], "u1")
    assert [at for at, error in many.errors.items() if isinstance(error, UsageError)] == [1, 11]
    assert (many.unknown_ids, told.found_n.tolist(), list(told.errors)) == (["-"] * 9, [True, False], [1])


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": 0},
        {"retries": -1},
        {"in_flight": 0},
        {"api_key": "a\nb"},
        {"api_key": b"key"},
        {"timeout_s": "30"},
        {"remember": None},
    ],
)
def test_arguments_out_of_bounds_are_refused(options: dict[str, Any]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(UsageError):
            kind("http://localhost", **options)
        for url in (None, 8000, "http://host:port"):
            with pytest.raises(UsageError, match="url: expected one"):
                kind(url)
        with pytest.raises(UsageError, match="http://"):
            kind("localhost:8000")
