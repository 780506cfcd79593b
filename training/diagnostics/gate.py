"""The gate: what a release must hold to be published."""

from __future__ import annotations

from dataclasses import dataclass

from training.diagnostics import WORDS_OF_ANCHOR, Diagnostics
from training.diagnostics.change import WEEK
from training.recipes import GateConfig

_UNIT = 1e-5  # as far as a length may be from 1

# entry of [gate] -> what it limits, and what to do about a breach
_ASKED = {
    "min_effective_rank_share": (
        "effective rank share",
        "the vectors have collapsed; train less, or make them narrower with [encoder] dim",
    ),
    "max_near_duplicates": (
        "near-duplicates",
        "different users get one vector; train less, or raise [encoder] dim",
    ),
    "max_hubness": (
        "hubness",
        "a few users are near everybody; look for bots in the log, or train longer",
    ),
    "min_anchor_usage": (
        "usage of the least used anchor",
        "an anchor stands for nothing; lower [encoder] n_anchors",
    ),
    "max_popularity_leakage": (
        "popularity leakage",
        "vectors tell how much users do; keep idf and log weights in [encoder.bag]",
    ),
    "min_stability": (
        "stability over a week",
        "vectors change from week to week; look for a jump in the log, or put longer scales first",
    ),
    "min_neighbor_overlap": (
        "neighbor overlap with the release before",
        "other users are alike now; compare the logs and the recipes of both releases",
    ),
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing a gate asks.

    Attributes:
        measure: its name.
        value: found; None where it could not be measured, which is no breach.
        limit: None: not asked.
        at_least: whether the limit is a least one.
        entry: of the recipe's [gate] that sets the limit; None: every release must hold it.
        advice: what to do about a breach.
    """

    measure: str
    value: float | None
    limit: float | None
    at_least: bool
    entry: str | None
    advice: str

    @property
    def met(self) -> bool:
        """Whether it holds, or was not asked."""
        if self.value is None or self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """As people read it: measure, value, limit, and whether it is met where it was asked and measured."""
        verdict = "" if self.value is None or self.limit is None else "yes" if self.met else "NO"
        limit = "" if self.limit is None else f"{'at least' if self.at_least else 'at most'} {self.limit:g}"
        return self.measure, "not measured" if self.value is None else f"{self.value:.3g}", limit, verdict

    def __str__(self) -> str:
        where = f" ([gate] {self.entry})" if self.entry else ""
        measure, value, limit, _ = self.cells
        return f"{measure} {value}, {limit} {'needed' if self.at_least else 'allowed'}{where}: {self.advice}"


def requirements(diagnostics: Diagnostics, gate: GateConfig) -> list[Requirement]:
    """Everything a gate can ask, met or not; what it does not ask has no limit."""
    d = diagnostics
    # with few interests, an anchor that stands for none of them is no fault
    judged = d.anchors if d.n_interests >= WORDS_OF_ANCHOR * len(d.anchors) else ()
    found = {
        "min_effective_rank_share": d.effective_rank.share,
        "max_near_duplicates": d.near_duplicates,
        "max_hubness": d.hubness.skewness,
        "min_anchor_usage": min((anchor.usage for anchor in judged), default=None),
        "max_popularity_leakage": d.popularity.n_events_r2 if d.popularity else None,
        "min_stability": d.stability[WEEK].median if WEEK in d.stability else None,
        "min_neighbor_overlap": d.drift.neighbor_overlap if d.drift else None,
    }
    off = max(abs(d.norms.min - 1), abs(d.norms.max - 1))
    return [
        Requirement("distance of lengths from 1", off, _UNIT, False, None, "the encoder is at fault; build it anew"),
        *(
            Requirement(measure, found[entry], getattr(gate, entry), entry.startswith("min_"), entry, advice)
            for entry, (measure, advice) in _ASKED.items()
        ),
        Requirement(
            "users with a twin, whatever both did", d.twins, None, False, None, "who does the same is the same"
        ),
    ]


def breaches(diagnostics: Diagnostics, gate: GateConfig) -> list[Requirement]:
    """What a gate asks and the diagnostics do not hold."""
    return [one for one in requirements(diagnostics, gate) if not one.met]
