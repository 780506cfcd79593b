"""What people write: a condition as a line of text, what it says as a document, and what they may have meant.

    country in (UK, DE) and age >= 18 and not (interest 12 since 2011-06-01 or behavior purchase at least 3)

``not`` binds more than ``and``, and that more than ``or``. A name or value that holds blanks or signs, or is one of the
words of the language, stands in quotes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lurm.errors import UsageError

_QUOTED = 60  # characters
_TOLD = 20
_DEPTH = 100
NEAR_AMONG = 1_000
"""Names at most, among which a near one is sought: of 100,000, it takes seconds in which nothing else runs."""

_TOKEN = re.compile(
    r"""\s*(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'"""
    r"""|(?P<sign><=|>=|!=|==|[=<>(),])|(?P<word>[^\s=<>!(),"']+))"""
)
_A_FIELD = re.compile("[a-z_]{1,40}")
_COMPARED = {"=": "in", "==": "in", "!=": "in", ">=": "min", "<=": "max", ">": "above", "<": "below"}
_EVENT_WORDS = ("interest", "behavior", "item", "since", "until", "within")
_EXAMPLE = "such as: country in (UK, DE) and age >= 18 and not interest 12 since 2011-06-01"


def quoted(text: str) -> str:
    """What somebody wrote, in quotes, and not more of it than an error should repeat."""
    return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…")


