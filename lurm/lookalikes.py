"""Lookalikes of users of a release: ids in, an audience with reasons out.

Everybody is scanned, exactly. Left out are seeds (unless they are wanted), whoever is excluded, whoever was erased, and
who does not pass the filter. Fewer seeds than ``k_min`` are refused, and so is an audience that a filter leaves fewer
for; no reason is told that fewer people share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lurm.artifacts import CHECKED, check_replaceable, replacing
from lurm.attributes import are_few
from lurm.audience import GROUPS_AT_MOST, Audience, Lookalike, Size, cut, health_of
from lurm.balance import Balance, Mix, counts_of, groups_of, mixed, parts_of
from lurm.bounds import POSITIVE, Bound
from lurm.conditions import Filter, document_of, filter_of
from lurm.errors import Unfulfillable, UnknownName, UsageError
from lurm.filters import Filters
from lurm.progress import Reporter
from lurm.reasons import Interests, OverIndexed
from lurm.release import Release

WEIGHT_AT_MOST = 1e6
_REASONS = 10
_ROWS = 32_768
_EXPLAINED_AT_ONCE = 2_000
_NO_PART = 1e-9
_LEAST_WEIGHT = 1e-9  # of the largest; sums of less are lost in float32


@dataclass(frozen=True, slots=True)
class Asked:
    """An audience as it is asked for.

    Attributes:
        seeds: ids of users the audience is to be like.
        size: how many.
        weights: how much each seed counts, 0 to a million; None: all the same. One who is given several times counts
            once, with the largest. Who weighs nothing teaches nothing, and is left out like any seed.
        negatives: ids of users it is to be unlike; they are not in it.
        exclude: ids of users who must not be in it.
        seeds_where: a filter; whoever passes it is a seed, too; None: nobody.
        seeds_of: a saved audience whose members are seeds, too; None: none.
        exclude_audiences: saved audiences whose members must not be in it.
        negative_audiences: saved audiences it is to be unlike; their members are not in it.
        include_seeds: whether seeds may be in it.
        where: who alone may be in it; None: everybody.
        balance: the mix it is to have; None: as it comes.
        expected: how many more of the seeds' kind there are in the base, at most as many as users; None: as many as
            there are seeds.
        n_groups: of seeds; None: as the data say.
        seed: of what is random: folds and groups.
    """

    seeds: Sequence[str]
    size: Size
    weights: Sequence[float] | None = None
    negatives: Sequence[str] = ()
    exclude: Sequence[str] = ()
    seeds_where: Filter | None = None
    seeds_of: str | None = None
    exclude_audiences: Sequence[str] = ()
    negative_audiences: Sequence[str] = ()
    include_seeds: bool = False
    where: Filter | None = None
    balance: Balance | None = None
    expected: float | None = None
    n_groups: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        POSITIVE.check("expected", self.expected)
        Bound(least=1, most=GROUPS_AT_MOST).check("groups", self.n_groups)
        if self.weights is None:
            return
        if len(self.weights) != len(self.seeds):
            raise UsageError(f"{len(self.weights)} weights for {len(self.seeds)} seeds, expected one for each")
        for weight in self.weights:
            Bound(least=0, most=WEIGHT_AT_MOST).check("a weight", weight)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values, from which ``Asked.of_json`` makes it again; what has its default is left out."""
        told: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or (field.default == () and not value):
                continue
            if isinstance(value, Size | Balance):
                value = asdict(value)
            elif field.name in ("where", "seeds_where"):
                value = document_of(value)
            told[field.name] = list(value) if isinstance(value, tuple) else value
        return told

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> Asked:
        """The audience of JSON values.

        Raises:
            UsageError: they are not those of one.
        """
        known = dict(document)
        try:
            known["size"] = Size(**known["size"])
            if "balance" in known:
                known["balance"] = Balance(**known["balance"])
            known |= {name: filter_of(known[name]) for name in ("where", "seeds_where") if name in known}
            if (most := max(known.get("weights") or [0.0])) > WEIGHT_AT_MOST:  # they count beside each other alone
                known["weights"] = [one * (WEIGHT_AT_MOST / most) for one in known["weights"]]
            return cls(**known)
        except (TypeError, KeyError) as error:
            raise UsageError("what it is to be like has other entries than expected") from error


