"""The report says what the numbers say, escapes what comes from outside, and loads nothing."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluate import plots
from training.evaluate.findings import Findings, Kind, Score, TaskFindings, Versus
from training.evaluate.readings import anchors_of, readings_of
from training.evaluate.report import suspicions, verdict, write_report

OURS, RAW, SVD, COUNTS = "lurm, 256", "raw bag of interests", "SVD of items, 256", "activity counts"
ROWS = {
    OURS: "what is judged: the frozen embeddings of the release",
    RAW: "every user's whole life in one weighed bag of interests, sparse: the lossless reference",
    SVD: "TF-IDF of the raw items, truncated SVD at the same width",
    "PCA of the bag, 256": "principal components of the raw bag at the same width",
    "autoencoder of the bag, 256": "a small nonlinear autoencoder of the raw bag at the same width",
    "mean of item embeddings, 256": "mean of the item vectors over the user's events",
    COUNTS: "how much and how recently the user acts, and nothing about what",
    "popularity": "how popular the user's items are, and nothing else",
    "random, 256": "standard normal numbers",
}
STRENGTHS = dict(zip(ROWS, (0.245, 0.24, 0.23, 0.226, 0.22, 0.205, 0.15, 0.1, 0.0), strict=True))
HOSTILE = "<script>document.title='taken'</script>\"'><img src=x onerror=document.title='taken'> $x_{$ &amp; 中\x0b"


def score(auc: float, interval: float = 0.01) -> Score:
    return Score(auc, interval, auc - 0.07, tuple(auc + d for d in (-0.01, 0.0, 0.01, 0.005, -0.005)))


def task(
    name: str, kind: Kind, scores: Mapping[str, float], *, null: bool = False, curves: bool = True, **more: Any
) -> TaskFindings:
    ours = scores[OURS]
    few = {
        row: {n: score(0.5 + (auc - 0.5) * share ** (0.8 if row == OURS else 1)) for n, share in FEW}
        for row, auc in list(scores.items())[:4]
    }
    cold = {row: {n: score(0.5 + (auc - 0.5) * share) for n, share in COLD} for row, auc in list(scores.items())[:4]}
    return TaskFindings(
        name=name,
        kind=kind,
        asked=f"What is this user's {name}?",
        n_users=6707,
        class_shares=(0.62, 0.38),
        null=null,
        scores={row: score(auc) for row, auc in scores.items()},
        mlp={row: score(auc + 0.004) for row, auc in scores.items() if row != RAW},
        versus={
            row: Versus(ours - auc, 0.008, 0.001 if abs(ours - auc) > 0.008 else 0.3)
            for row, auc in scores.items()
            if row != OURS
        },
        few_labels=few if curves and not null else {},
        cold=cold if curves and not null else {},
        **more,
    )


FEW = (("50", 0.45), ("200", 0.65), ("1000", 0.88), ("all", 1.0))
COLD = (("1", 0.3), ("5", 0.45), ("20", 0.7), ("100", 0.93), ("all", 1.0))
TASKS: Mapping[str, Kind] = {
    "gender": "profile",
    "age at least 30": "profile",
    "student": "profile",
    "likes Drama": "preference",
    "active": "activity",
    "value": "value",
}


def plausible(**changes: Any) -> Findings:
    """Findings as a good release gives them: six tasks and a null one, nine rows."""
    rng = np.random.default_rng(7)
    tasks = []
    for place, (name, kind) in enumerate(TASKS.items()):
        scale = 1 - 0.08 * place
        aucs = {row: 0.5 + scale * strength + 0.006 * rng.standard_normal() for row, strength in STRENGTHS.items()}
        if kind in ("activity", "value"):
            aucs[COUNTS] = aucs[OURS] + (0.031 if kind == "activity" else -0.02)
        tasks.append(task(name, kind, aucs))
    noise = {row: 0.5 + 0.006 * rng.standard_normal() for row in ROWS}
    tasks.append(task("coin", "profile", noise, null=True))
    decay = np.arange(1, 257) ** -0.9
    cosines, lists = rng.normal(0.06, 0.13, 20_000), rng.gamma(2.2, 4.5, 6707)
    cosine_counts, cosine_edges = np.histogram(cosines, 40, (-1, 1))
    list_edges = np.array([0.0, *2.0 ** np.arange(8)])
    list_counts, _ = np.histogram(lists, list_edges)
    fields: dict[str, Any] = {
        "dataset": "blogs",
        "release_id": "20261122T021500-3f9a",
        "space_id": "9f2c41d07be3",
        "dim": 256,
        "n_users": 6709,
        "n_events": 2_037_118,
        "n_interests": 9957,
        "seed": 0,
        "made_at": "2026-11-22T03:08:32+00:00",
        "seconds": 412.6,
        "window": {"cut_at": "2004-07-01T00:00:00+00:00", "end_at": "2004-07-29T00:00:00+00:00", "n_users": 5120},
        "rows": ROWS,
        "tasks": tuple(tasks),
        "left_out": {"income": "the users table has no such column"},
        "diagnostics": {
            "effective_rank": {"value": 93.2, "share": 0.364, "spectrum": (decay / decay.sum()).tolist()},
            "norms": {"min": 0.999999, "max": 1.000001},
            "cosines": {
                "mean": 0.06,
                "std": 0.13,
                "edges": cosine_edges.tolist(),
                "counts": cosine_counts.tolist(),
            },
            "hubness": {
                "skewness": 2.1,
                "largest": 0.011,
                "nobody": 0.034,
                "edges": list_edges.tolist(),
                "counts": list_counts.tolist(),
            },
            "near_duplicates": {"share": 0.002},
            "anchors": [
                {"usage": 0.31, "variance": 0.28, "interests": ["politics, election", "iraq, war", "bush, kerry"]},
                {"usage": 0.36, "variance": 0.33, "interests": ["school, homework", "prom, friends", "band, guitar"]},
                {"usage": 0.328, "variance": 0.36, "interests": ["knitting, yarn", "recipes, baking", "garden"]},
                {"usage": 0.002, "variance": 0.03, "interests": ["perl, linux", "php, mysql"]},
            ],
            "popularity": {"n_events_r2": 0.31, "popularity_r2": 0.22},
            "stability": {
                "28": {"median": 0.93, "p05": 0.71, "active": 0.9, "idle": 0.97},
                "7": {"median": 0.98, "p05": 0.88, "active": 0.95, "idle": 0.99},
            },
            "drift": {"n_common": 6650, "same_space": False, "cosine": None, "neighbor_overlap": 0.71, "cka": 0.94},
        },
    }
    return Findings(**(fields | changes))


def small(**changes: Any) -> Findings:
    """Two tasks, a null one and all diagnostics: quick to draw."""
    whole = plausible()
    return replace(whole, tasks=(whole.tasks[0], whole.tasks[4], whole.tasks[-1]), **changes)


def hostile() -> Findings:
    """Every name that comes from outside is an attack."""
    whole = small(dataset=HOSTILE, left_out={HOSTILE: HOSTILE}, release_id=HOSTILE, space_id=HOSTILE)
    rows = {HOSTILE if row == SVD else row: HOSTILE for row in whole.rows}
    first = whole.tasks[0]
    renamed = {HOSTILE if row == SVD else row: found for row, found in first.scores.items()}
    tasks = (replace(first, name=HOSTILE, asked=HOSTILE, scores=renamed), *whole.tasks[1:])
    anchors = [{"usage": 1.0, "variance": None, "interests": [HOSTILE]}]
    return replace(whole, rows=rows, tasks=tasks, diagnostics=whole.diagnostics | {"anchors": anchors})


class Page(HTMLParser):
    """What a parser sees of a page: its elements with their attributes, its text, its tables cell by cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data.strip()

    def values(self, key: str) -> list[str]:
        return [value or "" for _, attributes in self.elements for name, value in attributes.items() if name == key]


