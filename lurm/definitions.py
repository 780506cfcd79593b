"""Saved audiences as they are defined: who is meant, in files that all processes share.

    <root>/audiences/<name>/definition.json    replaced by rename; gone first when the audience is deleted
    <root>/audiences/<name>/<release>-<key>/   who that is, of one release (see ``lurm.members``)

An audience is a question, see ``lurm.rules``. Who was erased since it was saved is in no definition: they are taken out
of the files, and where a process died before that, out of what is read.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from lurm.artifacts import alone, changing, digest_of, discard, write_durably
from lurm.erasure import Ledger
from lurm.errors import ArtifactCorrupt, Unfulfillable, UnknownName, UsageError
from lurm.meant import Meant
from lurm.phrases import first_of, quoted
from lurm.rules import (
    NAME,
    Alike,
    Combined,
    Filtered,
    Listed,
    Rule,
    check_name,
    document_of,
    names_in,
    rule_of,
    wanted_in,
)

FOLDER, FILE = "audiences", "definition.json"
AT_MOST = 1000
"""Saved audiences of one folder of artifacts."""
MAKING = ".making"
"""Lock of whoever finds the members of an audience, or removes what was found."""
_NAMED = 3  # audiences, in an error
_NAME = re.compile(NAME)


@dataclass(frozen=True, slots=True)
class Definition:
    """A saved audience.

    Attributes:
        name: lower-case letters, digits, _ and -.
        rule: who is meant.
        saved_at: epoch ms.
        meant: what the interests that it names by number were then; of a file that does not say, nothing.
    """

    name: str
    rule: Rule
    saved_at: int
    meant: tuple[Meant, ...] = ()

    @property
    def uses(self) -> set[str]:
        """Names of the audiences it is made of."""
        match self.rule:
            case Combined(term):
                return set(names_in(term))
            case Alike(asked):
                seeds_of = [] if asked.seeds_of is None else [asked.seeds_of]
                return {*asked.exclude_audiences, *asked.negative_audiences, *seeds_of}
            case Listed() | Filtered():
                return set()

    @property
    def ranks_by(self) -> set[str]:
        """Names of the audiences it is put together of, those left out that it takes away."""
        return set(wanted_in(self.rule.term)) if isinstance(self.rule, Combined) else set()

    @property
    def kind(self) -> str:
        """What the rule is called outside."""
        return {Listed: "users", Alike: "like", Filtered: "filter", Combined: "combine"}[type(self.rule)]

    @property
    def digest(self) -> str:
        """Hash of the rule, as it is written, and of what was meant by it."""
        return digest_of({**document_of(self.rule), **_kept(self.meant)})


class Definitions:
    """The saved audiences of an artifacts folder, as they stand now.

    Args:
        root: the artifacts folder.
        ledger: of erasures; None: nobody was erased.
        clock: seconds since the epoch.
    """

    def __init__(self, root: Path, ledger: Ledger | None, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = root / FOLDER
        self._ledger, self._clock = ledger, clock
        self._read: dict[str, tuple[object, Definition]] = {}

    def all(self) -> dict[str, Definition]:
        """Every definition by name, in the order of names; files that have not changed are not read again.

        Raises:
            ArtifactCorrupt: one is not as it was written.
        """
        there, damaged = self.read()
        for error in damaged.values():
            raise error
        return there

    def get(self, name: str) -> Definition:
        """One definition.

        Raises:
            UnknownName: there is none.
            ArtifactCorrupt: it is not as it was written.
        """
        try:
            now = (self.folder_of(name) / FILE).stat() if _NAME.fullmatch(name) else None
            found = now and self._known(name, _stamp(now))[1]
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if found is None:
            raise UnknownName(f"there is no saved audience {quoted(name)}")
        return found

    def some(self, names: Iterable[str]) -> dict[str, Definition]:
        """Definitions by name, and those of all that they are made of, as far as these are there.

        Raises:
            UnknownName: there is none of a name.
            ArtifactCorrupt: one is not as it was written.
        """
        found = {name: self.get(name) for name in names}
        pending, missing = [used for one in found.values() for used in one.uses], set[str]()
        while pending:
            name = pending.pop()
            if name in found or name in missing:
                continue
            try:
                found[name] = self.get(name)
                pending += found[name].uses
            except UnknownName:
                missing.add(name)
        return dict(sorted(found.items()))

    def put(self, name: str, rule: Rule, meant: Sequence[Meant] = ()) -> Definition:
        """Save an audience, in the place of one of the same name; when this returns, it is on disk.

        Who was ever erased is left out, even somebody who came back: a file that outlives erasures names none of them.

        Args:
            name: lower-case letters, digits, _ and -.
            rule: who is meant.
            meant: what the interests that it names by number are.

        Raises:
            UsageError: this can be no name.
            Unfulfillable: it is made of audiences that are not there, or of itself; or there are too many already; or
                none can be saved here.
            ArtifactCorrupt: it is made of one that is not as it was written; what others are does not matter.
        """
        check_name(name)
        with changing(self.folder):
            there, damaged = self.read()
            n_there = len(there) + len(damaged)
            if name not in there and name not in damaged and n_there >= AT_MOST:
                raise Unfulfillable(f"there are {n_there} saved audiences, expected at most {AT_MOST}; delete some")
            definition = self._without_erased(Definition(name, rule, int(self._clock() * 1000), tuple(meant)))
            for used in definition.uses - {name}:
                if used in damaged:
                    raise damaged[used]
            check_uses({**there, name: definition}, definition)
            self._write(definition)
        return definition

    def delete(self, name: str) -> None:
        """Let go of an audience and all that is kept of it, be it as it was written or not.

        Raises:
            UnknownName: there is none.
            Unfulfillable: others are made of it, or nothing can be changed here.
        """
        with changing(self.folder):
            there, damaged = self.read()
            if name not in there and name not in damaged:
                raise UnknownName(f"there is no saved audience {quoted(name)}")
            if users := sorted(one.name for one in there.values() if name in one.uses):
                raise Unfulfillable(f"other audiences are made of it ({first_of(users, _NAMED)}); delete those first")
            with alone(self.folder / name, MAKING):
                (self.folder / name / FILE).unlink()
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def check_there(self, name: str) -> None:
        """Whether an audience has not been deleted meanwhile; asked by whoever holds ``MAKING``.

        Raises:
            UnknownName: it has.
        """
        if not (self.folder / name / FILE).is_file():
            raise UnknownName(f"there is no saved audience {quoted(name)}")

    def forget_erased(self) -> int:
        """Take who was erased out of the files; returns how many definitions changed.

        Raises:
            ArtifactCorrupt: one is not as it was written; they are out of all others.
            Unfulfillable: the files cannot be changed here.
        """
        if self._ledger is None or not self.folder.is_dir():
            return 0
        n_changed, damaged = 0, list[ArtifactCorrupt]()
        with changing(self.folder):
            for name, _ in self._stamps():
                raw = (self.folder / name / FILE).read_bytes()
                try:
                    alive = self._without_erased(self._parsed(name, raw))
                except ArtifactCorrupt as error:
                    damaged.append(error)
                    continue
                if (written := _dump(alive)) != raw:
                    write_durably(self.folder / name / FILE, written)
                    n_changed += 1
        for first in damaged:
            raise first
        return n_changed

    def expunge(self) -> None:
        """Take who was erased out of the files, and remove what was made of definitions: it is made again.

        Raises:
            ArtifactCorrupt: as ``forget_erased``; what was made is removed all the same.
            Unfulfillable: the files cannot be changed here.
        """
        try:
            self.forget_erased()
        finally:
            for own in self.folder.glob("*/"):
                with changing(own, MAKING):
                    for path in own.glob("*/"):
                        discard(path)

    def folder_of(self, name: str) -> Path:
        """Where what belongs to an audience is kept."""
        return self.folder / name

    def _stamps(self) -> Iterator[tuple[str, object]]:
        """Each name, and something that differs whenever its definition was written in between."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for name in sorted(entry.name for entry in entries if _NAME.fullmatch(entry.name)):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    yield name, _stamp((self.folder / name / FILE).stat())

    def read(self) -> tuple[dict[str, Definition], dict[str, ArtifactCorrupt]]:
        """Every definition by name, and what is wrong with those that are not as they were written."""
        found, damaged = dict[str, tuple[object, Definition]](), dict[str, ArtifactCorrupt]()
        for name, stamp in self._stamps():
            try:
                found[name] = self._known(name, stamp)
            except FileNotFoundError:
                continue  # deleted a moment ago
            except ArtifactCorrupt as error:
                damaged[name] = error
        self._read = found
        return {name: definition for name, (_, definition) in found.items()}, damaged

    def _known(self, name: str, stamp: object) -> tuple[object, Definition]:
        """A stamp and its definition, which is read anew where the stamp was another, or somebody was erased since."""
        stamp = stamp, 0 if self._ledger is None else len(self._ledger)
        known = self._read.get(name)
        if known is None or known[0] != stamp:
            raw = (self.folder / name / FILE).read_bytes()
            known = self._read[name] = stamp, self._without_erased(self._parsed(name, raw))
        return known

    def _parsed(self, name: str, raw: bytes) -> Definition:
        try:
            document = orjson.loads(raw)
            seal = document.pop("seal")
            if seal != digest_of(document):
                raise ValueError("it was changed after it was saved")
            meant = tuple(map(Meant.of_json, document.get("meant", ())))
            return Definition(name, rule_of(document["rule"]), int(document["saved_at"]), meant)
        except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
            raise ArtifactCorrupt(
                f"{self.folder / name / FILE} is no definition of an audience ({error}); save it again, or remove it"
            ) from error

    def _write(self, definition: Definition) -> None:
        self.folder_of(definition.name).mkdir(parents=True, exist_ok=True)
        write_durably(self.folder_of(definition.name) / FILE, _dump(definition))

    def _without_erased(self, definition: Definition) -> Definition:
        ledger, rule = self._ledger, definition.rule
        if ledger is None or not len(ledger) or isinstance(rule, Combined | Filtered):
            return definition
        erased = ledger.all_erased()

        def alive(user_id: str) -> bool:
            return ledger.digest(user_id) not in erased

        if isinstance(rule, Listed):
            kept = [one for one in rule.user_ids if alive(one)]
            return definition if len(kept) == len(rule.user_ids) else replace(definition, rule=Listed(kept))
        asked = rule.asked
        seeds = [at for at, one in enumerate(asked.seeds) if alive(one)]
        negatives, exclude = ([one for one in some if alive(one)] for some in (asked.negatives, asked.exclude))
        counts = (len(seeds), len(negatives), len(exclude))
        if counts == (len(asked.seeds), len(asked.negatives), len(asked.exclude)):
            return definition
        left = replace(
            asked,
            seeds=[asked.seeds[at] for at in seeds],
            weights=None if asked.weights is None else [asked.weights[at] for at in seeds],
            negatives=negatives,
            exclude=exclude,
        )
        return replace(definition, rule=Alike(left))


