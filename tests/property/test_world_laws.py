"""Whatever is planted can be measured in the log, and more of a world never changes what was there."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lurm.progress import Silent
from training.world import Truth, WorldConfig, simulate


def events_of(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "events").sort("user_id", "timestamp", "behavior", "item_id")


class Log:
    """A simulated world read back: its events with the truth beside them, by user and time."""

    def __init__(self, folder: Path, **planted: Any) -> None:
        self.config = WorldConfig(**planted)
        simulate(folder, self.config, reporter=Silent())
        self.folder = folder
        self.truth = Truth.load(folder)
        events = events_of(folder)
        gap = pl.col("timestamp").diff().over("user_id").dt.total_minutes()
        self.start = np.datetime64(self.config.start, "D")
        self.events = events.with_columns(
            interest=pl.Series(self.truth.item_interests(events["item_id"].to_list())),
            day=pl.col("timestamp").dt.epoch("d") - int(self.start.astype(int)),
        )
        self.views = self.events.filter(behavior="view").with_columns(session=(gap.is_null() | (gap > 30)).cum_sum())


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log(tmp_path_factory.mktemp("world") / "default", n_users=4_000)


def test_users_differ_in_activity_but_have_the_mean_asked_for(log: Log) -> None:
    counts = log.events.group_by("user_id").len()["len"].sort(descending=True)
    assert counts.sum() / 4_000 == pytest.approx(80, rel=0.05)
    assert counts.head(400).sum() > 0.3 * counts.sum()
    assert counts.len() > 0.94 * 4_000


def _lifts(log: Log) -> dict[str, tuple[float, float]]:
    """kind -> (log of the lift, its standard error): a Poisson regression of sessions by region and day."""
    days, regions = np.arange(log.config.days), ["north", "lakes", "midlands", "coast", "south"]
    sessions = (
        log.views.unique("session", keep="first")
        .join(log.truth.users.select("user_id", "region"), on="user_id")
        .group_by("region", "day")
        .len()
    )
    counts = np.zeros((len(regions), len(days)))
    for region, day, n in sessions.iter_rows():
        counts[regions.index(region), day] = n
    happens: dict[str, np.ndarray] = {}
    for row in log.truth.calendar.iter_rows(named=True):
        inside = (log.start + days >= np.datetime64(row["start"].date())) & (
            log.start + days < np.datetime64(row["end"].date())
        )
        for r, region in enumerate(regions):
            if row["target_value"] in (None, region):
                happens.setdefault(row["kind"], np.zeros(counts.shape))[r] += inside
    place = np.linspace(-1, 1, len(days))
    weekday = (log.start + days).astype("datetime64[D]").astype(int) % 7
    columns = [np.broadcast_to(place**power, counts.shape) for power in (1, 2, 3)]
    columns += [np.broadcast_to(weekday == w, counts.shape) for w in range(1, 7)]
    columns += [np.broadcast_to(np.arange(len(regions))[:, None] == r, counts.shape) for r in range(len(regions))]
    X = np.stack([column.ravel() for column in (*happens.values(), *columns)], axis=1).astype(float)
    y = counts.ravel()
    beta = np.zeros(X.shape[1])
    beta[-len(regions) :] = np.log(y.mean())
    for _ in range(12):
        mean = np.exp(X @ beta)
        information = X.T @ (X * mean[:, None])
        beta += np.linalg.solve(information, X.T @ (y - mean))
    errors = np.sqrt(np.diag(np.linalg.inv(information)))
    return {kind: (beta[i], errors[i]) for i, kind in enumerate(happens)}


def _assert_lifts(log: Log, **planted: float) -> None:
    measured = _lifts(log)
    assert measured.keys() == planted.keys()
    for kind, lift in planted.items():
        estimate, error = measured[kind]
        assert error < 0.05, f"{kind}: too few sessions to tell"
        assert abs(estimate - np.log(lift)) < 4 * error, f"{kind}: {np.exp(estimate):.2f}, planted {lift}"


def test_calendar_events_lift_activity_as_planted_and_newsletters_do_not(log: Log) -> None:
    _assert_lifts(log, sale=2.0, holiday=1.5, festival=2.5, newsletter=1.0)
    planted = log.truth.calendar.select("kind", "lift").unique()
    assert dict(planted.iter_rows()) == {"sale": 2.0, "holiday": 1.5, "festival": 2.5, "newsletter": 1.0}


def test_other_lifts_are_measured_as_planted_too(tmp_path: Path) -> None:
    lifts = {"sale_lift": 1.0, "holiday_lift": 0.6, "festival_lift": 4.0}
    other = Log(tmp_path / "w", n_users=4_000, n_items=300, **lifts)
    _assert_lifts(other, sale=1.0, holiday=0.6, festival=4.0, newsletter=1.0)


def test_calendar_is_known_before_it_happens_and_goes_on_after_the_log(log: Log) -> None:
    calendar = log.truth.calendar
    assert (calendar["known_at"] < calendar["start"]).all()
    assert (calendar["start"] < calendar["end"]).all()
    assert calendar["event_id"].n_unique() == calendar.height
    assert set(calendar.filter(kind="festival")["target_value"]) == set(log.truth.users["region"])
    assert (
        calendar.filter(pl.col("kind") != "festival")["target_value"].null_count()
        == calendar.filter(pl.col("kind") != "festival").height
    )
    after = calendar.filter(pl.col("start") > log.events["timestamp"].max())
    assert {"sale", "festival", "newsletter"} <= set(after["kind"])
    assert (after["known_at"] < log.events["timestamp"].max()).any()


def _probe(log: Log, column: str, positive: str) -> tuple[float, float]:
    """AUC on the second half of the users of a naive Bayes score from the first, and its error if it were luck."""
    G = log.config.n_interests
    counts = np.zeros((log.config.n_users, G))
    users = log.views["user_id"].str.slice(1).cast(pl.Int64).to_numpy()
    np.add.at(counts, (users, log.views["interest"].to_numpy()), 1)
    shares = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    label = (log.truth.users[column] == positive).to_numpy()
    seen, half = counts.sum(axis=1) > 0, np.arange(len(label)) < len(label) // 2
    fit, judge = seen & half, seen & ~half
    mean, spread = shares[fit].mean(axis=0), shares[fit].std(axis=0) + 0.01
    gap = (shares[fit & label].mean(axis=0) - shares[fit & ~label].mean(axis=0)) / spread**2
    score, y = (shares[judge] - mean) @ gap, label[judge]
    ranks = score.argsort().argsort() + 1.0
    n, m = y.sum(), (~y).sum()
    auc = (ranks[y].sum() - n * (n + 1) / 2) / (n * m)
    return auc, np.sqrt((n + m + 1) / (12 * n * m))


@pytest.mark.parametrize(
    ("column", "positive"),
    [("gender", "woman"), ("age_band", "18-24"), ("age_band", "65+"), ("income", "high")],
)
def test_interests_tell_attributes(log: Log, column: str, positive: str) -> None:
    auc, _ = _probe(log, column, positive)
    assert 0.72 < auc < 0.92


@pytest.mark.parametrize("sign", ["aries", "leo", "pisces"])
def test_interests_do_not_tell_the_star_sign(log: Log, sign: str) -> None:
    auc, error = _probe(log, "star_sign", sign)
    assert abs(auc - 0.5) < 3.5 * error


def test_without_strength_attributes_are_noise(tmp_path: Path) -> None:
    auc, error = _probe(Log(tmp_path / "w", n_users=2_000, attribute_strength=0.0), "gender", "woman")
    assert abs(auc - 0.5) < 3.5 * error


@pytest.mark.parametrize("attribute", ["gender", "age_band", "income", "region"])
def test_every_attribute_leans_on_interests_as_planted(log: Log, attribute: str) -> None:
    values = ["man", "woman", "18-24", "25-34", "35-49", "50-64", "65+", "low", "middle", "high"]
    values += ["north", "lakes", "midlands", "coast", "south"]
    place = pl.col(attribute).replace_strict(values, range(len(values)))
    means = (
        log.truth.users.group_by(interest="main_interest").agg(place.mean()).join(log.truth.interests, on="interest")
    )
    leans = [f"lean_{name}" for name in ("gender", "age_band", "income", "region")]
    correlations = {lean: means.select(pl.corr(attribute, lean)).item() for lean in leans}
    assert max(correlations, key=correlations.__getitem__) == f"lean_{attribute}"
    assert correlations[f"lean_{attribute}"] > 0.6


@pytest.mark.parametrize("drift", [0.0, 0.5, 1.0])
def test_users_move_from_their_early_to_their_late_interests(tmp_path: Path, drift: float) -> None:
    moving = Log(tmp_path / "w", n_users=1_024, events_per_user=200, drift=drift, seasonality=0.0)
    shares = moving.truth.users.select("user_id", "early", "late", interest="interests").explode(
        "early", "late", "interest"
    )
    ends = []
    for span in (pl.col("day") < 90, pl.col("day") >= 640):
        seen = moving.views.filter(span)
        totals = seen.group_by("user_id").len("total")
        counts = seen.group_by("user_id", "interest").len("n")
        ends.append(
            shares.join(totals, on="user_id")
            .join(counts, on=["user_id", "interest"], how="left")
            .with_columns(share=pl.col("n").fill_null(0) / pl.col("total"))
        )
    both = ends[0].join(ends[1], on=["user_id", "interest"], suffix="_then")
    move = (both["late"] - both["early"]).to_numpy()
    moved = (both["share_then"] - both["share"]).to_numpy()
    weight = both.select(1 / (1 / pl.col("total") + 1 / pl.col("total_then"))).to_series().to_numpy()
    slope = (weight * move) @ moved / ((weight * move) @ move)
    assert slope == pytest.approx(0.85 * 0.975 * drift, abs=0.05)  # the first and last 90 days are not the ends


def test_every_user_has_one_to_six_interests_and_a_main_one(log: Log) -> None:
    users = log.truth.users
    assert users["interests"].list.len().min() == 1
    assert users["interests"].list.len().max() == 6
    assert users["interests"].list.n_unique().equals(users["interests"].list.len())
    for name in ("early", "late", "life"):
        assert np.allclose(users[name].list.sum().to_numpy(), 1, atol=1e-5)
    main = users.select(pl.col("interests").list.get(pl.col("life").list.arg_max())).to_series()
    assert main.equals(users["main_interest"].rename("interests"))
    counts = log.views.group_by("user_id", "interest").len().sort("len", descending=True)
    favourite = counts.unique("user_id", keep="first", maintain_order=True)
    agree = (favourite["interest"].to_numpy() == log.truth.main_interests(favourite["user_id"].to_list())).mean()
    assert agree > 0.6


def test_a_session_stays_mostly_with_one_interest(log: Log) -> None:
    together = pl.col("session") == pl.col("session").shift()
    same = pl.col("interest") == pl.col("interest").shift()
    agreement = log.views.select(same.filter(together).mean()).item()
    by_luck = (log.views["interest"].value_counts(normalize=True)["proportion"] ** 2).sum()
    assert agreement == pytest.approx(0.85**2 + (1 - 0.85**2) * by_luck, abs=0.015)
    assert log.views.group_by("session").len()["len"].mean() == pytest.approx(4, abs=0.1)


def test_items_are_long_tailed_and_drawn_by_their_popularity(log: Log) -> None:
    items = log.truth.items
    for _, group in items.group_by("interest"):
        popularity = group["popularity"].sort(descending=True).to_numpy()
        zipf = np.arange(1, len(popularity) + 1) ** -0.9
        assert np.allclose(popularity, zipf / zipf.sum())
    counts = (
        log.views.group_by("item_id", "interest")
        .len("n")
        .with_columns(share=pl.col("n") / pl.col("n").sum().over("interest"))
    )
    old = items.filter(pl.col("arrived_at") == items["arrived_at"].min()).join(counts, on="item_id")
    ratio = (old.group_by("interest").agg(pl.col("share").sum() / pl.col("popularity").sum()))["share"]
    assert ratio.min() > 1  # items that came later leave theirs until they come
    old = old.with_columns(
        seen=pl.col("n") / pl.col("n").sum().over("interest"),
        planted=pl.col("popularity") / pl.col("popularity").sum().over("interest"),
    )
    assert (old["seen"] - old["planted"]).abs().sum() / 40 < 0.15
    most = log.events["item_id"].value_counts(sort=True)["count"]
    assert most.head(400).sum() > 0.4 * most.sum()


def test_no_item_is_seen_before_it_arrives(log: Log) -> None:
    seen = log.events.group_by("item_id").agg(pl.col("timestamp").min()).join(log.truth.items, on="item_id")
    assert (seen["timestamp"] >= seen["arrived_at"]).all()
    assert log.truth.items["arrived_at"].n_unique() > 500


def test_titles_are_made_of_the_words_of_their_interest(log: Log) -> None:
    titles = pl.read_parquet(log.folder / "items.parquet").join(log.truth.items, on="item_id")
    titles = titles.join(log.truth.interests.select("interest", "words", theme="category"), on="interest")
    assert (titles["category"] == titles["theme"]).all()
    assert 0.02 < titles["title"].null_count() / titles.height < 0.04
    own = titles.drop_nulls("title").select(
        pl.col("title").str.to_lowercase().str.split(" ").list.set_intersection("words").list.len()
    )
    assert own.to_series().is_between(2, 3).all()
    assert titles["title"].drop_nulls().n_unique() > 0.9 * titles.height
    assert (titles["price"] > 0).all()


def test_beyond_the_hand_made_themes_interests_are_different_pairs(tmp_path: Path) -> None:
    config = WorldConfig(n_users=1, n_items=2_500, n_interests=2_500, days=14, events_per_user=1)
    simulate(tmp_path / "w", config, reporter=Silent())
    interests = Truth.load(tmp_path / "w").interests
    assert interests["name"].n_unique() == interests["words"].n_unique() == 2_500
    assert interests["words"].list.len().unique().to_list() == [14]
    assert interests["category"].n_unique() == 10


def test_interests_have_their_season(log: Log) -> None:
    angle = (log.views["timestamp"].dt.ordinal_day().to_numpy() - 1) * 2 * np.pi / 365.25
    planted = log.truth.interests["peak_day"].to_numpy() * 2 * np.pi / 365.25
    interest = log.views["interest"].to_numpy()
    baseline = np.exp(1j * angle).mean()
    seen = np.array([(np.exp(1j * angle[interest == g]) - baseline).mean() for g in range(40)])
    assert np.cos(np.angle(seen) - planted).mean() > 0.85


def test_days_have_their_rhythm(log: Log) -> None:
    hour, weekday = (
        log.views["timestamp"].dt.hour().to_numpy(),
        log.views["timestamp"].dt.weekday().to_numpy(),
    )
    hours = np.bincount(hour, minlength=24)
    assert hours[19:22].mean() > 3 * hours[2:5].mean()
    morning = (hour >= 9) & (hour < 13)
    assert morning[weekday >= 6].mean() > 1.3 * morning[weekday < 6].mean()
    weekdays = np.bincount(weekday, minlength=8)[1:]
    assert weekdays[5:].mean() > 1.15 * weekdays[:4].mean()


def test_nobody_acts_before_registering_or_long_after_leaving(log: Log) -> None:
    spans = log.views.group_by("user_id").agg(first=pl.col("timestamp").min(), last=pl.col("timestamp").max())
    spans = spans.join(log.truth.users, on="user_id")
    assert (spans["first"] >= spans["registered_at"]).all()
    gone = spans.drop_nulls("churned_at")
    assert gone.height > 0.15 * spans.height
    assert (gone["last"] - gone["churned_at"]).dt.total_hours().max() < 6
    assert log.events["day"].min() == 0
    assert log.events["day"].max() == log.config.days - 1


def test_the_funnel_narrows_and_money_follows_purchases(log: Log) -> None:
    n = dict(log.events["behavior"].value_counts().iter_rows())
    assert n["cart"] / n["view"] == pytest.approx(0.15, abs=0.01)
    assert n["purchase"] / n["cart"] == pytest.approx(0.45, abs=0.02)
    assert n["view"] > n["cart"] > n["purchase"] > n["review"] > n["return"] > 0
    prices = pl.read_parquet(log.folder / "items.parquet").select("item_id", pl.col("price").cast(pl.Float32))
    priced = log.events.join(prices, on="item_id")
    signs = {"purchase": 1, "return": -1}
    for behavior in n:
        values = priced.filter(behavior=behavior)
        if behavior in signs:
            assert (values["value"] == signs[behavior] * values["price"]).all()
        else:
            assert values["value"].null_count() == values.height
    bought = log.events.filter(behavior="purchase").join(log.views, on=["user_id", "item_id"], suffix="_seen")
    earlier = bought.filter(pl.col("timestamp_seen") < pl.col("timestamp"))
    assert earlier.select("user_id", "item_id", "timestamp").unique().height == n["purchase"]


def test_people_are_mostly_at_home(log: Log) -> None:
    places = log.events.group_by("user_id", "location").len().sort("len", descending=True)
    homes = places.unique("user_id", keep="first")
    assert homes["len"].sum() / log.events.height == pytest.approx(0.89, abs=0.03)
    assert places["location"].n_unique() == 15


@st.composite
def configs(draw: st.DrawFn) -> WorldConfig:
    n_interests = draw(st.integers(2, 60))
    share = st.floats(0, 1)
    lift = st.floats(0.1, 10)
    return WorldConfig(
        n_users=draw(st.integers(1, 60)),
        n_items=draw(st.integers(n_interests, 200)),
        n_interests=n_interests,
        days=draw(st.integers(14, 90)),
        events_per_user=draw(st.floats(1, 8)),
        start=draw(st.dates(date(1971, 1, 1), date(2199, 12, 31)).map(str)),
        seed=draw(st.integers(0, 2**63 - 1)),
        attribute_strength=draw(st.floats(0, 5)),
        drift=draw(share),
        purity=draw(share),
        zipf=draw(st.floats(0, 3)),
        seasonality=draw(st.floats(0, 2)),
        sale_lift=draw(lift),
        holiday_lift=draw(lift),
        festival_lift=draw(lift),
        untitled_share=draw(share),
    )


@settings(max_examples=25)
@given(configs())
def test_the_tables_of_any_world_fit_together(config: WorldConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w"
        world = simulate(path, config, reporter=Silent())
        events, truth = events_of(path), Truth.load(path)
    assert truth.config == config
    assert events.height == world.n_events
    assert truth.users.height == config.n_users
    assert truth.items.height == config.n_items
    assert set(truth.items["interest"]) == set(range(config.n_interests))
    assert (truth.item_interests(events["item_id"].to_list()) >= 0).all()
    assert (truth.main_interests(events["user_id"].to_list()) >= 0).all()
    arrived = events.join(truth.items, on="item_id")
    assert (arrived["timestamp"] >= arrived["arrived_at"]).all()
    born = events.join(truth.users, on="user_id")
    assert (born["timestamp"] >= born["registered_at"]).all()
    first = int(np.datetime64(config.start, "D").astype(int))
    assert events["timestamp"].dt.epoch("d").is_between(first, first + config.days - 1).all()
    assert (truth.calendar["start"] < truth.calendar["end"]).all()
    assert {"sale", "festival", "newsletter"} <= set(truth.calendar["kind"])


@settings(max_examples=15)
@given(configs(), st.integers(1, 40), st.integers(1, 2_000))
def test_more_users_and_smaller_parts_change_nothing(config: WorldConfig, more: int, part_events: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert_grows(Path(folder), config, config.n_users + more, part_events)


@pytest.mark.parametrize("part_events", [1, 15_000, 1_000_000])
def test_more_blocks_and_smaller_parts_change_nothing(tmp_path: Path, part_events: int) -> None:
    config = WorldConfig(n_users=1_500, n_items=300, events_per_user=10)  # blocks of 1,024 users
    assert_grows(tmp_path, config, 3_500, part_events)
    parts = [pl.read_parquet(path) for path in sorted((tmp_path / "many" / "events").iterdir())]
    assert len(parts) == {1: 4, 15_000: 3, 1_000_000: 1}[part_events]
    assert all(part["timestamp"].is_sorted() for part in parts)
    assert part_events == 1 or max(part.height for part in parts) <= part_events


def assert_grows(folder: Path, config: WorldConfig, n_users: int, part_events: int) -> None:
    """The first users of a larger world in smaller parts are the users of this one."""
    few, many = folder / "few", folder / "many"
    simulate(few, config, reporter=Silent())
    simulate(many, replace(config, n_users=n_users), reporter=Silent(), part_events=part_events)
    first, grown = Truth.load(few), Truth.load(many)
    assert grown.users.head(config.n_users).equals(first.users)
    assert events_of(many).filter(pl.col("user_id").is_in(first.users["user_id"].implode())).equals(events_of(few))
    for name in ("items.parquet", "calendar.parquet", "truth/items.parquet", "truth/interests.parquet"):
        assert (few / name).read_bytes() == (many / name).read_bytes()
