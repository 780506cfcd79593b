"""What is planted in the simulated world, and the users and events drawn from it, block by block.

Every arrow is a planted effect:

    gender, age, income, region --lean--> 1 to 6 interests --drift over the years, season--> a session's interest
    weekday, calendar lift, registration, churn, dormancy, activity --> a user's sessions
    session --purity--> interest --Zipf, arrival--> items --funnel--> view, cart, purchase, review, return ...

Shape letters: B users of a block, S interest slots of a user, G planted interests, D days, A attributes that
lean on interests, R regions, N items, K sessions, L looks at an item, T events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.world.catalog import Catalog, Floats, Ints, normalised
from training.world.config import WorldConfig

DAY_MS: Final = 86_400_000
SLOTS: Final = 6
"""Interests a user has at most."""
HORIZON: Final = 60
"""Days the calendar goes on after the last event, for forecasts."""


class Attribute(NamedTuple):
    """A user attribute: its values in order, their shares, and the weight of its lean on interests."""

    name: str
    values: tuple[str, ...]
    shares: tuple[float, ...]
    weight: float


REGIONS: Final = ("north", "lakes", "midlands", "coast", "south")
ATTRIBUTES: Final = (
    Attribute("gender", ("man", "woman"), (0.5, 0.5), 0.6),
    Attribute("age_band", ("18-24", "25-34", "35-49", "50-64", "65+"), (0.16, 0.24, 0.28, 0.2, 0.12), 1.2),
    Attribute("income", ("low", "middle", "high"), (0.3, 0.45, 0.25), 0.8),
    Attribute("region", REGIONS, (0.2, 0.15, 0.3, 0.15, 0.2), 0.4),
)
STAR_SIGNS: Final = (
    *("aries", "taurus", "gemini", "cancer", "leo", "virgo"),
    *("libra", "scorpio", "sagittarius", "capricorn", "aquarius", "pisces"),
)
CITIES: Final = (
    *("Northwick", "Fellgate", "Ashby Moor", "Lakenham", "Tarnside", "Mereford", "Stonebridge", "Millbrook"),
    *("Oakhampton", "Saltmouth", "Gullhaven", "Port Ellery", "Southmere", "Vinefield", "Harrowdown"),
)
"""Three for each region, in its order."""
_AT_HOME: Final = 0.88

_FUNNEL: Final = (
    ("favorite", "view", 0.06, 2, 40),
    ("cart", "view", 0.15, 3, 60),
    ("share", "view", 0.01, 2, 90),
    ("purchase", "cart", 0.45, 20, 900),
    ("review", "purchase", 0.12, 2 * 86_400, 21 * 86_400),
    ("return", "purchase", 0.06, 3 * 86_400, 25 * 86_400),
)
"""(behavior, the one it follows, probability, shortest and longest delay in seconds)."""
BEHAVIORS: Final = ("view", *(step[0] for step in _FUNNEL))
LOOKS_PER_SESSION: Final = 4.0
"""On the mean."""

_WEEKDAYS: Final = np.array([0.9, 0.9, 0.95, 1.0, 1.05, 1.25, 1.2])
_WORKDAY_HOURS: Final = (2, 1, 1, 1, 1, 2, 4, 6, 6, 5, 5, 5, 7, 6, 5, 5, 6, 8, 10, 12, 13, 11, 8, 4)
_WEEKEND_HOURS: Final = (4, 2, 1, 1, 1, 1, 2, 3, 5, 8, 10, 11, 11, 10, 10, 10, 10, 9, 9, 9, 9, 8, 7, 5)
_HOLIDAYS: Final = ((1, 1, 1), (5, 1, 1), (10, 31, 1), (12, 24, 3))
"""(month, day, length in days), every year."""
_MOVABLE: Final = {"sale": (4, 4, 14), "festival": (5, 6, 30), "newsletter": (12, 2, 1)}
"""kind -> (how many a year, length in days, known how many days ahead)."""
_YEAR: Final = 365.25
_CATALOG, _PLANTED, _PILOT, _USERS, _EVENTS = range(5)
"""What a seed is for."""


@dataclass(frozen=True, slots=True)
class Users:
    """The users of one block, before they do anything; (B,) each unless the name says otherwise.

    Attributes:
        attributes_ba: the value of each of ``ATTRIBUTES``, as its position.
        slots_bs: interests of each user, S distinct ones; those without a share count for nothing.
        early_bs: shares of the slots on the first day.
        late_bs: shares of the slots that the user drifts towards; on the last day ``drift`` of the way is done.
        registered: day, negative before the log.
        until: the day after the user's last; D without churn.
        homes: position in ``CITIES``.
        rate_bd: relative activity on each day: zero unless alive, else weekday times calendar lift.
        life_bs: shares of the slots, averaged over the user's active life.
    """

    attributes_ba: Ints
    star_signs: Ints
    slots_bs: Ints
    early_bs: Floats
    late_bs: Floats
    registered: Ints
    until: Ints
    activity: Floats
    homes: Ints
    rate_bd: Floats
    life_bs: Floats

    def head(self, n: int) -> Users:
        """The first ``n`` users."""
        return Users(*(getattr(self, name)[:n] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Events:
    """Events as positions, (T,) each: user of the block, row of the catalog, behavior, city; UTC ms."""

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    behaviors: NDArray[np.int8]
    cities: NDArray[np.int8]
    timestamps: Ints

    def __len__(self) -> int:
        return len(self.timestamps)

    @classmethod
    def concatenated(cls, parts: Sequence[Events]) -> Events:
        """One after another."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))

    def where(self, chosen: NDArray[Any]) -> Events:
        """The events chosen by a mask, or by their positions in the order wanted."""
        return Events(*(getattr(self, name)[chosen] for name in self.__slots__))


