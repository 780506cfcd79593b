"""The saved audiences of one release: who is in them, what they share, and where one user stands as of now.

    a user's current vector x the directions of all audiences -> where the user stands in each

Whichever process is asked first finds the members; the others find them made. Where the folder cannot be written to,
each finds them for itself. What users do afterwards moves them alone: their current vector is held against the score of
the least alike member, and their history as it is now against filters. Audiences that are made of others follow theirs.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lurm.artifacts import READ_ONLY, alone, digest_of, discard
from lurm.attributes import Spread, are_few, spread
from lurm.definitions import MAKING, Definition, Definitions, in_order
from lurm.erasure import Ledger
from lurm.errors import ArtifactError, Unfulfillable, UnknownName, UnknownUser, UsageError
from lurm.filters import Filters
from lurm.histories import Alive
from lurm.history import History
from lurm.lookalikes import Asked, Found, filters_of, find
from lurm.meant import NamedInterest, as_of, meant_by
from lurm.members import VERSION, Making, Members, Stack, known_of, let_go
from lurm.moments import iso_of
from lurm.progress import Reporter, Silent
from lurm.release import Release
from lurm.rules import Alike, Combined, Filtered, Listed, Rule, combine, filters_in, sent_of

_log = logging.getLogger(__name__)
_OF_SEEDS = ("n_eligible", "n_missing", "health", "reach", "reach_of", "expected", "interests", "mix")


@contextmanager
def about(name: str) -> Iterator[None]:
    """Whoever asks for more than one audience is told which of them cannot be made."""
    try:
        yield
    except Unfulfillable as error:
        raise Unfulfillable(f"the audience {name!r} cannot be made: {error}") from error


@dataclass(frozen=True, slots=True)
class Place:
    """Where one user stands in one audience.

    Attributes:
        member: whether they are in it; None: it cannot be made of this release.
        score: cosine to the middle of the nearest group of seeds; larger is nearer. None where there are no seeds.
        percentile: part of the base that is less like the seeds, 0 to 100.
        probability: of being of the seeds' kind.
        why_not: why it cannot be made.
    """

    name: str
    kind: str
    member: bool | None
    score: float | None = None
    percentile: float | None = None
    probability: float | None = None
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many users audiences share.

    Attributes:
        names: A of them.
        n_users: of each; None: fewer than may be told.
        shared: (A, A) users of both; None: they, or those in one of the two alone, are fewer than may be told.
        jaccard: (A, A) shared users, as part of those in either; None likewise.
        why_not: why something is not told; None where all is.
    """

    names: list[str]
    n_users: list[int | None]
    shared: list[list[int | None]]
    jaccard: list[list[float | None]]
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """An audience of the release: who is in it, or why that cannot be told.

    Attributes:
        parts: keys of the audiences it is made of.
        key: of what went in.
        erased: of who was erased then.
        rule: the definition's, with interests by the numbers they have in the release.
        interests: that it names.
    """

    definition: Definition
    parts: Mapping[str, str]
    key: str
    members: Members | Unfulfillable
    rule: Rule
    erased: str
    interests: Sequence[NamedInterest] = ()

    @property
    def there(self) -> Members:
        """Who is in it.

        Raises:
            Unfulfillable: that cannot be told.
        """
        if isinstance(self.members, Unfulfillable):
            raise self.members
        return self.members


