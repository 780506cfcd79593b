"""The members of one saved audience: found once for each release and definition, kept as an artifact beside it.

    definition + release + members of other audiences -> who is in it, ranked; and what a vector is held against

What is kept knows users by row, and by hash where releases are compared.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lurm.arrays import map_array, write_array
from lurm.artifacts import discard, draft, open_artifact
from lurm.attributes import are_few
from lurm.audience import Likeness
from lurm.conditions import Filter
from lurm.definitions import Definition
from lurm.errors import LurmError, Unfulfillable
from lurm.filters import Filters
from lurm.identifiers import hash_ids
from lurm.lookalikes import facts, find
from lurm.progress import Reporter
from lurm.release import Release
from lurm.rules import Alike, Combined, Filtered, Listed, Rule, combine

KIND = "audience"
VERSION = 8
"""Of what is kept; goes into the key, so that what an older lurm kept is made again."""
_SCALE = 100_001  # scores that percentiles are read from, at most
_BOOL, _GROUP, _ROW, _HASH, _FLOAT = (np.dtype(one) for one in ("?", "<i4", "<i8", "<u8", "<f4"))
_DTYPES = {"member": _BOOL, "may": _BOOL, "rows": _ROW, "strangers": _HASH, "groups": _GROUP}
_WIDE = ("directions", "middles")
_HASHES = "hashes.npy"


class Members:
    """The members of an audience among U users of a release.

    Attributes:
        facts: size, churn and what ``lookalikes.facts`` says; JSON values.
        member_u: (U,) who is in it.
        rows: (N,) the members' rows, most alike first; of several audiences put together by the one that is like
            seeds, and in no order where none or several are; nor of a filter.
        percentile, probability: (N,) of members, in that order; empty where there is none.
        may_u: (U,) whom the definition does not keep out by name; empty where there are no seeds.
        strangers: ascending hashes of ids the release does not know, and the definition names.
        likeness: what vectors are held against; None where there are no seeds.
        groups_u: (U,) everybody's group of a balanced audience, those not known in the last; else empty.
        cutoffs_g: (G,) score of the least alike member of each group, see ``Audience.cutoffs_g``.
        scores_u: (U,) how much everybody is like the seeds, as the release has them; empty where there are none.
        scale: the same, or enough of it, ascending.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        self.facts = facts
        self.member_u: NDArray[np.bool_] = arrays["member"]
        self.rows: NDArray[np.int64] = arrays["rows"]
        self.percentile: NDArray[np.float32] = arrays["percentile"]
        self.probability: NDArray[np.float32] = arrays["probability"]
        self.may_u: NDArray[np.bool_] = arrays["may"]
        self.strangers: NDArray[np.uint64] = arrays["strangers"]
        self.scores_u: NDArray[np.float32] = arrays["scores"]
        self.scale: NDArray[np.float32] = arrays["scale"]
        self.groups_u: NDArray[np.int32] = arrays["groups"]
        self.cutoffs_g: NDArray[np.float32] = arrays["cutoffs"]
        self.likeness: Likeness | None = None
        if "directions" in arrays:
            names = ("directions", "offsets", "middles", "others", "steps")
            self.likeness = Likeness(*(arrays[name] for name in names))

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> Members:
        """Map what was kept.

        Raises:
            ArtifactError: as ``open_artifact``.
        """
        manifest = open_artifact(folder, KIND, verify=verify).manifest
        names = [Path(file).stem for file in manifest.files if file != _HASHES]
        arrays = {
            name: map_array(folder / f"{name}.npy", _DTYPES.get(name, _FLOAT), 2 if name in _WIDE else 1)
            for name in names
        }
        return cls(arrays, manifest.metrics)

    def __len__(self) -> int:
        return len(self.rows)

    def cutoff(self, row: int) -> float:
        """Score from which a user of this row is in it; row -1: one of whom nothing is known."""
        if not len(self.groups_u):
            return float(self.cutoffs_g[0])
        return float(self.cutoffs_g[self.groups_u[row] if row >= 0 else -1])

    def percentile_of(self, scores_n: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,) how many of a hundred users are less like the seeds than users of such scores are."""
        below_n: NDArray[np.float64] = 100 * self.scale.searchsorted(scores_n, "left") / max(len(self.scale), 1)
        return below_n

    def names(self, user_id: str) -> bool:
        """Whether the definition names a user the release does not know."""
        if not len(self.strangers):
            return False
        digest = hash_ids([user_id])[0]
        at = int(self.strangers.searchsorted(digest))
        return at < len(self.strangers) and bool(self.strangers[at] == digest)


class Stack:
    """What all audiences hold a vector against, in one matrix."""

    def __init__(self, alike: Mapping[str, Likeness]) -> None:
        self._names = list(alike)
        self._widths = [len(one.directions_ke) for one in alike.values()]
        self._offsets_k = np.concatenate([one.offsets_k for one in alike.values()] or [np.empty(0, np.float32)])
        self._middles = [len(one.middles_ke) for one in alike.values()]
        parts = [one.directions_ke for one in alike.values()] + [one.middles_ke for one in alike.values()]
        self._all = np.concatenate(parts) if parts else None

    def product(self, vector_e: NDArray[np.float32]) -> tuple[dict[str, float], dict[str, float]]:
        """By name: how much the user of a vector is like the seeds, and the cosine to their middle."""
        if self._all is None:
            return {}, {}
        products = self._all @ vector_e
        n_directions = len(self._offsets_k)
        likes = _most_of(products[:n_directions] - self._offsets_k, self._widths)
        cosines = _most_of(products[n_directions:], self._middles)
        return dict(zip(self._names, likes, strict=True)), dict(zip(self._names, cosines, strict=True))


def _most_of(values: NDArray[np.float32], widths: Sequence[int]) -> list[float]:
    starts = np.cumsum([0, *widths[:-1]])
    most: list[float] = np.maximum.reduceat(values, starts).tolist()
    return most


class Making:
    """Finds the members of one audience, and writes them.

    Args:
        release: whose users.
        definition: of the audience.
        rule: the same, in the numbers of the release.
        of: members of the audiences it is made of.
        alive_u: (U,) of whom nothing is erased.
        k_min: fewest seeds, and fewest users who are counted.
        filters: of the release.
        reporter: told about the work.
    """

    def __init__(
        self,
        release: Release,
        definition: Definition,
        rule: Rule,
        of: Mapping[str, Members],
        alive_u: NDArray[np.bool_],
        k_min: int,
        filters: Filters,
        reporter: Reporter,
    ) -> None:
        self._release, self._definition, self._rule, self._of = release, definition, rule, of
        self._alive_u, self._k_min, self._filters, self._reporter = alive_u, k_min, filters, reporter

    def write(self, folder: Path, key: str) -> None:
        """Publish the members as an artifact.

        Raises:
            Unfulfillable: it cannot be made of this release.
        """
        arrays, told = self._found(folder.parent)
        config = {
            "kind": self._definition.kind,
            "definition": self._definition.digest,
            "release": self._release.release_id,
            "space_id": self._release.space_id,
        }
        with draft(folder, kind=KIND, key=key, config=config) as work:
            for name, array in arrays.items():
                write_array(work.path / f"{name}.npy", array)
            work.metrics.update(told)

    def in_memory(self, own: Path) -> Members:
        """The same members, kept nowhere.

        Args:
            own: folder of what was made of the audience before.

        Raises:
            Unfulfillable: as ``write``.
        """
        return Members(*self._found(own))

    def _found(self, own: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        rule, started = self._rule, time.perf_counter()
        match rule:
            case Listed(user_ids):
                arrays, told = self._listed(user_ids)
            case Filtered(where):
                arrays, told = self._filtered(where)
            case Combined(term):
                arrays, told = self._combined(term)
            case Alike():
                arrays, told = self._alike(rule)
        rows = arrays["rows"]
        member_u = np.zeros(len(self._alive_u), bool)
        member_u[rows] = True
        hashes = np.sort(hash_ids(self._release.history.users.take(rows)))
        nothing: dict[str, NDArray[Any]] = {
            name: np.empty(0, _FLOAT) for name in ("percentile", "probability", "scores", "scale", "cutoffs")
        }
        nothing |= {"may": np.empty(0, bool), "strangers": np.empty(0, _HASH), "groups": np.empty(0, _GROUP)}
        arrays = {**nothing, **arrays, "member": member_u, "hashes": hashes}
        told["known"] = known_of(self._release, rule, self._alive_u)
        told |= {"n_users": len(rows), "churn": self._churn(own, hashes), "seconds": time.perf_counter() - started}
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}, told

    def _listed(self, user_ids: Sequence[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        rows, strangers = self._known(user_ids)
        return {"rows": rows[self._alive_u[rows]], "strangers": strangers}, {"n_given": len(user_ids)}

    def _filtered(self, where: Filter) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        rows = np.flatnonzero(self._filters.mask(where) & self._alive_u)
        self._protect(len(rows), "let the filter be passed by more")
        return {"rows": rows}, {}

    def _combined(self, term: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        both = combine(term, lambda name: np.asarray(self._of[name].member_u), self._alive_u) & self._alive_u
        rows = np.flatnonzero(both)
        self._protect(len(rows), "put together larger ones")
        alike = [one for name in self._definition.ranks_by if (one := self._of[name]).likeness is not None]
        if len(alike) != 1:
            return {"rows": rows}, {}
        (by,) = alike  # where there is one, it says who comes first
        rows = rows[np.lexsort((rows, -by.scores_u[rows]))]
        scores, likeness = by.scores_u[rows], by.likeness
        assert likeness is not None
        percentile, probability = by.percentile_of(scores), likeness.probability(scores)
        return {"rows": rows, "percentile": percentile.astype(_FLOAT), "probability": probability.astype(_FLOAT)}, {}

    def _protect(self, n_users: int, instead: str) -> None:
        """See that there are enough of those whom nobody has named, or none.

        Raises:
            Unfulfillable: there are so few that it would tell who they are.
        """
        if are_few(n_users, self._k_min):
            few = f"fewer than {self._k_min:,} users (LURM_AUDIENCE_SEEDS) are in it, which would tell who they are"
            raise Unfulfillable(f"{few}; {instead}")

    def _alike(self, rule: Alike) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        asked = rule.asked
        found = find(
            self._release,
            asked,
            k_min=self._k_min,
            reporter=self._reporter,
            members_of=lambda name: np.asarray(self._of[name].rows),
            alive_u=self._alive_u,
            filters=self._filters,
        )
        audience, likeness = found.audience, found.audience.likeness
        named = [*asked.exclude, *asked.negatives, *(() if asked.include_seeds else asked.seeds)]
        kept_out, strangers = self._known(named)
        may_u = np.ones(len(self._alive_u), bool)
        may_u[kept_out] = False
        for name in asked.negative_audiences:
            may_u[self._of[name].rows] = False
        if not asked.include_seeds:
            may_u[found.seeds] = False
        scale = np.sort(found.scores_u)
        if len(scale) > _SCALE:
            scale = scale[np.linspace(0, len(scale) - 1, _SCALE).round().astype(np.int64)]
        arrays: dict[str, NDArray[Any]] = {
            "rows": audience.rows,
            "percentile": audience.percentile,
            "probability": audience.probability,
            "may": may_u,
            "strangers": strangers,
            "scores": found.scores_u,
            "scale": scale,
            "cutoffs": audience.cutoffs_g,
            "directions": likeness.directions_ke,
            "offsets": likeness.offsets_k,
            "middles": likeness.middles_ke,
            "others": likeness.others_n.astype(_FLOAT),
            "steps": likeness.probability_p,
        }
        if found.groups_u is not None:
            arrays["groups"] = found.groups_u.astype(_GROUP)
        return arrays, facts(found)

    def _known(self, user_ids: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Rows of those the release knows, ascending, each once; and hashes of the others, ascending."""
        rows = self._release.history.users.rows(user_ids).astype(np.int64)
        others = [user_id for user_id, row in zip(user_ids, rows.tolist(), strict=True) if row < 0]
        return np.unique(rows[rows >= 0]), np.unique(hash_ids(others))

    def _churn(self, own: Path, hashes: NDArray[np.uint64]) -> dict[str, Any] | None:
        """Who came and went since the release before, who was erased left out; None where it was not made of one."""
        for before in _newest_first(own):
            with suppress(LurmError):
                made = open_artifact(before, KIND, verify=False).manifest.config
                if made["release"] == self._release.release_id or made["definition"] != self._definition.digest:
                    continue
                gone = hash_ids(self._release.history.users.take(np.flatnonzero(~self._alive_u)))
                then = np.setdiff1d(map_array(before / _HASHES, _HASH), gone, assume_unique=True)
                stayed = len(np.intersect1d(then, hashes, assume_unique=True))
                counts = {"joined": len(hashes) - stayed, "left": len(then) - stayed, "stayed": stayed}
                told: dict[str, int | None] = {**counts}
                why_not = None
                if are_few(list(counts.values()), self._k_min).any():
                    told = dict.fromkeys(counts)  # with the sizes, each tells the others
                    why_not = f"fewer than {self._k_min:,} users joined, left or stayed"
                return {"since": made["release"], **told, "why_not": why_not}
        return None


