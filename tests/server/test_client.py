"""The client on a real server: the vectors of the release, bit for bit, however they are asked for."""

from __future__ import annotations

import asyncio
import dataclasses
import doctest
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from lurm import export
from lurm.client import AsyncClient, Client, Info, UserEmbeddings
from lurm.errors import DataError, LurmError, Unfulfillable, UnknownUser, UsageError
from lurm.release import Release
from service.queries import NEIGHBORS_AT_MOST as MOST
from tests.scripted import Said, scripted
from tests.server.conftest import RunningServer
from tests.server.test_answers import events_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def ids(release: Release) -> list[str]:
    return release.history.users.take(np.arange(len(release.history)))


@pytest.fixture(params=["blocking", "awaited"])
def ask(request: pytest.FixtureRequest, server: RunningServer) -> Callable[..., Any]:
    """A method of either client."""

    async def awaited(method: str, *args: Any, **more: Any) -> Any:
        async with AsyncClient(server.url) as client:
            return await getattr(client, method)(*args, **more)

    def blocking(method: str, *args: Any, **more: Any) -> Any:
        with Client(server.url) as client:
            return getattr(client, method)(*args, **more)

    return blocking if request.param == "blocking" else lambda *args, **more: asyncio.run(awaited(*args, **more))


# -- embeddings ---------------------------------------------------------------------------------------------------


def test_one_embedding_is_that_of_the_release(ask: Callable[..., Any], release: Release, ids: list[str]) -> None:
    for row in range(0, len(ids), 10):
        one = ask("embed", ids[row])
        assert one.vector_e.tobytes() == release.embeddings.vectors_ue[row].tobytes()
        assert (one.user_id, one.space_id, one.n_events) == (
            ids[row],
            release.space_id,
            release.embeddings.n_events[row],
        )
        assert one.as_of == EPOCH + timedelta(milliseconds=int(release.embeddings.as_of[row]))
        assert (one.vector_e.dtype, one.source in ("cache", "computed")) == (np.float32, True)
    with pytest.raises(UnknownUser):
        ask("embed", "nobody")


def test_thousands_of_embeddings_are_those_of_the_release(
    ask: Callable[..., Any], release: Release, ids: list[str], rng: np.random.Generator
) -> None:
    rows = rng.integers(-20, len(ids), 3000)  # below 0: nobody
    many = ask("embed_many", [ids[row] if row >= 0 else f"nobody {row}" for row in rows.tolist()])
    known = rows >= 0
    assert many.space_id == release.space_id
    assert many.found_n.tolist() == known.tolist()
    assert many.vectors_ne[known].tobytes() == release.embeddings.vectors_ue[rows[known]].tobytes()
    assert np.isnan(many.vectors_ne[~known]).all()
    assert many.n_events_n[known].tolist() == release.embeddings.n_events[rows[known]].tolist()
    assert many.as_of_n[known].astype(np.int64).tolist() == release.embeddings.as_of[rows[known]].tolist()
    assert many.unknown_ids == [f"nobody {row}" for row in rows[~known].tolist()]
    assert {type(error) for error in many.errors.values()} == {UnknownUser}


def test_an_id_that_cannot_be_one_is_an_error_in_its_place(ask: Callable[..., Any], ids: list[str]) -> None:
    many = ask("embed_many", [ids[0], "x" * 600, ids[1], None])
    assert many.found_n.tolist() == [True, False, True, False]
    assert ([type(many.errors[at]) for at in (1, 3)], many.unknown_ids) == ([UsageError] * 2, [])


def test_histories_of_strangers_get_the_vectors_they_would_have(
    ask: Callable[..., Any], release: Release, ids: list[str]
) -> None:
    rows = list(range(0, len(ids), 2))
    histories: dict[str, Any] = {f"stranger {row}": events_of(release, ids[row]) for row in rows}
    many = ask("embed_histories", histories | {"newborn": []})
    assert many.user_ids == [*histories, "newborn"]
    assert many.found_n.all()
    assert np.abs(many.vectors_ne[:-1] - release.embeddings.vectors_ue[rows]).max() < 1e-5
    assert np.isnat(many.as_of_n[-1])


def test_a_history_that_is_none_is_an_error_in_its_place(ask: Callable[..., Any]) -> None:
    good = [{"item_id": "7", "timestamp": datetime(2024, 3, 1, tzinfo=UTC)}]
    many = ask("embed_histories", {"a": good, "b": [{"item_id": "7"}], "c": good})
    assert many.found_n.tolist() == [True, False, True]
    assert isinstance(many.errors[1], UsageError | DataError)