class _Sessions(NamedTuple):
    """Bursts of activity, (K,) each: user of the block, day, interest, start in UTC ms, city."""

    users: Ints
    days: Ints
    interests: Ints
    starts: Ints
    cities: Ints


class CalendarEvent(NamedTuple):
    """Something everybody, or one region, can know of beforehand; days count from the first of the log.

    Attributes:
        kind: "sale", "holiday", "festival" or "newsletter".
        known_day: negative: known before the log begins.
        lift: factor on activity; 1.0 is no effect.
        region: None: everyone.
    """

    kind: str
    first_day: int
    n_days: int
    known_day: int
    lift: float
    region: str | None = None


class Laws:
    """Everything planted that does not depend on the number of users, and the two draws made from it.

    A block of users is drawn from its own seed, so that it is the same in a world of any size.

    Attributes:
        block_users: users of one block: as many as have about 65,536 events.
        catalog: the N items and what each of the G interests is about.
        appeal_g: share of each interest before attributes lean on it.
        lean_ag: log-odds of each interest, between an attribute's lowest value and its middle.
        peak_day_g: day of the year on which an interest is strongest.
        calendar: what happens, by first day.
    """

    def __init__(self, config: WorldConfig) -> None:
        G, D = config.n_interests, config.days
        self.config = config
        self.block_users = 2 ** min(10, max(4, round(math.log2(65_536 / config.events_per_user))))
        self.catalog = Catalog(config, self._rng(_CATALOG))
        rng = self._rng(_PLANTED)
        self.appeal_g = normalised(rng.lognormal(0.0, 0.4, G))
        even = np.linspace(-math.sqrt(3), math.sqrt(3), G)
        self.lean_ag = np.stack([a.weight * rng.permutation(even) for a in ATTRIBUTES])
        self.peak_day_g = rng.uniform(0, _YEAR, G)
        self.calendar = _calendar(config, rng)

        epoch_day = config.start_ms // DAY_MS + np.arange(D)
        self._weekday = (epoch_day + 3) % 7
        self._season_gd = np.exp(
            config.seasonality * np.cos((epoch_day % _YEAR - self.peak_day_g[:, None]) * 2 * np.pi / _YEAR)
        )
        self._moved = config.drift * (0.5 - 0.5 * np.cos(np.pi * np.arange(D) / (D - 1)))
        self._lift_rd = np.tile(_WEEKDAYS[self._weekday], (len(REGIONS), 1))
        for event in self.calendar:
            regions = slice(None) if event.region is None else REGIONS.index(event.region)
            self._lift_rd[regions, event.first_day : event.first_day + event.n_days] *= event.lift

        share = {BEHAVIORS[0]: 1.0}
        for behavior, after, probability, _, _ in _FUNNEL:
            share[behavior] = share[after] * probability
        events_per_session = LOOKS_PER_SESSION * sum(share.values())
        life = self._draw_users(self._rng(_PILOT)).rate_bd.sum(axis=1).mean()
        self._sessions_per_rate = config.events_per_user / events_per_session / life

    def block(self, number: int) -> tuple[Users, Events]:
        """The users of one block, and their events by user (not by time)."""
        users = self.users(number)
        rng = self._rng(_EVENTS, number)
        return users, self._follow_up(self._draw_views(self._draw_sessions(users, rng), rng), rng)

    def users(self, number: int) -> Users:
        """The users of one block."""
        return self._draw_users(self._rng(_USERS, number))

    def sessions(self, users: Users) -> Floats:
        """(B, D) how many sessions users have on each day on the mean, had nothing been on."""
        plain_bd = (users.rate_bd > 0) * _WEEKDAYS[self._weekday]
        sessions_bd: Floats = users.activity[:, None] * self._sessions_per_rate * plain_bd
        return sessions_bd

    def _rng(self, purpose: int, block: int = 0) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.config.seed, spawn_key=(purpose, block)))

    def _draw_users(self, rng: np.random.Generator) -> Users:
        config, B = self.config, self.block_users
        S = min(SLOTS, config.n_interests)
        attributes_ba = np.stack([rng.choice(len(a.values), B, p=a.shares) for a in ATTRIBUTES], axis=1)
        steps_a = np.array([len(a.values) - 1 for a in ATTRIBUTES])
        logits_bg = np.log(self.appeal_g) + config.attribute_strength * (
            (2 * attributes_ba / steps_a - 1) @ self.lean_ag
        )
        keys_bg = logits_bg + rng.gumbel(size=logits_bg.shape)
        slots_bs = np.argpartition(-keys_bg, S - 1, axis=1)[:, :S]
        slots_bs = rng.permuted(slots_bs, axis=1)

        n_held = np.minimum(1 + rng.choice(SLOTS, B, p=(0.15, 0.25, 0.25, 0.17, 0.1, 0.08)), S)[:, None]
        moved_on = rng.integers(0, 2, (B, 1))
        place_s = np.arange(S)
        early_bs = normalised(rng.standard_exponential((B, S)) * (place_s < n_held))
        fresh_bs = normalised(
            rng.standard_exponential((B, S)) * ((place_s >= moved_on) & (place_s < moved_on + n_held))
        )
        rate_bd, registered, until = self._draw_lives(attributes_ba[:, -1], rng)
        moved_b1 = (rate_bd @ self._moved / rate_bd.sum(axis=1))[:, None]
        return Users(
            attributes_ba=attributes_ba,
            star_signs=rng.integers(0, len(STAR_SIGNS), B),
            slots_bs=slots_bs,
            early_bs=early_bs,
            late_bs=fresh_bs,
            registered=registered,
            until=until,
            activity=np.minimum(rng.lognormal(-0.32, 0.8, B), 20.0),
            homes=3 * attributes_ba[:, -1] + rng.choice(3, B, p=(0.6, 0.3, 0.1)),
            rate_bd=rate_bd,
            life_bs=early_bs + moved_b1 * (fresh_bs - early_bs),
        )

    def _draw_lives(self, regions: Ints, rng: np.random.Generator) -> tuple[Floats, Ints, Ints]:
        """Activity by day (B, D), registration day (B,) and the day after the last one (B,)."""
        B, D = len(regions), self.config.days
        registered = np.where(rng.random(B) < 0.5, rng.integers(-730, 1, B), rng.integers(0, int(0.8 * D), B))
        first = np.maximum(registered, 0)
        until = np.where(rng.random(B) < 0.25, rng.integers(first + 1, D + 1), D)
        asleep = rng.integers(first + 1, D + 1)
        awake = asleep + np.where(rng.random(B) < 0.3, rng.integers(30, 150, B), 0)
        day = np.arange(D)
        alive_bd = (day >= first[:, None]) & (day < until[:, None])
        alive_bd &= (day < asleep[:, None]) | (day >= awake[:, None])
        return self._lift_rd[regions] * alive_bd, registered, until

    def _draw_sessions(self, users: Users, rng: np.random.Generator) -> _Sessions:
        """Bursts of activity: as many as a user's rate says, on days by their rate, for an interest of that day."""
        D = self.config.days
        ends = np.cumsum(users.rate_bd)
        upto = np.concatenate([[0.0], ends[D - 1 :: D]])
        rate_b = np.diff(upto)
        n_sessions = rng.poisson(users.activity * self._sessions_per_rate * rate_b)
        user_k = np.repeat(np.arange(len(rate_b)), n_sessions)
        K = len(user_k)
        at = upto[user_k] + rng.random(K) * rate_b[user_k]
        day_k = np.minimum(np.searchsorted(ends, at, side="right") - user_k * D, D - 1)

        slots_ks, moved_k1 = users.slots_bs[user_k], self._moved[day_k][:, None]
        share_ks = users.early_bs[user_k] * (1 - moved_k1) + users.late_bs[user_k] * moved_k1
        share_ks *= self._season_gd[slots_ks, day_k[:, None]]
        upto_ks = np.cumsum(share_ks, axis=1)
        slot_k = (upto_ks <= rng.random((K, 1)) * upto_ks[:, -1:]).sum(axis=1)
        away_k = rng.random(K) >= _AT_HOME
        return _Sessions(
            users=user_k,
            days=day_k,
            interests=slots_ks[np.arange(K), slot_k],
            starts=self.config.start_ms + day_k * DAY_MS + self._draw_time_of_day(day_k, rng),
            cities=np.where(away_k, rng.integers(0, len(CITIES), K), users.homes[user_k]),
        )

    def _draw_time_of_day(self, day_k: Ints, rng: np.random.Generator) -> Ints:
        """Milliseconds since midnight."""
        at = rng.random(len(day_k))
        hours = np.arange(25) * 3_600_000.0
        workday, weekend = (
            np.interp(at, np.concatenate([[0.0], np.cumsum(normalised(np.array(h, np.float64)))]), hours)
            for h in (_WORKDAY_HOURS, _WEEKEND_HOURS)
        )
        time_of_day: Ints = np.where(self._weekday[day_k] >= 5, weekend, workday).astype(np.int64)
        return time_of_day

    def _draw_views(self, sessions: _Sessions, rng: np.random.Generator) -> Events:
        """One to many looks a session, some seconds apart, ``purity`` of them within its interest."""
        n_looks = rng.geometric(1 / LOOKS_PER_SESSION, len(sessions.users))
        session_l = np.repeat(np.arange(len(n_looks)), n_looks)
        L = len(session_l)
        passed_l = np.cumsum(2_000 + rng.standard_exponential(L) * 45_000)
        passed_l -= passed_l[np.cumsum(n_looks) - n_looks][session_l]
        stray_l = np.searchsorted(np.cumsum(self.appeal_g)[:-1], rng.random(L), side="right")
        interest_l = np.where(rng.random(L) < self.config.purity, sessions.interests[session_l], stray_l)
        return Events(
            users=sessions.users[session_l].astype(np.int32),
            items=self.catalog.draw(interest_l, sessions.days[session_l], rng).astype(np.int32),
            behaviors=np.zeros(L, np.int8),
            cities=sessions.cities[session_l].astype(np.int8),
            timestamps=sessions.starts[session_l] + passed_l.astype(np.int64),
        )

    def _follow_up(self, views: Events, rng: np.random.Generator) -> Events:
        """The views and what came of them, up to the end of the log."""
        happened = {"view": (np.arange(len(views)), views.timestamps)}
        for behavior, after, probability, shortest, longest in _FUNNEL:
            rows, timestamps = happened[after]
            kept = np.flatnonzero(rng.random(len(rows)) < probability)
            delay = rng.integers(shortest * 1000, longest * 1000, len(kept))
            happened[behavior] = rows[kept], timestamps[kept] + delay
        counts = [len(rows) for rows, _ in happened.values()]
        events = replace(
            views.where(np.concatenate([rows for rows, _ in happened.values()])),
            behaviors=np.repeat(np.arange(len(counts), dtype=np.int8), counts),
            timestamps=np.concatenate([timestamps for _, timestamps in happened.values()]),
        )
        return events.where(events.timestamps < self.config.start_ms + self.config.days * DAY_MS)