@dataclass(frozen=True, slots=True)
class Found:
    """An audience and why it is one.

    Attributes:
        audience: rows and scores, most alike first.
        interests: that it has more often than everybody.
        seeds: rows of the seeds.
        scores_u: (U,) how much everybody is like them.
        mix: of a balanced audience, of each group that is told; see ``mixed``.
        groups_u: (U,) everybody's group, whose score is held against its own of ``audience.cutoffs_g``; those not known
            are the last. None where it is not balanced.
        asked: what for.
        k_min: fewest people who share a reason.
    """

    audience: Audience
    interests: list[OverIndexed]
    seeds: NDArray[np.int64]
    scores_u: NDArray[np.float32]
    mix: list[Mix]
    groups_u: NDArray[np.int64] | None
    asked: Asked
    k_min: int


MembersOf = Callable[[str], NDArray[np.int64]]
"""Rows of the members of a saved audience; ``UnknownName`` where there is none of the name."""


def nobody_saved(name: str) -> NDArray[np.int64]:
    """Where there are no saved audiences.

    Raises:
        UnknownName: always.
    """
    raise UnknownName(f"there is no saved audience {name!r}")


def find(
    release: Release,
    asked: Asked,
    *,
    k_min: int,
    reporter: Reporter,
    members_of: MembersOf = nobody_saved,
    alive_u: NDArray[np.bool_] | None = None,
    filters: Filters | None = None,
    reasons: int = _REASONS,
) -> Found:
    """The audience that is asked for.

    Args:
        release: whose users.
        asked: what for.
        k_min: fewest seeds, fewest users who may be in it, and fewest people who share a reason.
        reporter: told about the scan; what it raises ends it.
        members_of: who is in the saved audiences that are asked about.
        alive_u: (U,) of whom nothing is erased; None: of nobody.
        filters: of the release, with what they remember; None: new ones.
        reasons: at most so many interests.

    Raises:
        Unfulfillable: too few of the seeds are known, or of the negative ones; or all seeds are negative; or some users
            may be in it by a filter or saved audiences, and too few; or the release does not have what a filter names.
        UnknownName: there is no such saved audience.
    """
    filters = filters or filters_of(release, k_min)
    users = release.history.users
    alive_u = np.ones(len(release.history), bool) if alive_u is None else alive_u
    passes_u = None if asked.where is None else filters.mask(asked.where)
    given = _given(release, asked, members_of, filters)
    seeds, weights_s = _seeds(given, asked, alive_u)
    n_given = len(given) if asked.seeds_where is None and asked.seeds_of is None else None
    _protect("seeds", n_given, len(seeds), weights_s, k_min)
    if len(seeds) == np.count_nonzero(alive_u):
        raise Unfulfillable("everybody is a seed; nobody is left to be told from them")
    groups_u, values = groups_of(release.attributes, asked.balance)
    negatives = np.unique(np.concatenate([_rows(release, asked.negatives), *map(members_of, asked.negative_audiences)]))
    negatives = negatives[alive_u[negatives]]
    if len(asked.negatives) or asked.negative_audiences:
        _protect("negatives", None if asked.negative_audiences else len(asked.negatives), len(negatives), None, k_min)
    n_negative = int(np.isin(seeds, negatives).sum())
    if n_negative == len(seeds):
        raise Unfulfillable("all seeds are negatives, too: nobody can be like them and unlike them; leave one list out")
    eligible_u = alive_u.copy()
    eligible_u[_rows(release, asked.exclude)] = False
    eligible_u[negatives] = False
    for name in asked.exclude_audiences:
        eligible_u[members_of(name)] = False
    if not asked.include_seeds:
        eligible_u[given[given >= 0]] = False
    if passes_u is not None:
        eligible_u &= passes_u
    conditions = (asked.where, asked.seeds_where, asked.seeds_of, *asked.exclude_audiences, *asked.negative_audiences)
    if any(one is not None for one in conditions) and are_few(np.count_nonzero(eligible_u), k_min):
        few = f"fewer than {k_min:,} users (LURM_AUDIENCE_SEEDS) may be in it, which would tell who they are"
        raise Unfulfillable(f"{few}; let the filter be passed by more, or leave out fewer")
    lookalike = Lookalike(
        release.embeddings.vectors_ue,
        seeds,
        weights_s=weights_s,
        negatives=negatives,
        n_groups=asked.n_groups,
        seed=asked.seed,
    )
    with reporter.task("scan", len(users), "users") as task:
        scores_u = lookalike.scores(task.advance)
    counts_g = counts_of(asked.balance, groups_u, len(values), seeds, eligible_u)
    audience = cut(
        scores_u,
        eligible_u,
        asked.size,
        lookalike,
        n_expected=len(seeds) if asked.expected is None else asked.expected,
        health=health_of(len(given), _repeats(given, asked), seeds, release.embeddings.n_events, lookalike, n_negative),
        passes_u=alive_u if passes_u is None else passes_u & alive_u,
        groups_u=groups_u,
        shares_g=None if counts_g is None else parts_of(counts_g),
    )
    interests = Interests(release.vocabulary).over_indexed(release.history, audience.rows, top=reasons, k_min=k_min)
    mix = mixed(audience.rows, groups_u, counts_g, values, k_min)
    return Found(audience, interests, seeds, scores_u, mix, groups_u, asked, k_min)


