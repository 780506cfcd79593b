import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp

from lurm.errors import DataError, UsageError
from training.evaluate import Score, Table, _labels, probe
from training.recipes import ProfileTask


def test_a_probe_reads_what_is_there_and_nothing_else(rng: np.random.Generator) -> None:
    x = rng.standard_normal((600, 8))
    told = (x[:, 0] + 0.3 * rng.standard_normal(600) > 0).astype(np.int64)
    null = rng.integers(0, 2, 600)
    assert probe(x, told, seed=0).auc > 0.95
    assert abs(probe(x, null, seed=0).auc - 0.5) < 0.08
    assert probe(sp.csr_matrix(x), told, seed=0).auc == pytest.approx(probe(x, told, seed=0).auc, abs=0.02)


def test_several_classes_are_one_against_the_rest(rng: np.random.Generator) -> None:
    y = rng.integers(0, 4, 800)
    x = np.eye(4)[y] + 0.5 * rng.standard_normal((800, 4))
    assert probe(x, y, seed=0).auc > 0.9
    assert abs(probe(rng.standard_normal((800, 4)), y, seed=0).auc - 0.5) < 0.05


def test_the_interval_shrinks_with_the_users(rng: np.random.Generator) -> None:
    def noisy(n: int) -> Score:
        x = rng.standard_normal((n, 3))
        return probe(x, (x[:, 0] + 2 * rng.standard_normal(n) > 0).astype(np.int64), seed=1)

    assert noisy(6000).interval < noisy(150).interval


@pytest.mark.parametrize("y", [[0] * 50, [0] * 45 + [1] * 5])
def test_too_few_of_a_class_is_an_error(y: list[int]) -> None:
    with pytest.raises(DataError, match="at least 10 users"):
        probe(np.zeros((50, 2)), np.array(y), seed=0)


def test_labels_of_every_kind() -> None:
    users = pl.DataFrame(
        {"sex": ["F", "M", None, "F"], "age": [20, 30, None, 40], "sign": ["leo", "virgo", "aries", None]}
    )
    assert _labels(users, ProfileTask("g", "sex", positive=("F",))).tolist() == [1, 0, -1, 1]
    assert _labels(users, ProfileTask("a", "age", at_least=30)).tolist() == [0, 1, -1, 1]
    assert _labels(users, ProfileTask("s", "sign")).tolist() == [1, 2, 0, -1]
    with pytest.raises(UsageError, match="asks for column 'height'; the users table has: sex, age, sign"):
        _labels(users, ProfileTask("h", "height"))


def test_numbers_are_read_from_text_where_most_of_it_is_numbers() -> None:
    ages = pl.DataFrame({"age": ["20", "30", None, "n/a", "40"], "band": ["18-24", "25-34", None, "35-44", "50"]})
    assert _labels(ages, ProfileTask("a", "age", at_least=30)).tolist() == [0, 1, -1, -1, 1]
    with pytest.raises(DataError, match=r"task 'b' has at_least, but column 'band' holds '18-24'.*positive"):
        _labels(ages, ProfileTask("b", "band", at_least=30))


def test_a_number_that_is_none_is_no_label() -> None:
    users = pl.DataFrame({"age": [20.0, float("nan"), 40.0]})
    assert _labels(users, ProfileTask("a", "age", at_least=30)).tolist() == [0, -1, 1]


def test_a_table_of_null_tasks_has_no_mean() -> None:
    table = Table({"ours": {"sign": Score(0.5, 0.01)}}, {"sign": 90}, ["sign"], 64)
    assert np.isnan(table.mean("ours"))
    assert "| ours | 0.500 ± 0.010 | nan |" in table.to_markdown()


def test_a_table_tells_its_numbers_in_every_form() -> None:
    scores = {"ours": {"gender": Score(0.8, 0.02), "sign": Score(0.5, 0.01)}}
    table = Table(scores, {"gender": 100, "sign": 90}, ["sign"], 64)
    assert table.mean("ours") == 0.8, "the null label is not part of the mean"
    assert "| ours | 0.800 ± 0.020 | 0.500 ± 0.010 | 0.800 |" in table.to_markdown()
    assert table.to_json()["rows"]["ours"]["gender"] == {"auc": 0.8, "interval": 0.02}