def _stamp(now: os.stat_result) -> object:
    """What differs whenever a file was replaced in between."""
    return now.st_ino, now.st_mtime_ns, now.st_size


def check_uses(there: Mapping[str, Definition], definition: Definition) -> None:
    """See that what an audience is made of is there, and does not lead back to it.

    Raises:
        Unfulfillable: it is not, or does.
    """
    pending, seen = sorted(definition.uses), set[str]()
    while pending:
        name = pending.pop()
        if name == definition.name:
            raise Unfulfillable("the audience would be made of itself")
        if name not in there:
            raise Unfulfillable(f"it is made of {name!r}, a saved audience that is not there")
        if name not in seen:
            seen.add(name)
            pending += there[name].uses


def in_order(there: Mapping[str, Definition]) -> list[Definition]:
    """All definitions, each after those it is made of."""
    done: dict[str, Definition] = {}

    def visit(definition: Definition) -> None:
        for name in sorted(definition.uses):
            if name in there and name not in done:
                visit(there[name])
        done[definition.name] = definition

    for definition in there.values():
        if definition.name not in done:
            visit(definition)
    return list(done.values())


def _dump(definition: Definition) -> bytes:
    document = {"rule": document_of(definition.rule), "saved_at": definition.saved_at, **_kept(definition.meant)}
    return orjson.dumps({**document, "seal": digest_of(orjson.loads(orjson.dumps(document)))})


def _kept(meant: Sequence[Meant]) -> dict[str, Any]:
    return {"meant": [asdict(one) for one in meant]} if meant else {}