class Audiences:
    """The saved audiences of one release; any number of threads and processes may ask.

    Args:
        release: whose users.
        definitions: what is saved.
        ledger: of erasures; None: nobody was erased.
        k_min: fewest seeds, and fewest users who are counted.
        filters: of the release, with what they remember; None: new ones.
    """

    def __init__(
        self,
        release: Release,
        definitions: Definitions,
        *,
        ledger: Ledger | None,
        k_min: int,
        filters: Filters | None = None,
    ) -> None:
        self.release, self.definitions, self.k_min = release, definitions, k_min
        self._who_is_alive = Alive(release.history, ledger)
        self._filters = filters or filters_of(release, k_min)
        self._made: dict[str, Made] = {}
        self._stacked: tuple[tuple[tuple[str, str], ...], Stack] | None = None
        self._lock = threading.RLock()

    def all(self, reporter: Reporter | None = None) -> dict[str, Made]:
        """Every audience by name, each after those it is made of; made now where it was not yet.

        One that is deleted meanwhile is left out. Those whose definition is not as it was written are in nobody's way;
        ``summaries`` tells of them.
        """
        with self._lock:
            self._made = self._all_of(self.definitions.read()[0], reporter)
            return self._made

    def some(self, names: Collection[str], reporter: Reporter | None = None) -> dict[str, Made]:
        """Audiences by name, with those they are made of, of which no others are made; as ``all``.

        Raises:
            UnknownName: there is none of a name.
            ArtifactCorrupt: the definition of one of them is not as it was written.
        """
        with self._lock:
            made = self._all_of(self.definitions.some(names), reporter, needed=names)
            self._made = {**self._made, **made}
            return made

    def put(self, name: str, rule: Rule) -> Definition:
        """Save an audience; nothing is saved that asks for what no release like this one has.

        Raises:
            Unfulfillable: a filter, or the attribute of a balance, names what the release has not; or as
                ``Definitions.put``.
            UsageError: this can be no name.
        """
        for where in filters_in(rule):
            self._filters.passing(where)
        if isinstance(rule, Alike) and rule.asked.balance is not None:
            self.release.attributes[rule.asked.balance.attribute]
        return self.definitions.put(name, rule, meant_by(rule, self.release))

    def members(self, name: str, reporter: Reporter | None = None) -> Members:
        """Who is in one audience.

        Raises:
            UnknownName: there is none of this name.
            Unfulfillable: it cannot be made of this release.
        """
        return self.some([name], reporter)[name].there

    def told(self, name: str, reporter: Reporter | None = None) -> dict[str, Any]:
        """What there is to say of one audience: JSON values.

        Raises:
            UnknownName, Unfulfillable: as ``members``.
        """
        one = self.some([name], reporter)[name]
        return self._told(one, one.there.facts)

    def told_once_saved(self, name: str, given: Rule, reporter: Reporter | None = None) -> dict[str, Any]:
        """The same for whoever has just saved it; why it cannot be made of this release is told then, and no error.

        Args:
            name: of the audience.
            given: the rule as it was given: ids of who was ever erased are not kept, and count among those given.
            reporter: told about progress.

        Raises:
            UnknownName: it was deleted meanwhile.
        """
        one, alive_u = self.some([name], reporter)[name], self._who_is_alive.now()[0]
        kept, asked = (known_of(self.release, rule, alive_u) for rule in (one.rule, given))
        known = {which: {**ids, "n_known": kept.get(which, {}).get("n_known", 0)} for which, ids in asked.items()}
        if not isinstance(one.members, Unfulfillable):
            return {**self._told(one, one.members.facts), "known": known}
        return self._told(one, {"known": known}, str(one.members))

    def _told(self, one: Made, facts: Mapping[str, Any], why_not: str | None = None) -> dict[str, Any]:
        return {
            "name": one.definition.name,
            "kind": one.definition.kind,
            "saved_at": iso_of(one.definition.saved_at),
            "release": self.release.release_id,
            "space_id": self.release.space_id,
            "n_users": facts.get("n_users"),
            "churn": facts.get("churn"),
            "why_not": why_not,
            "known": facts.get("known", {}),
            "definition": sent_of(one.rule),
            "filter_interests": [asdict(interest) for interest in one.interests],
            **{fact: facts.get(fact) for fact in _OF_SEEDS},
        }

    def spread(self, most: int) -> list[Spread]:
        """How each attribute is spread over the users who are not erased, with at most so many values."""
        alive_u = self._who_is_alive.now()[0]
        return [spread(one, alive_u, k_min=self.k_min, most=most) for one in self.release.attributes]

    def find(self, asked: Asked, reporter: Reporter) -> Found:
        """An audience that is asked for and not saved; see ``lookalikes.find``.

        Raises:
            Unfulfillable, UnknownName: as that.
        """
        return find(
            self.release,
            asked,
            k_min=self.k_min,
            reporter=reporter,
            members_of=self.rows_of,
            alive_u=self._who_is_alive.now()[0],
            filters=self._filters,
        )

    def known(self, asked: Asked) -> dict[str, dict[str, int]]:
        """How many ids of its lists are given and known; see ``members.known_of``."""
        return known_of(self.release, Alike(asked), self._who_is_alive.now()[0])

    def rows_of(self, name: str) -> NDArray[np.int64]:
        """Rows of the members of one audience; see ``members``."""
        with about(name):
            return np.asarray(self.members(name).rows)

    def places(self, user_id: str, row: int, vector_e: NDArray[np.float32], history: History | None) -> list[Place]:
        """Where one user stands in every audience, by one product.

        Args:
            user_id: whose.
            row: in the release; -1: it does not know them.
            vector_e: (E,) their current embedding.
            history: as it is now; None: the release has all of it, and so says who is a member.
        """
        made = self.all()
        stack = self._stack(made)
        scores, cosines = stack.product(vector_e)
        as_scanned = row >= 0 and (history is None or np.array_equal(vector_e, self.release.embeddings.vectors_ue[row]))
        member: dict[str, bool] = {}
        places = []
        for name, one in made.items():
            rule, members = one.rule, one.members
            if isinstance(members, Unfulfillable):
                places.append(Place(name, one.definition.kind, None, why_not=str(members)))
                continue
            if isinstance(rule, Combined):
                member[name] = bool(combine(rule.term, member.__getitem__, True))
            elif history is None or isinstance(rule, Listed):
                member[name] = bool(members.member_u[row]) if row >= 0 else members.names(user_id)
            elif isinstance(rule, Filtered):
                member[name] = self._filters.passes(rule.where, row, history)
            else:
                kept_out = members.names(user_id) if row < 0 else not members.may_u[row]
                kept_out = kept_out or self._keeps_out(rule.asked, member, row, history)
                score, cutoff = members.scores_u[row] if as_scanned else scores[name], members.cutoff(row)
                # Of those who are as much alike as the last member, the release has chosen.
                reaches = score > cutoff or (score == cutoff and not (as_scanned and not members.member_u[row]))
                member[name] = not kept_out and bool(reaches)
            if members.likeness is None:
                places.append(Place(name, one.definition.kind, member[name]))
                continue
            alike = np.array([members.scores_u[row] if as_scanned else scores[name]], np.float32)
            percentile = float(members.percentile_of(alike)[0])
            probability = float(members.likeness.probability(alike)[0])
            places.append(Place(name, one.definition.kind, member[name], cosines[name], percentile, probability))
        return sorted(places, key=lambda place: place.name)

    def _keeps_out(self, asked: Asked, member: Mapping[str, bool], row: int, history: History) -> bool:
        """Whether a user cannot be in an audience as of now, by other audiences, as a seed, or by the filter."""
        if any(member[other] for other in (*asked.exclude_audiences, *asked.negative_audiences)):
            return True
        if not asked.include_seeds:
            if asked.seeds_of is not None and member[asked.seeds_of]:
                return True
            if asked.seeds_where is not None and self._filters.passes(asked.seeds_where, row, history):
                return True
        return asked.where is not None and not self._filters.passes(asked.where, row, history)

    def places_in_release(self, user_id: str) -> list[Place]:
        """Where one user stands in every audience, as the release has them; live events are not looked at.

        Raises:
            UnknownUser: the release does not know them, or they were erased.
        """
        row = self.release.history.users.row(user_id)
        if row < 0 or not self._alive(np.array([row], np.int64)).all():
            raise UnknownUser(user_id)
        return self.places(user_id, row, np.asarray(self.release.embeddings.vectors_ue[row]), None)

    def summaries(self, reporter: Reporter | None = None) -> list[dict[str, Any]]:
        """What there is to list of every audience, by name: JSON values."""
        nothing = dict.fromkeys(("saved_at", "n_users", "churn"))
        damaged = self.definitions.read()[1]
        why = "its definition is not as it was written; save it anew, or delete it"
        told = [{"name": name, "kind": "damaged", **nothing, "why_not": why} for name in damaged]
        for name, one in sorted(self.all(reporter).items()):
            why_not = str(one.members) if isinstance(one.members, Unfulfillable) else None
            facts = {} if isinstance(one.members, Unfulfillable) else one.members.facts
            told_of = {fact: facts.get(fact) for fact in ("n_users", "churn")}
            saved_at = iso_of(one.definition.saved_at)
            told.append(
                {"name": name, "kind": one.definition.kind, "saved_at": saved_at, **told_of, "why_not": why_not}
            )
        return sorted(told, key=lambda one: str(one["name"]))

    def table(
        self, name: str, reporter: Reporter | None = None, *, start: int = 0, most: int | None = None
    ) -> pa.Table:
        """Members of an audience, most alike first, who was erased left out: rank, user_id, percentile, probability.

        Args:
            name: of the audience.
            reporter: told about the work, where members have to be found first.
            start: ranks after this one.
            most: so many ranks; None: all.

        Raises:
            UnknownName, Unfulfillable: as ``members``.
        """
        members = self.members(name, reporter)
        some = slice(start, len(members) if most is None else start + most)
        rows = np.asarray(members.rows[some])
        ranks = np.arange(start + 1, start + len(rows) + 1)
        columns = {
            "rank": pa.array(ranks, pa.int64()),
            "user_id": pa.array(self.release.history.users.take(rows), pa.string()),
        }
        for column, values in (("percentile", members.percentile), ("probability", members.probability)):
            known = np.asarray(values[some]) if len(values) else [None] * len(rows)
            columns[column] = pa.array(known, pa.float32())
        return pa.table(columns).filter(pa.array(self._alive(rows)))

    def _alive(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N,) of whom nothing that the release has was erased."""
        return self._who_is_alive.now()[0][rows]

    def overlap(self, names: Sequence[str]) -> Overlap:
        """How many users audiences share, where neither that nor what sizes make of it counts fewer than ``k_min``.

        Raises:
            UnknownName, Unfulfillable: as ``members``.
        """
        made = self.some(names)
        bits = []
        for name in names:
            with about(name):
                bits.append(made[name].there.member_u)
        shared = np.array([[int((one & other).sum()) for other in bits] for one in bits], np.int64)
        shared = shared.reshape(len(bits), len(bits))
        sizes = np.diagonal(shared)
        alone = sizes[:, None] - shared
        either = sizes[:, None] + alone.T
        hidden = are_few(shared, self.k_min) | are_few(alone, self.k_min) | are_few(alone.T, self.k_min)
        told, jaccard = shared.astype(object), (shared / np.maximum(either, 1)).astype(object)
        told[hidden] = jaccard[hidden | (either == 0)] = None
        why_not = f"where nothing is told, fewer than {self.k_min:,} users are in both, or in one alone"
        return Overlap(
            list(names),
            np.diagonal(told).tolist(),
            told.tolist(),
            jaccard.tolist(),
            why_not if hidden.any() else None,
        )

    def _stack(self, made: Mapping[str, Made]) -> Stack:
        keys = tuple((name, one.key) for name, one in made.items())
        if self._stacked is None or self._stacked[0] != keys:
            alike = {
                name: one.members.likeness
                for name, one in made.items()
                if isinstance(one.members, Members) and one.members.likeness is not None
            }
            self._stacked = keys, Stack(alike)
        return self._stacked[1]

    def _all_of(
        self, there: Mapping[str, Definition], reporter: Reporter | None, *, needed: Collection[str] = ()
    ) -> dict[str, Made]:
        made: dict[str, Made] = {}
        living = self._who_is_alive.now()
        for definition in in_order(there):
            try:
                made[definition.name] = self._one(definition, made, living, reporter or Silent())
            except UnknownName:  # it was deleted since it was read
                if definition.name in needed:
                    raise
        return made

    def _one(
        self,
        definition: Definition,
        made_before: Mapping[str, Made],
        living: tuple[NDArray[np.bool_], str],
        reporter: Reporter,
    ) -> Made:
        alive_u, erased = living
        parts = {name: made_before[name].key for name in sorted(definition.uses) if name in made_before}
        known = self._made.get(definition.name)
        # What has not been read anew is the same; to take its digest would cost more than to answer.
        if known is not None and known.definition is definition and (known.parts, known.erased) == (parts, erased):
            return known
        key = digest_of([VERSION, self.release.release_id, definition.digest, parts, self.k_min, erased])
        made = functools.partial(Made, definition, parts, key)
        try:
            of = self._parts_of(definition, made_before)
            rule, interests = as_of(definition.rule, definition.meant, self.release)
            making = Making(self.release, definition, rule, of, alive_u, self.k_min, self._filters, reporter)
            return made(self._opened(making, definition.name, key), rule, erased, interests)
        except Unfulfillable as error:
            self.definitions.check_there(definition.name)  # it may have gone with what it is made of
            return made(error, definition.rule, erased)
        except (UsageError, ArithmeticError, ValueError, LookupError) as error:
            _log.exception("finding the members of a saved audience failed")
            why = f"finding its members failed ({type(error).__name__}), which is an error of lurm; the log says more"
            return made(Unfulfillable(why), definition.rule, erased)

    def _parts_of(self, definition: Definition, made: Mapping[str, Made]) -> dict[str, Members]:
        """Members of the audiences that one is made of.

        Raises:
            Unfulfillable: one of them is not there, or cannot be answered.
        """
        of = {}
        for name in sorted(definition.uses):
            if name not in made:
                raise Unfulfillable(f"it is made of {name!r}, a saved audience that is not there, or damaged")
            with about(name):
                of[name] = made[name].there
        return of

    def _opened(self, making: Making, name: str, key: str) -> Members:
        own = self.definitions.folder_of(name)
        folder = own / f"{self.release.release_id}-{key[:16]}"
        with suppress(ArtifactError, FileNotFoundError):  # not made yet, just removed, or damaged
            return Members.open(folder)
        try:
            with alone(own, MAKING):  # the others find them made
                self.definitions.check_there(name)
                with suppress(ArtifactError, FileNotFoundError):
                    return Members.open(folder)
                if folder.exists():
                    discard(folder)  # it can be found anew
                making.write(folder, key)
                let_go(own, folder)
                return Members.open(folder, verify=False)
        except OSError as error:
            if error.errno not in READ_ONLY:
                self.definitions.check_there(name)  # its folder may have gone with it
                raise
            return making.in_memory(own)