def test_the_table_is_the_export(ask: Callable[..., Any], release: Release, ids: list[str]) -> None:
    table = ask("embed_many", [*ids, "nobody"]).to_arrow()
    exported = pa.Table.from_batches(export.batches(release))
    assert table.column_names == exported.column_names
    assert table.cast(exported.schema).combine_chunks().equals(exported.combine_chunks())


def test_everybody_goes_into_a_file(ask: Callable[..., Any], release: Release, tmp_path: Path) -> None:
    found = ask("export", tmp_path / "all.arrows")
    assert (found.space_id, found.release) == (release.space_id, release.release_id)
    exported = pa.Table.from_batches(export.batches(release))
    with pa.ipc.open_stream(found.path) as stream:
        assert stream.read_all().combine_chunks().equals(exported.combine_chunks(), check_metadata=True)
    assert found.n_users == exported.num_rows
    assert [path.name for path in tmp_path.iterdir()] == ["all.arrows"]


def test_threads_share_a_client(server: RunningServer, release: Release, ids: list[str]) -> None:
    start = threading.Barrier(8)
    with Client(server.url, remember=50) as client, ThreadPoolExecutor(8) as pool:

        def some(offset: int) -> bool:
            start.wait()
            return all(
                client.embed(ids[row % len(ids)]).vector_e.tobytes()
                == release.embeddings.vectors_ue[row % len(ids)].tobytes()
                for row in range(offset, offset + 60)
            )

        assert all(pool.map(some, range(0, 80, 10)))


def test_what_has_not_changed_does_not_travel(server: RunningServer, client: httpx.Client, ids: list[str]) -> None:
    def n_unchanged() -> float:
        name = 'lurm_http_requests_total{route="/embed/{user_id}",status="304"} '
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = n_unchanged()
    with Client(server.url, remember=10) as remembering:
        assert remembering.embed(ids[3]) is remembering.embed(ids[3]) is remembering.embed(ids[3])
    assert n_unchanged() == before + 2


# -- the others ---------------------------------------------------------------------------------------------------


def test_the_other_methods_say_what_the_service_says(
    ask: Callable[..., Any], client: httpx.Client, release: Release, ids: list[str]
) -> None:
    info = ask("info")
    assert isinstance(info, Info)
    assert (info.space_id, info.dim, info.n_users) == (release.space_id, release.encoder.dim, len(ids))
    assert (info.limits.request_users, info.limits.request_events, info.limits.body_bytes) == (60, 3000, 200_000)
    assert ask("ready") is True
    raw = client.get(f"/v1/users/{ids[5]}/interests", params={"k": 3}).json()["interests"]
    found = ask("interests", ids[5], 3)
    assert [(one.interest, one.share, one.words, one.trend) for one in found] == [
        (one["interest"], one["share"], one["words"], one["trend"]) for one in raw
    ]
    assert found[0].last_at.tzinfo is not None
    raw = client.get(f"/v1/users/{ids[5]}/neighbors", params={"k": 4}).json()["neighbors"]
    assert [(one.user_id, one.score) for one in ask("neighbors", ids[5], 4)] == [
        (one["user_id"], one["score"]) for one in raw
    ]


def test_neighbours_of_whatever_a_query_may_be(
    ask: Callable[..., Any], client: httpx.Client, release: Release, ids: list[str]
) -> None:
    def raw(query: dict[str, Any], **more: Any) -> list[tuple[str, float, list[int]]]:
        answer = client.post("/v1/neighbors", json={"query": query, "k": 6, **more}).json()["neighbors"]
        return [
            (one["user_id"], one["score"], [each["interest"] for each in one["shared_interests"]]) for one in answer
        ]

    def told(of: object, **more: Any) -> list[tuple[str, float, list[int]]]:
        near = ask("neighbors", of, 6, **more)
        return [(one.user_id, one.score, [each.interest for each in one.shared_interests]) for one in near]

    one, some = ask("embed", ids[5]), {"behavior": release.history.behaviors[0], "at_least": 2}
    as_sent = {"vector": one.vector_e.tolist(), "space_id": one.space_id}
    assert told(one) == raw(as_sent)
    assert told(one)[0][0] == ids[5]
    assert told(one, filter=some) == raw(as_sent, filter=some)
    many = ask("embed_many", ids[:2])
    middle_e = many.vectors_ne.sum(axis=0)
    middle_e /= np.linalg.norm(middle_e)
    expected = raw({"vector": middle_e.tolist(), "space_id": many.space_id})
    for numbers in (middle_e, middle_e.tolist(), middle_e.astype(np.float64), np.repeat(middle_e, 2)[::2]):
        assert told(numbers, space_id=many.space_id) == expected
    assert told(ids[5], filter=some) == raw({"user_id": ids[5]}, filter=some)
    assert told(ids[5], filter={"not": some}) == raw({"user_id": ids[5]}, filter={"not": some})
    events: list[Any] = events_of(release, ids[7])
    assert told(events, filter=some) == raw({"events": events}, filter=some)
    assert told(events)[0][0] == ids[7]
    assert told(events)[0][2]
    assert len(told([])) == 6