def filters_of(release: Release, k_min: int = 1) -> Filters:
    """Filters over the users of a release; no error names a value that fewer than ``k_min`` have."""
    return Filters(release.history, release.vocabulary, release.attributes, k_min)


def why(release: Release, found: Found, rows: NDArray[np.int64], top: int) -> list[list[int]]:
    """For each of some users of an audience, the interests they share with its seeds, most of both first."""
    interests = Interests(release.vocabulary)
    profile_k = interests.profile(release.history.batch(found.seeds[:_EXPLAINED_AT_ONCE]))
    shared = []
    for start in range(0, len(rows), _EXPLAINED_AT_ONCE):
        some = release.history.batch(rows[start : start + _EXPLAINED_AT_ONCE])
        shared += interests.shared(profile_k, some, top)
    return shared


def facts(found: Found) -> dict[str, Any]:
    """What there is to say of an audience, who is in it aside: JSON values."""
    audience = found.audience
    return {
        "n_users": len(audience.rows),
        "n_eligible": audience.n_eligible,
        "n_missing": audience.n_missing,
        "health": asdict(audience.health),
        "reach": [asdict(one) for one in audience.reach],
        "reach_of": audience.reach_of,
        "expected": round(audience.expected, 3),
        "interests": [asdict(one) for one in found.interests],
        "mix": [asdict(one) for one in found.mix],
    }


def in_words(told: Mapping[str, Any], asked: Asked, k_min: int) -> str:
    """What ``facts`` says, for a person to read.

    Args:
        told: that.
        asked: what for.
        k_min: fewest people who share a reason.
    """
    health, reach, is_limited = told["health"], told["reach"], _is_limited(asked)
    of_all = told["reach_of"] == "everybody"
    among = "of everybody, for few seeds pass the filter" if of_all else "among those who may be in it"
    others = "them" if is_limited and not of_all else "everybody else"
    passing = " among those who pass the filter" if asked.where is not None and not of_all else ""
    return "\n".join(
        [
            _sized(told),
            f"seeds: {health['n_found']:,} of {health['n_given']:,} known, {health['n_duplicates']:,} repeats, "
            f"{health['n_cold']:,} with fewer than 5 events, "
            f"{health['n_groups']} group{'s' * (health['n_groups'] > 1)}, cohesion {health['cohesion']:.2f}",
            *([f"of the seeds {n:,} are negatives, too"] if (n := health.get("n_negative", 0)) else []),
            f"probabilities: of {told['expected']:,.0f} more of their kind{passing}",
            *([f"what a size buys{f' {among}' * is_limited}, by seeds held out:"] if reach else []),
            *(
                f"  {one['share']:6.1%} of {others}: {one['recall']:4.0%} of the seeds, {one['lift']:.1f} times chance"
                for one in reach
            ),
            "more often than everybody:"
            + ("" if told["interests"] else f" nothing that {k_min:,} of them share, as a reason has to be"),
            *(
                f"  {one['lift']:4.1f} times, {one['share']:4.0%} of them: {one['interest']}, {one['description']}"
                for one in told["interests"]
            ),
            *(_mix_in_words(told, k_min) if asked.balance is not None else []),
        ]
    )


