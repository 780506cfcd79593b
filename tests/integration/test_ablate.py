"""Recipes built, probed and compared for real."""

from pathlib import Path

import numpy as np
import pytest

from lurm.dataset import Dataset
from lurm.progress import Silent
from lurm.release import Release
from tests.integration.conftest import FAST, Built, build
from training.evaluate.ablate import Ablation, Variant, ablate, variants
from training.evaluate.findings import Findings, TaskFindings
from training.evaluate.probe import logistic, scaled_as_a_whole, score_of, splits_of

SHARE = 0.8
EMBEDDING = "lurm embedding"


def judged(release: Release, release_id: str, women: dict[str, bool]) -> Findings:
    """One question, by a probe: which users are women."""
    y = np.array([women[user] for user in release.history.users.ids.to_pylist()], np.int64)
    splits = splits_of(y, seeds=[0])
    answers = logistic(scaled_as_a_whole(np.asarray(release.embeddings.vectors_ue, np.float64)), y, splits)
    share = float(y.mean())
    score = score_of(answers, n_train_share=SHARE)
    task = TaskFindings("gender", "profile", "a woman?", len(y), (1 - share, share), False, {EMBEDDING: score})
    return Findings(
        dataset="small",
        release_id=release_id,
        space_id=release.space_id,
        dim=release.encoder.dim,
        n_users=len(y),
        n_events=release.history.n_events,
        n_interests=len(release.vocabulary),
        seed=0,
        made_at="2026-11-22T00:00:00+00:00",
        seconds=1.0,
        window=None,
        rows={EMBEDDING: "frozen vectors"},
        tasks=(task,),
        diagnostics={},
    )


@pytest.mark.slow
def test_a_recipe_that_forgets_what_users_like_loses(small: Built, tmp_path: Path) -> None:
    dataset = Dataset.open(small.dataset)
    users = dataset.users()
    assert users is not None
    women = {row["user_id"]: row["gender"] == "woman" for row in users.iter_rows(named=True)}
    tables = {**dataset.extra, **FAST}
    history = small.release().history
    every = variants(tables, int((history.item_counts() > 0).sum()), history.span_ms)
    default = next(v for v in every if v.axis == "interests" and v.is_default)
    forgetful = Variant(
        "interests", "2", {**tables, "interests": {"n_interests": 2, "own_grain": 10**6}}, is_default=False
    )
    impossible = Variant("anchors", "33", {**tables, "encoder": {"dim": 32, "n_anchors": 33}}, is_default=False)
    built: list[str] = []

    def judge(variant: Variant) -> Findings:
        built.append(variant.name)
        release_id = build(small.dataset, tmp_path / "artifacts", **variant.tables).release_id
        return judged(Release.open(tmp_path / "artifacts", release_id), release_id, women)

    def run() -> Ablation:
        return ablate(
            judge,
            [forgetful, default, impossible],
            Silent(),
            folder=tmp_path / "ablations",
            fingerprint=dataset.fingerprint,
            n_train_share=SHARE,
        )

    found = run()
    two, base, many = found.rows
    assert built == [default.name, "2"]
    assert found.default.space_id == small.release().space_id
    assert (two.n_interests, base.n_interests) == (2, found.default.n_interests)
    assert base.scores["gender"].auc > 0.65
    assert two.scores["gender"].auc < base.scores["gender"].auc - 0.05
    assert two.versus["gender"].p < 0.05
    assert (two.won, two.lost) == (0, 1)
    assert many.failed is not None
    assert "every anchor needs at least one dimension" in many.failed

    assert run() == found
    assert built == [default.name, "2"]
