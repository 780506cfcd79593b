"""Reads the diagnostics: what each number means, and whether it is fine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from training.evaluate import plots

# Rules of thumb for the eye; what stops a release is the gate of the recipe.
LEAST_RANK_SHARE: Final = 0.1
MOST_NORM_ERROR: Final = 1e-4
MOST_COSINE: Final = 0.2
MOST_HUBNESS: Final = 3.0
MOST_NEAR_DUPLICATES: Final = 0.05
LEAST_ANCHOR_USAGE: Final = 0.01
MOST_LEAKAGE: Final = 0.5
LEAST_STABILITY: Final = 0.8

_DRIFT: Final = {
    "n_common": "users of both",
    "n_came": "users that came",
    "n_went": "users that went",
    "same_space": "same space",
    "cosine": "median cosine of a user's two vectors",
    "neighbor_overlap": "shared among ten nearest",
    "cka": "kernel alignment (CKA)",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """One property of the vectors.

    Attributes:
        title: its name.
        text: what was found and how to read it.
        fine: whether it is; None where no rule says so.
        plot: of it.
        table: heads, then rows.
    """

    title: str
    text: str
    fine: bool | None
    plot: Markup | None = None
    table: Sequence[Sequence[str]] = ()


@dataclass(frozen=True, slots=True)
class Anchor:
    """What one anchor stands for.

    Attributes:
        usage: its share of the users' acts, through their interests.
        variance: its share of the vectors' variance; None where that is unknown.
        interests: its strongest, in words.
    """

    usage: float
    variance: float | None
    interests: Sequence[str]


def readings_of(diagnostics: Mapping[str, Any]) -> list[Reading]:
    """A reading of each block that is there, in the order of a reader's questions."""
    readers = {
        "effective_rank": _rank,
        "cosines": _cosines,
        "hubness": _hubness,
        "popularity": _popularity,
        "near_duplicates": _near_duplicates,
        "norms": _norms,
        "stability": _stability,
        "drift": _drift,
    }
    return [read(diagnostics[block]) for block, read in readers.items() if diagnostics.get(block)]


def anchors_of(diagnostics: Mapping[str, Any]) -> list[Anchor]:
    """Most used first; none where the encoder has no anchors."""
    anchors = [
        Anchor(anchor["usage"], anchor.get("variance"), anchor.get("interests", ()))
        for anchor in diagnostics.get("anchors") or ()
    ]
    return sorted(anchors, key=lambda anchor: -anchor.usage)


def _rank(block: Mapping[str, Any]) -> Reading:
    value, share = block["value"], block["share"]
    if not value:
        return Reading("Effective rank", "All users have one and the same vector: nothing sets them apart.", False)
    text = (
        f"The vectors spread over as many directions as {value:.0f} equally strong ones would, {_percent(share)} of "
        f"their width. Below {_percent(LEAST_RANK_SHARE)} most of the width would be idle."
    )
    spectrum = block.get("spectrum")
    plot = plots.spectrum("spectrum", text, spectrum, rank=value) if spectrum else None
    return Reading("Effective rank", text, share >= LEAST_RANK_SHARE, plot)


def _cosines(block: Mapping[str, Any]) -> Reading:
    text = (
        f"Two random users are at a cosine of {block['mean']:.2f} ± {block['std']:.2f} (standard deviation). Far above "
        "0 all vectors would lie in one narrow cone, and similarity would tell little."
    )
    return Reading("Random pairs", text, abs(block["mean"]) <= MOST_COSINE, _bars("cosines", text, block, "cosine"))


def _hubness(block: Mapping[str, Any]) -> Reading:
    text = (
        f"How often a user stands in the lists of others' ten nearest has a skewness of {block['skewness']:.1f}; above "
        f"{MOST_HUBNESS:.0f} a few users would crowd every list."
    )
    if "nobody" in block:
        text += f" {_percent(block['nobody'], 1)} of the users stand in nobody's list"
        text += (
            f", the most frequent one in {_percent(block['largest'], 1)} of all lists." if "largest" in block else "."
        )
    fine = block["skewness"] <= MOST_HUBNESS
    return Reading("Hubness", text, fine, _bars("hubness", text, block, "lists that a user stands in"))


def _bars(name: str, described: str, block: Mapping[str, Any], of: str) -> Markup | None:
    if not block.get("counts") or not block.get("edges"):
        return None
    return plots.histogram(name, f"Histogram. {described}", block["edges"], block["counts"], of=of)


def _norms(block: Mapping[str, Any]) -> Reading:
    low, high = block["min"], block["max"]
    text = f"Lengths lie between {low:.6f} and {high:.6f}; published vectors have length 1."
    return Reading("Length", text, max(abs(low - 1), abs(high - 1)) <= MOST_NORM_ERROR)


def _near_duplicates(block: Mapping[str, Any]) -> Reading:
    text = (
        f"{_percent(block['share'], 1)} of the users have a near-twin (cosine above .999) with other interests; "
        f"above {_percent(MOST_NEAR_DUPLICATES)} the encoder would confuse people."
    )
    if "twins" in block:
        text += f" {_percent(block['twins'], 1)} have one, whatever both did."
    return Reading("Near-duplicates", text, block["share"] <= MOST_NEAR_DUPLICATES)


def _popularity(block: Mapping[str, Any]) -> Reading:
    found = {
        "the log of a user's number of events": "n_events_r2",
        "the mean log popularity of a user's items": "popularity_r2",
    }
    known = {what: block[key] for what, key in found.items() if key in block}
    told = " and ".join(f"{_percent(max(share, 0))} of the variance of {what}" for what, share in known.items())
    text = (
        f"A ridge regression reads {told} from the vector. Above {_percent(MOST_LEAKAGE)} neighbours would be "
        "people who do as much, rather than people who like the same."
    )
    return Reading("Popularity leakage", text, max(known.values(), default=0) <= MOST_LEAKAGE)


def _stability(block: Mapping[str, Mapping[str, float]]) -> Reading:
    heads = {"median": "median", "p05": "5 % quantile", "active": "active meanwhile", "idle": "idle meanwhile"}
    days = sorted(block, key=int)
    shown = [key for key in heads if any(key in block[day] for day in days)]
    rows = [[f"{day} days", *(_number(block[day].get(key)) for key in shown)] for day in days]
    first = days[0]
    text = (
        f"Cosine of a user's vector to the one of {first} days before: {_number(block[first].get('median'))} for the "
        f"median user. Below {LEAST_STABILITY} what was learned on last week's vectors would not hold today."
    )
    median = block[first].get("median")
    fine = None if median is None else median >= LEAST_STABILITY
    return Reading("Stability", text, fine, table=[["later by", *(heads[key] for key in shown)], *rows])


def _drift(block: Mapping[str, Any]) -> Reading:
    text = (
        "Against the release before, over the users of both. Neighbours that overlap little mean that audiences made "
        "with the old release have to be made again."
    )
    rows = [[_DRIFT.get(key, key.replace("_", " ")), _number(value)] for key, value in block.items()]
    return Reading("Drift", text, None, table=[["measure", "value"], *rows])


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def _number(value: object) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3f}"
        case int():
            return f"{value:,}"
        case _:
            return str(value)