def written(findings: Findings, folder: Path) -> str:
    write_report(findings, folder / "report.html")
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(small(), tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(written(hostile(), tmp_path_factory.mktemp("hostile")))


def duel(kind: Kind, *aucs: tuple[float, float], p: float = 0.001) -> tuple[TaskFindings, ...]:
    """Tasks on which only the embedding and the raw bag were scored."""
    tasks = []
    for place, (ours, raw) in enumerate(aucs):
        one = task(f"{kind} {place}", kind, {OURS: ours, RAW: raw}, curves=False)
        tasks.append(replace(one, versus={RAW: Versus(ours - raw, 0.01, p)}))
    return tuple(tasks)


def test_the_verdict_counts_what_is_kept_of_the_raw_bag() -> None:
    kept, *_ = verdict(plausible(tasks=duel("profile", (0.80, 0.75), (0.70, 0.75), (0.66, 0.75))))
    assert kept.standing == "behind"
    assert "keeps 96.0\N{NO-BREAK SPACE}%" in kept.text
    assert "(0.720 against 0.750)" in kept.text
    assert "88.0\N{NO-BREAK SPACE}% of its lift" in kept.text
    assert kept.text.endswith("significantly ahead on 1 and behind on 2.")
    kept, *_ = verdict(plausible(tasks=duel("profile", (0.80, 0.75), (0.70, 0.75), p=0.2)))
    assert kept.standing == "level"
    assert kept.text.endswith("significantly ahead on 0 and behind on 0.")


def test_the_verdict_leaves_null_labels_out() -> None:
    true = duel("profile", (0.80, 0.75))
    null = tuple(replace(one, null=True, name="coin") for one in duel("profile", (0.9, 0.5)))
    assert verdict(plausible(tasks=true + null)) == verdict(plausible(tasks=true))


def test_the_verdict_about_the_future_names_the_worst() -> None:
    tasks = duel("preference", (0.7, 0.6), (0.61, 0.6)) + duel("profile", (0.5, 0.9))
    _, future, _ = verdict(plausible(tasks=tasks))
    assert (future.standing, "2 of 2 window tasks" in future.text) == ("ahead", True)
    assert future.text.endswith("its closest call is preference 1, 0.010 ahead of raw bag of interests.")
    _, future, _ = verdict(plausible(tasks=tasks + duel("activity", (0.6, 0.7), (0.6, 0.61))))
    assert (future.standing, "2 of 4 window tasks" in future.text) == ("behind", True)
    assert future.text.endswith("furthest behind on activity 0, 0.100 below raw bag of interests.")


def test_the_verdict_with_few_labels_takes_200_of_those_measured() -> None:
    def lines(ours: float, raw: float, *counts: str) -> TaskFindings:
        rows = {OURS: dict.fromkeys(counts, score(ours)), RAW: dict.fromkeys(counts, score(raw))}
        return replace(duel("profile", (0.8, 0.8))[0], few_labels=rows)

    _, _, few = verdict(plausible(tasks=(lines(0.65, 0.62, "50", "200", "all"), lines(0.9, 0.7, "50", "all"))))
    assert few.text == "With 200 labels it is 0.030 ahead of the raw bag (0.650 against 0.620)."
    _, _, few = verdict(plausible(tasks=(lines(0.6, 0.62, "50", "all"), lines(0.6, 0.62, "50", "all"))))
    assert few.standing == "behind"
    assert "With 50 labels it is 0.020 behind the raw bag" in few.text
    assert few.text.endswith("on average over 2 tasks.")


def test_the_verdict_says_what_was_not_measured() -> None:
    alone = plausible(tasks=(task("gender", "profile", {OURS: 0.8}, curves=False),), rows={OURS: "ours"})
    assert {sentence.standing for sentence in verdict(alone)} == {"level"}
    for sentence, words in zip(verdict(alone), ("unknown", "looks ahead", "not measured"), strict=True):
        assert words in sentence.text


@pytest.mark.parametrize(("auc", "suspect"), [(0.509, False), (0.52, True), (0.48, True)])
def test_a_null_label_that_is_read_is_a_suspicion(auc: float, suspect: bool, tmp_path: Path) -> None:
    findings = plausible(tasks=(task("coin", "profile", {OURS: auc, RAW: 0.7}, null=True),), diagnostics={})
    assert [("coin" in one) for one in suspicions(findings)] == [True] * suspect
    assert suspicions(replace(findings, tasks=duel("profile", (auc, 0.7)))) == [], "a label that may be known"
    assert ("Mistrust every number" in written(findings, tmp_path)) == suspect


def test_the_table_marks_who_is_better_and_bolds_the_best(text: str) -> None:
    quality = Page(text).tables[0]
    assert quality[0] == ["row", "mean", "gender", "active"]
    cells = {row[0]: row[1:] for row in quality[1:]}
    assert list(cells) == list(ROWS)
    found = {task.name: task for task in small().tasks}
    assert cells[OURS][1] == f"{found['gender'].scores[OURS].auc:.3f}±.010"
    assert cells[COUNTS][2].startswith("▼")
    assert cells["random, 256"][2].startswith("▲")
    assert not cells[RAW][1].startswith(("▼", "▲")), "their difference is not significant"
    bold = re.findall(r"<b>([\d.]+)</b>", text)
    assert f"{found['active'].scores[COUNTS].auc:.3f}" in bold
    assert f"{found['active'].scores[OURS].auc:.3f}" not in bold


def test_a_mean_is_shown_only_over_all_tasks(tmp_path: Path) -> None:
    first, second = duel("profile", (0.8, 0.7), (0.7, 0.6))
    lacking = replace(second, scores={OURS: second.scores[OURS]})
    page = Page(written(plausible(tasks=(first, lacking), diagnostics={}), tmp_path))
    assert [row[:2] for row in page.tables[0][1:]] == [[OURS, "0.750"], [RAW, "–"]]


def test_a_mean_curve_is_over_the_tasks_that_have_every_point(tmp_path: Path) -> None:
    three = [replace(task(f"t{i}", "profile", {OURS: 0.8, RAW: 0.7}), cold={}) for i in range(3)]
    short = {row: {n: s for n, s in line.items() if n != "1000"} for row, line in three[2].few_labels.items()}
    tasks = (*three[:2], replace(three[2], few_labels=short))
    page = Page(written(plausible(tasks=tasks, diagnostics={}), tmp_path))
    (mean,) = [label for label in page.values("aria-label") if label.startswith("Mean of")]
    assert mean.startswith("Mean of 2 tasks, AUC by labelled users: lurm, 256 50: 0.658, 200: 0.713, 1000: 0.771, all:")


def test_what_comes_from_outside_stays_text(attacked: Page) -> None:
    tags = {tag for tag, _ in attacked.elements}
    assert tags & {"script", "img", "iframe", "object", "link", "base", "form"} == set()
    assert [key for _, attributes in attacked.elements for key in attributes if key.startswith("on")] == []
    # parsers make of the control character what they like
    shown = attacked.text.replace("\x0b", "").count(HOSTILE.replace("\x0b", ""))
    assert shown >= 12, "as title, heading, release, row, task, question, anchor, left out, space, and in plots"


def test_the_page_loads_nothing(text: str) -> None:
    page = Page(text)
    assert not re.search(r"(https?|ftp|file):|@import|url\((?!#)", text)
    assert page.values("src") == []
    assert all(link.startswith(("#", "data:application/json;")) for link in page.values("href"))
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.values("content")


def test_plots_keep_their_ids_apart_and_find_what_they_refer_to(text: str) -> None:
    ids = Page(text).values("id")
    assert len(ids) == len(set(ids))
    referred = re.findall(r'(?:url\(#|href="#)([^)"]+)', text)
    assert len(referred) > 20
    assert set(referred) <= set(ids)


def test_everyone_can_read_it(text: str) -> None:
    page = Page(text)
    plots_drawn = [attributes for tag, attributes in page.elements if tag == "svg"]
    # a mean, three tasks, two panels of two tasks and their mean, three of the diagnostics
    assert len(plots_drawn) == 1 + 3 + 2 * 3 + 3
    assert all(one["role"] == "img" and one["aria-label"] for one in plots_drawn)
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    assert "DejaVu" not in text, "the reader's own fonts"
    assert not re.search(r"#0[1-4]0[1-4]0[1-4]", text, re.IGNORECASE), "every colour is the page's"


def test_equal_findings_are_equal_bytes(tmp_path: Path) -> None:
    one = plausible(tasks=duel("profile", (0.8, 0.7)))
    assert written(one, tmp_path) == written(one, tmp_path)


def test_the_numbers_come_along_as_json(text: str) -> None:
    (link,) = [link for link in Page(text).values("href") if link.startswith("data:")]
    carried = json.loads(base64.b64decode(link.partition("base64,")[2]))
    assert carried == json.loads(json.dumps(small().to_json()))


def test_json_has_no_nan(tmp_path: Path) -> None:
    findings = plausible(tasks=duel("profile", (0.8, 0.7)), diagnostics={}, window=None)
    (link,) = [link for link in Page(written(findings, tmp_path)).values("href") if link.startswith("data:")]
    assert json.loads(base64.b64decode(link.partition("base64,")[2]))["means"][OURS]["window"] is None


def test_a_missing_block_is_left_out() -> None:
    whole = plausible().diagnostics
    titles = [reading.title for reading in readings_of(whole)]
    assert len(titles) == len(whole) - 1, "all but the anchors, which have a table of their own"
    less = readings_of(whole | {"drift": None, "cosines": {}})
    assert [reading.title for reading in less] == [one for one in titles if one not in ("Drift", "Random pairs")]
    assert readings_of({}) == []
    assert anchors_of({}) == []


def test_without_anything_there_is_still_a_page(tmp_path: Path) -> None:
    bare = written(plausible(tasks=(), diagnostics={}, window=None, left_out={}), tmp_path)
    headings = re.findall(r"<h2>(.*?)</h2>", bare)
    assert headings == ["How it was measured"]


SICK = {
    "effective_rank": {"value": 5.0, "share": 0.02},
    "norms": {"min": 0.9, "max": 1.0},
    "cosines": {"mean": 0.8, "std": 0.1},
    "hubness": {"skewness": 9.0},
    "near_duplicates": {"share": 0.4},
    "popularity": {"n_events_r2": -0.1, "popularity_r2": 0.9},
    "stability": {"7": {"median": 0.3}, "28": {"median": 0.9}},
}


@pytest.mark.parametrize("block", SICK)
def test_what_is_not_fine_is_said(block: str) -> None:
    (sick,) = readings_of({block: SICK[block]})
    without_plots = {key: value for key, value in plausible().diagnostics[block].items() if not isinstance(value, list)}
    (well,) = readings_of({block: without_plots})
    assert (sick.fine, well.fine) == (False, True)


def test_an_anchor_that_nobody_uses_is_called_idle(text: str) -> None:
    anchors = next(table for table in Page(text).tables if table[0][0] == "anchor")
    assert [row[2] for row in anchors[1:]] == ["36.0 %", "32.8 %", "31.0 %", "0.2 %! idle"]
    assert "school, homework · prom, friends" in anchors[1][4]


@given(st.dictionaries(st.text(max_size=40), st.floats(0, 1), min_size=1, max_size=4))
@settings(max_examples=8, deadline=None)
def test_any_name_can_be_drawn(aucs: dict[str, float]) -> None:
    ours = next(iter(aucs))
    for drawn in (
        plots.intervals("a", ours, aucs, ours=ours, halves=dict.fromkeys(aucs, 0.01)),
        plots.curves("b", ours, {row: {"50": auc, "all": auc} for row, auc in aucs.items()}, ours=ours, of="labels"),
    ):
        root = ElementTree.fromstring(drawn)
        assert root.get("aria-label") == "".join(c for c in ours if c.isprintable())


def test_short_names_never_merge_rows() -> None:
    assert plots.short_names([OURS, RAW]) == {OURS: "lurm", RAW: RAW}
    assert plots.short_names(["SVD, 64", "SVD, 256", "x, 1"]) == {
        "SVD, 64": "SVD, 64",
        "SVD, 256": "SVD, 256",
        "x, 1": "x",
    }