def test_queries_that_mean_nothing_are_refused(ask: Callable[..., Any], release: Release, ids: list[str]) -> None:
    one = ask("embed", ids[5])
    for of in (one.vector_e, one.vector_e.tolist(), [ids[0]], object(), None, True):
        with pytest.raises(UsageError):
            ask("neighbors", of)
    for numbers in (ids[5], [[1.0]], [], ["a"], [float("nan")] * release.encoder.dim):
        with pytest.raises(UsageError, match="space_id"):
            ask("neighbors", numbers, space_id=one.space_id)
    for numbers, space_id in ((one.vector_e, "another"), (one.vector_e[:-1], one.space_id)):
        with pytest.raises(Unfulfillable):
            ask("neighbors", numbers, space_id=space_id)
    with pytest.raises(Unfulfillable, match="height"):
        ask("neighbors", one, filter={"attribute": "height", "min": 3})
    with pytest.raises(UsageError, match="filter"):
        ask("neighbors", one, filter={"tall": True})
    with pytest.raises(UnknownUser):
        ask("neighbors", "nobody", filter={"behavior": "view"})


def test_what_comes_next_is_what_the_service_says(
    ask: Callable[..., Any], client: httpx.Client, release: Release, ids: list[str]
) -> None:
    path, at = f"/v1/users/{ids[5]}", datetime(2030, 1, 5, 12, tzinfo=UTC)
    for given in ({}, {"at": at}, {"at": int(at.timestamp() * 1000)}, {"location": release.history.locations[0]}):
        raw = client.get(path + "/next", params={"k": 4} | {name: str(value) for name, value in given.items()}).json()
        assert [dataclasses.asdict(one) for one in ask("next", ids[5], 4, **given)] == raw["next"]
    drawn = {"steps": 5, "paths": 16, "temperature": 0.8, "seed": 7}
    raw = client.post(path + "/rollout", json=drawn).json()
    futures = ask("rollout", ids[5], **drawn)
    assert [[one.interest for one in future] for future in futures] == [
        [one["interest"] for one in future] for future in raw["paths"]
    ]
    moments = [[datetime.fromisoformat(one["at"]) for one in future] for future in raw["paths"]]
    assert [[one.at for one in future] for future in futures] == moments and len(moments) == 16 and any(moments)
    assert len(ask("rollout", ids[5])) == 1
    for method in ("next", "rollout", "forecast"):
        with pytest.raises(UnknownUser):
            ask(method, "nobody")
    with pytest.raises(UsageError, match="paths"):
        ask("rollout", ids[5], paths=1000)


def test_forecasts_and_other_calendars_are_what_the_service_says(
    ask: Callable[..., Any], client: httpx.Client, release: Release, ids: list[str]
) -> None:
    path = f"/v1/users/{ids[5]}/forecast"
    for days in (None, 7):
        raw = client.get(path, params={} if days is None else {"days": days}).json()
        forecast = ask("forecast", ids[5], days)
        assert forecast.begins == datetime.fromisoformat(raw["from"])
        assert [dataclasses.asdict(one) for one in forecast.targets] == raw["targets"]
    assert release.forecaster is not None
    kind = release.forecaster.calendar.kinds[0]
    edit = {"do": "add", "kind": kind, "start": forecast.begins, "end": forecast.begins + timedelta(days=3)}
    sent = edit | {"start": edit["start"].isoformat(), "end": edit["end"].isoformat()}
    raw = client.post(path, json={"edits": [sent], "days": 7}).json()
    told = ask("scenario", ids[5], [edit], days=7)
    assert told.baseline == forecast.targets
    assert [dataclasses.asdict(one) for one in told.scenario] == raw["scenario"]
    assert [dataclasses.asdict(one) for one in told.difference] == raw["difference"]
    assert [(one.kind, one.start) for one in told.events][-1:] == [(kind, forecast.begins)]
    with pytest.raises(Unfulfillable):
        ask("scenario", ids[5], [edit | {"kind": "nothing of the sort"}])