def counted(n: int, what: str) -> str:
    """So many of something: "1 user", "2,000 users"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def first_of(words: Sequence[str], most: int, say: Callable[[str], str] = str) -> str:
    """The first words of a list, each as it is to be said, and how many more there are."""
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return f"{', '.join(map(say, words[:most]))}{more}"


def likest(text: str, there: Sequence[str]) -> str:
    """What somebody may have meant: the name nearest to what they wrote, where there are not too many; or the first."""
    if not there:
        return "there are none"
    folded = {name.casefold(): name for name in reversed(there)} if len(there) <= NEAR_AMONG else {}
    if near := difflib.get_close_matches(text.casefold(), folded, n=1):
        return f"did you mean {quoted(folded[near[0]])}?"
    return f"there are: {first_of(there, _TOLD, quoted)}"


def strange_of(document: Mapping[Any, Any], known: Sequence[str]) -> str:
    """What is said of the fields of a document that nobody knows, be it a million: the first, and how many more.

    One that does not look like the name of a field may be the id of somebody, and is not repeated.
    """
    first = next((str(name) for name in document if name not in known), None)
    if first is None:
        return ""
    n_more = len(document.keys() - set(known)) - 1
    what = f"unknown field {quoted(first)}" if _A_FIELD.fullmatch(first) else "unknown field (its name is not repeated)"
    return f"{what}{f' and {n_more:,} more' if n_more else ''}; {likest(first, known)}"


def document_of(text: str) -> dict[str, Any]:
    """What a line of text says, as ``lurm.filters`` takes it.

    Raises:
        UsageError: it cannot be read; the message says where, and shows how it is done.
    """
    return _Reading(text).whole()


@dataclass(frozen=True, slots=True)
class _Token:
    """A word, a quoted text or a sign, and where it begins."""

    text: str
    kind: Literal["word", "quoted", "sign", "end"]
    at: int

    def says(self, *words: str) -> bool:
        """Whether it is one of these, and not a text in quotes."""
        return self.kind != "quoted" and self.text.lower() in words


class _Reading:
    """One line, read from left to right."""

    def __init__(self, text: str) -> None:
        self._tokens, self._next, self._depth, at = [], 0, 0, 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise UsageError(
                    f"the filter cannot be read from character {at + 1} on: {quoted(text[at:])}; {_EXAMPLE}"
                )
            kind = "word" if found["word"] else "sign" if found["sign"] else "quoted"
            said = found["word"] or found["sign"] or re.sub(r"\\(.)", r"\1", found["double"] or found["single"] or "")
            self._tokens.append(_Token(said, kind, found.end() - len(found[0].lstrip())))  # type: ignore[arg-type]
            at = found.end()
        self._tokens.append(_Token("the end", "end", len(text)))

    def whole(self) -> dict[str, Any]:
        """The document of the whole line."""
        document = self._any()
        if self._peek.kind != "end":
            raise self._unexpected("and, or, or the end")
        return document

    @property
    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next += token.kind != "end"
        return token

    def _takes(self, *words: str) -> bool:
        """Whether the next one is one of these; it is taken then."""
        if not self._peek.says(*words):
            return False
        self._take()
        return True

    def _unexpected(self, expected: str) -> UsageError:
        found = self._peek
        said = found.text if found.kind == "end" else quoted(found.text)
        return UsageError(f"filter, character {found.at + 1}: expected {expected}, found {said}; {_EXAMPLE}")

    def _any(self) -> dict[str, Any]:
        self._depth += 1
        if self._depth > _DEPTH:
            raise UsageError(f"filter: more than {_DEPTH} brackets within one another; say it with fewer")
        parts = [self._all()]
        while self._takes("or"):
            parts.append(self._all())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else {"any": parts}

    def _all(self) -> dict[str, Any]:
        parts = [self._one()]
        while self._takes("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else {"all": parts}

    def _one(self) -> dict[str, Any]:
        n_not = 0
        while self._takes("not"):
            n_not += 1
        one = self._bare()
        return {"not": one} if n_not % 2 else one

    def _bare(self) -> dict[str, Any]:
        if self._takes("("):
            inner = self._any()
            if not self._takes(")"):
                raise self._unexpected("and, or, or )")
            return inner
        if self._peek.kind not in ("word", "quoted"):
            raise self._unexpected("an attribute, interest, behavior, item, since, until, within, not or (")
        subject, after = self._peek, self._tokens[self._next + 1]
        if subject.says(*_EVENT_WORDS) and not after.says("in", "not", "known", *_COMPARED):
            return self._acted()
        self._take()
        return self._compared(subject.text)

    def _compared(self, name: str) -> dict[str, Any]:
        if self._takes("known"):
            return {"attribute": name}
        is_not = self._takes("not")
        if self._takes("in"):
            among: dict[str, Any] = {"attribute": name, "in": self._values()}
            return {"not": among} if is_not else among
        sign = self._peek
        if is_not or sign.kind != "sign" or sign.text not in _COMPARED:
            raise self._unexpected("in" if is_not else "=, !=, <, <=, >, >=, in, not in or known")
        self._take()
        key, value = _COMPARED[sign.text], self._value()
        compared: dict[str, Any] = {"attribute": name, key: [value] if key == "in" else value}
        return {"not": compared} if sign.text == "!=" else compared

    def _values(self) -> list[str]:
        if not self._takes("("):
            raise self._unexpected("( and values")
        values = [self._value()]
        while self._takes(","):
            values.append(self._value())
        if not self._takes(")"):
            raise self._unexpected(", or )")
        return values

    def _value(self) -> str:
        if self._peek.kind not in ("word", "quoted"):
            raise self._unexpected("a value; in quotes where it holds blanks or signs")
        return self._take().text

    def _acted(self) -> dict[str, Any]:
        """interest 12 behavior purchase since 2011-06-01 within 28 days at least 3: in any order, each once."""
        document: dict[str, Any] = {}
        while True:
            word = self._peek
            if self._takes("at"):
                if not self._takes("least"):
                    raise self._unexpected("least")
                key, said = "at_least", "at least"
            elif self._takes("within"):
                key, said = "within_days", "within"
            elif self._takes(*_EVENT_WORDS):
                key = said = word.text.lower()
            else:
                return document
            if key in document:
                raise UsageError(
                    f"filter, character {word.at + 1}: {said} is said twice of one event; say it once, or put and, or "
                    f"or, between two; {_EXAMPLE}"
                )
            document[key] = self._value() if key in ("behavior", "item", "since", "until") else self._whole_number()
            if key == "within_days" and not self._takes("day", "days"):
                raise self._unexpected("days")

    def _whole_number(self) -> int:
        if not (self._peek.text.isascii() and self._peek.text.isdigit()):
            raise self._unexpected("a whole number")
        return int(self._take().text)