def _mix_in_words(told: Mapping[str, Any], k_min: int) -> Iterator[str]:
    """The mix, and how much of it is not told by value."""
    yield "the mix, wanted and found:"
    n_users, n_others, others = max(told["n_users"], 1), told["n_users"], 1.0
    for one in told["mix"]:
        value = "not known" if one["value"] is None else one["value"]
        yield f"  {one['wanted']:6.1%}, {one['n_users'] / n_users:6.1%}: {value}"
        n_others, others = n_others - one["n_users"], others - one["wanted"]
    if n_others or others > _NO_PART:
        value = "all other values, of which" if told["mix"] else "all values, of which"
        few = f"fewer than {k_min:,} users (LURM_AUDIENCE_SEEDS) have some, and the rest would tell how many"
        yield f"  {others:6.1%}, {n_others / n_users:6.1%}: {value} {few}"


def _sized(told: Mapping[str, Any]) -> str:
    """How many are in it, and why nobody is, or fewer than asked for."""
    n_users, n_eligible, n_missing = told["n_users"], told["n_eligible"], told["n_missing"]
    if not n_eligible:
        return "nobody: there is nobody who may be in it"
    if not n_users and not n_missing:
        return f"nobody of {n_eligible:,} users: none is so probable, or the size is less than one of them"
    missing = f", {n_missing:,} fewer than asked for: the mix has no more" if n_missing else ""
    return f"{n_users:,} of {n_eligible:,} users{missing}"


def _is_limited(asked: Asked) -> bool:
    """Whether somebody may not be in it, seeds aside."""
    others = asked.negatives, asked.negative_audiences, asked.exclude, asked.exclude_audiences
    return asked.where is not None or any(others)


def check(destination: Path) -> None:
    """Whether ``write`` can write there.

    Raises:
        UsageError: its name does not end in ``.parquet``, or it is in a place that takes no file.
    """
    if destination.suffix != ".parquet":
        raise UsageError(f"{destination} cannot be written: expected the name of a .parquet file")
    check_replaceable(destination)


def write(release: Release, found: Found, destination: Path, reporter: Reporter) -> None:
    """Write an audience as Parquet: rank, user_id, percentile, probability, shared_interests (words), space_id.

    How many of the seeds' kind probabilities expect stands in the metadata of its schema: expected.

    Raises:
        UsageError: as ``check``.
    """
    check(destination)
    schema = pa.schema(
        [
            pa.field("rank", pa.int64(), nullable=False),
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("percentile", pa.float32(), nullable=False),
            pa.field("probability", pa.float32(), nullable=False),
            pa.field("shared_interests", pa.list_(pa.string()), nullable=False),
            pa.field("space_id", pa.string(), nullable=False),
        ],
        metadata={"expected": str(round(found.audience.expected, 3))},
    )
    audience, describe = found.audience, release.vocabulary.describe
    with (
        replacing(destination) as aside,
        pq.ParquetWriter(aside, schema, **CHECKED) as out,
        reporter.task("write", len(audience.rows), "users") as task,
    ):
        for start in range(0, len(audience.rows), _ROWS):
            some = slice(start, start + _ROWS)
            rows = audience.rows[some]
            words = [[describe(one).description for one in own] for own in why(release, found, rows, 3)]
            columns = [
                pa.array(np.arange(start + 1, start + len(rows) + 1)),
                pa.array(release.history.users.take(rows), pa.string()),
                pa.array(audience.percentile[some]),
                pa.array(audience.probability[some]),
                pa.array(words, pa.list_(pa.string())),
                pa.array([release.space_id] * len(rows), pa.string()),
            ]
            out.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            task.advance(len(rows))