@pytest.mark.parametrize("method", ["interests", "neighbors"])
def test_refusals_are_errors_of_ours(ask: Callable[..., Any], ids: list[str], method: str) -> None:
    with pytest.raises(UnknownUser):
        ask(method, "nobody")
    with pytest.raises(UsageError, match="k"):
        ask(method, ids[0], MOST + 1)


# -- scikit-learn -------------------------------------------------------------------------------------------------


def test_ids_are_features(server: RunningServer, release: Release, ids: list[str]) -> None:
    embed = UserEmbeddings(server.url)
    truth = release.embeddings.vectors_ue
    assert embed.transform(ids).tobytes() == truth.tobytes()  # without fit
    assert embed.fit_transform(np.array(ids)).tobytes() == truth.tobytes()
    assert embed.transform(np.array(ids, object)[:, None]).tobytes() == truth.tobytes()
    assert (embed.space_id_, embed.dim_) == (release.space_id, truth.shape[1])
    names = embed.get_feature_names_out().tolist()
    assert (names[0], len(names)) == ("userembeddings0", truth.shape[1])


def test_a_pipeline_learns_from_ids(server: RunningServer, release: Release, ids: list[str]) -> None:
    labels = release.embeddings.vectors_ue @ release.embeddings.vectors_ue[0]
    classes = labels > np.median(labels)
    model = make_pipeline(UserEmbeddings(server.url), LogisticRegression(C=100))
    assert model.fit(ids, classes).score(ids, classes) > 0.9
    assert clone(model).get_params()["userembeddings__url"] == server.url
    assert model.set_params(userembeddings__unknown="nan")["userembeddings"].unknown == "nan"


def test_strangers_are_zeros_or_nan_or_an_error(server: RunningServer, ids: list[str]) -> None:
    asked = [ids[0], "nobody"]
    zeros = UserEmbeddings(server.url).transform(asked)
    assert (zeros[1] == 0).all()
    assert (zeros[0] != 0).any()
    assert np.isnan(UserEmbeddings(server.url, unknown="nan").transform(asked)[1]).all()
    with pytest.raises(UnknownUser):
        UserEmbeddings(server.url, unknown="error").transform(asked)
    for unknown in ("zeros", "nan", "error"):
        with pytest.raises(UsageError):
            UserEmbeddings(server.url, unknown=unknown).transform([ids[0], "x" * 600])


@pytest.mark.parametrize("X", ["u", [["a", "b"]], [1.5], [None]])
def test_what_holds_no_ids_is_refused(server: RunningServer, X: Any) -> None:
    with pytest.raises(UsageError):
        UserEmbeddings(server.url).transform(X)
    with pytest.raises(UsageError, match="unknown"):
        UserEmbeddings(server.url, unknown="guess").transform(["u"])


def test_another_space_than_that_of_the_fit_is_refused(server: RunningServer, ids: list[str]) -> None:
    embed = UserEmbeddings(server.url).fit(ids)
    embed.space_id_ = "an older one"
    with pytest.raises(UsageError, match="fit the pipeline again"):
        embed.transform(ids[:3])


def test_a_key_may_stay_out_of_what_is_shown_and_saved() -> None:
    with scripted(lambda _: Said(500)) as server:
        embed = UserEmbeddings(server.url, api_key=lambda: "k-1", retries=0)
        with pytest.raises(LurmError):
            clone(embed).fit([])
        assert server.asked[0].headers["authorization"] == "Bearer k-1"
    assert "k-1" not in repr(embed)


# -- the page -----------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(start_server: Callable[..., RunningServer], tmp_path: Path) -> str:
    """A service of the page's own, whose users, who are few, may be erased."""
    return start_server(live_dir=tmp_path / "live", audience_seeds=20).url


def test_the_page_about_the_client_is_true(repository: Path, whole: str) -> None:
    page = (repository / "docs/client.md").read_text()
    examples = page.replace("http://127.0.0.1:8000", whole).replace("```", "\n")
    test = doctest.DocTestParser().get_doctest(examples, {}, "docs/client.md", "docs/client.md", 0)
    said: list[str] = []
    outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False).run(test, out=said.append)
    assert outcome.failed == 0, "".join(said)
    assert outcome.attempted > 20