def known_of(release: Release, rule: Rule, alive_u: NDArray[np.bool_]) -> dict[str, dict[str, int]]:
    """How many ids of each list of a rule are given and known, each counted once; of a list without any, nothing."""
    lists: dict[str, Sequence[str]] = {}
    if isinstance(rule, Listed):
        lists = {"users": rule.user_ids}
    if isinstance(rule, Alike):
        lists = {name: getattr(rule.asked, name) for name in ("seeds", "negatives", "exclude")}
    told = {}
    for name, ids in lists.items():
        rows = np.unique(release.history.users.rows(ids))
        if ids:
            told[name] = {"n_given": len(set(ids)), "n_known": int(alive_u[rows[rows >= 0]].sum())}
    return told


def _newest_first(own: Path) -> list[Path]:
    """What was made of an audience, the newest first."""
    there = list(own.glob("[!.]*/manifest.json"))
    return [path.parent for path in sorted(there, key=lambda path: -path.stat().st_mtime_ns)]


def let_go(own: Path, kept: Path) -> None:
    """Keep what was just made, and the last of another release, for the next churn and for a rollback."""
    release = kept.name[: -len("-0123456789abcdef")]
    others: set[str] = set()
    for path in _newest_first(own):
        of = path.name[: -len("-0123456789abcdef")]
        if path == kept or (of != release and not others):
            others |= {of} - {release}
            continue
        discard(path)