def check_seeds(asked: Asked, k_min: int) -> None:
    """See what can be seen of seeds before anybody is looked up.

    Raises:
        Unfulfillable: they are named, and fewer than ``k_min``.
    """
    if asked.seeds_of is None and asked.seeds_where is None:
        _protect("seeds", len(asked.seeds), len(set(asked.seeds)), None, k_min)


def take_out(path: Path, is_gone: Callable[[str], bool]) -> None:
    """Write an audience's file once more without some users; ranks stay as they were.

    Args:
        path: of a file that ``write`` wrote; replaced whole.
        is_gone: whether a user is to be left out.
    """
    with (
        pq.ParquetFile(path) as file,
        replacing(path) as aside,
        pq.ParquetWriter(aside, file.schema_arrow, **CHECKED) as out,
    ):
        for batch in file.iter_batches(_ROWS):
            stays = [not is_gone(user_id) for user_id in batch["user_id"].to_pylist()]
            out.write_batch(batch.filter(pa.array(stays, pa.bool_())))


def _given(release: Release, asked: Asked, members_of: MembersOf, filters: Filters) -> NDArray[np.int64]:
    """Rows of all seeds as they are given: by id, by a filter, by a saved audience; -1 of who is not known."""
    rows = [release.history.users.rows(asked.seeds).astype(np.int64)]
    if asked.seeds_where is not None:
        rows.append(np.flatnonzero(filters.mask(asked.seeds_where)))
    if asked.seeds_of is not None:
        rows.append(members_of(asked.seeds_of))
    return np.concatenate(rows)


def _seeds(
    given: NDArray[np.int64], asked: Asked, alive_u: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
    """(S,) rows of the seeds that are known and not erased, ascending, each once, and weights, the most of them 1."""
    known = (given >= 0) & alive_u[given]
    if asked.weights is None:
        return np.unique(given[known]), None
    weights = np.append(asked.weights, np.ones(len(given) - len(asked.weights)))
    known &= weights > 0
    seeds, inverse = np.unique(given[known], return_inverse=True)
    weights_s = np.zeros(len(seeds))
    np.maximum.at(weights_s, inverse, weights[known])
    return seeds, (weights_s / weights_s.max(initial=0)).clip(_LEAST_WEIGHT).astype(np.float32)


def _repeats(given: NDArray[np.int64], asked: Asked) -> int:
    """Seeds that stood among them before."""
    of_audience = given[len(asked.seeds) :]
    return len(asked.seeds) - len(set(asked.seeds)) + int(np.isin(of_audience, given[: len(asked.seeds)]).sum())


def _protect(what: str, n_given: int | None, n_known: int, weights_s: NDArray[np.float32] | None, k_min: int) -> None:
    """Let nobody ask who a few people are like.

    Args:
        what: they are.
        n_given: ids; None: they are not all named.
        n_known: different users.
        weights_s: (S,) of each; None: all the same.
        k_min: fewest.

    Raises:
        Unfulfillable: they are fewer than ``k_min``, or some weigh so much that they might as well be.
    """
    if n_known < k_min:
        found = f"fewer than {k_min:,} users are meant" if n_known else "nobody is meant"
        if n_given is not None:
            found = f"{n_given:,} ids are given and {n_known:,} different users of them known"
        raise Unfulfillable(
            f"{what}: {found}, expected at least {k_min:,} (LURM_AUDIENCE_SEEDS), as with fewer an audience would tell "
            "who they are; give more"
        )
    if weights_s is not None:
        weights = weights_s.astype(np.float64)
        effective = weights.sum() ** 2 / (weights**2).sum()
        if not effective >= k_min:
            raise Unfulfillable(
                f"{what}: their weights make {n_known:,} users count as much as {effective:,.0f} alike would, expected "
                f"at least {k_min:,} (LURM_AUDIENCE_SEEDS); let them differ less"
            )


def _rows(release: Release, ids: Sequence[str]) -> NDArray[np.int64]:
    rows = release.history.users.rows(ids).astype(np.int64)
    return rows[rows >= 0]