def _calendar(config: WorldConfig, rng: np.random.Generator) -> list[CalendarEvent]:
    """What happens from the first day to ``HORIZON`` days after the last, by first day."""
    events = []
    first = np.datetime64(config.start, "D")
    for year in range(first.item().year, (first + config.days + HORIZON).item().year + 1):
        for month, day, length in _HOLIDAYS:
            on = int((np.datetime64(f"{year}-{month:02}-{day:02}") - first).astype(np.int64))
            if 0 <= on < config.days + HORIZON:
                events.append(CalendarEvent("holiday", on, length, on - 365, config.holiday_lift))
    lifts = {"sale": config.sale_lift, "festival": config.festival_lift, "newsletter": 1.0}
    for kind, (a_year, length, notice) in _MOVABLE.items():
        n = max(1, round(a_year * config.days / 365))
        stretch = config.days / n
        within = np.arange(n) * stretch + rng.random(n) * max(stretch - length, 0.0)
        ahead = config.days + rng.integers(0, HORIZON - length)
        for place, on in enumerate([*within.astype(np.int64).tolist(), int(ahead)]):
            region = REGIONS[place % len(REGIONS)] if kind == "festival" else None
            events.append(CalendarEvent(kind, on, length, on - notice, lifts[kind], region))
    return sorted(events, key=lambda event: event.first_day)
