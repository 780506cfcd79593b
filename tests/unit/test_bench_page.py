"""BENCHMARKS.md says what was kept, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lurm.errors import UsageError
from training import bench
from training.bench.page import PLOT, WANTED, newest, write_page

MACHINE = {"cpu": "Cpu", "cores": 2, "threads": 2, "memory_bytes": 25 * 10**9, "load_1m": 0.5}


def timing(seconds: float, n_rows: int, n_bytes: int) -> dict[str, Any]:
    told = dict.fromkeys(("min", "median", "max"), seconds)
    memory = {"peak_resident_bytes": n_bytes, "grown_bytes": n_bytes}
    return {"seconds": told, "rows_per_s": n_rows / seconds, **memory}


def keep(folder: Path, name: str, day: str, *, scale: str = "small", **ratios: float) -> None:
    figures: dict[str, Any] = {"scale": scale, "rounds": 3, "n_users": 1_000}
    if name == "scale":
        figures = {"scale": scale, "rounds": 1, "memory_limit_bytes": 2**25}
        for times in (1, 10):
            n_users = 1_000 * times
            figures |= {f"n_users_{times}x": n_users, f"n_events_{times}x": 100 * n_users}
            figures |= {f"base_bytes_{times}x": 2_200 * n_users, f"embeddings_bytes_{times}x": 1_024 * n_users}
            figures |= {f"ingest_{times}x": timing(0.2 * times, 100 * n_users, 10**9)}
            figures |= {f"embed_{times}x": timing(0.16 * times, 100 * n_users, 10**9)}
    else:
        figures["ours"] = timing(1.5, 1_000, 2**20)
        figures["ours_p99_ms"] = 1.25
    document = {"name": name, "machine": MACHINE, "figures": figures, "ratios": ratios}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-{scale}-cpu-{day}.json").write_text(json.dumps(document))


def test_every_ratio_stands_beside_what_is_wanted_of_it(tmp_path: Path) -> None:
    results = tmp_path / "results"
    keep(results, "train", "2026-01-02", vs_bare_loop=0.7)
    keep(results, "train", "2026-02-01", vs_bare_loop=0.9)
    keep(results, "train", "2026-01-31", vs_bare_loop=0.6)
    keep(results, "train", "2026-01-01", scale="full", vs_bare_loop=0.79)
    keep(results, "embed", "2026-01-01", vs_gather_limit=0.25)
    write_page(tmp_path / "BENCHMARKS.md", results)
    page = (tmp_path / "BENCHMARKS.md").read_text()
    rows = [line for line in page.splitlines() if "`vs_" in line]
    assert rows == [
        "| embed | small | `vs_gather_limit` | 0.25 | ≥ 0.5 | no | 0.5 | Cpu, 2 cores, 25 GB | 2026-01-01 |",
        "| train | full | `vs_bare_loop` | 0.79 | ≥ 0.8 | no | 0.5 | Cpu, 2 cores, 25 GB | 2026-01-01 |",
        "| train | small | `vs_bare_loop` | 0.9 | ≥ 0.8 | yes | 0.5 | Cpu, 2 cores, 25 GB | 2026-02-01 |",
    ]
    assert "| ours | 1.5 | 1.5 | 1.5 | 667 | 1.05 MB | 1.05 MB |" in page
    assert "Also: ours_p99_ms 1.25." in page
    assert "1,000 users; 2 threads." in page
    assert f"](results/{PLOT})" in page
    assert "billion" not in page, "nothing was measured that could tell"
    shown = "".join(ElementTree.parse(results / PLOT).getroot().itertext())
    assert "embed vs_gather_limit, small" in shown
    before = (results / PLOT).read_bytes()
    write_page(tmp_path / "BENCHMARKS.md", results)
    assert (results / PLOT).read_bytes() == before, "the same results draw the same plot"


def test_a_billion_users_are_worked_out_from_the_largest_size(tmp_path: Path) -> None:
    keep(tmp_path / "results", "scale", "2026-01-02", time_vs_linear=1.0, memory_vs_flat=0.9)
    write_page(tmp_path / "BENCHMARKS.md", tmp_path / "results")
    page = (tmp_path / "BENCHMARKS.md").read_text().split("## To a billion users")[1]
    # 3.6 s for 10,000 users are 360,000 s for a billion
    assert "| 1 | 100.0 h |\n| 10 | 10.0 h |\n| 100 | 1.0 h |" in page
    assert "Assumed: 100 events a user" in page
    assert "| history base | 22.0 per event | 2.2 TB |" in page
    assert "| embeddings | 1,024.0 per user | 1.02 TB |" in page


def test_without_results_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no results"):
        write_page(tmp_path / "BENCHMARKS.md", tmp_path)
    assert not (tmp_path / "BENCHMARKS.md").exists()


def test_something_is_wanted_of_every_benchmark_and_the_page_shows_what_was_kept(repository: Path) -> None:
    assert set(WANTED) == set(bench.BENCHMARKS)
    page = (repository / "BENCHMARKS.md").read_text()
    kept = newest(repository / "tests/benchmarks/results")
    for one in kept:
        assert set(one.document["ratios"]) >= set(WANTED[one.name])
        for ratio, value in one.document["ratios"].items():
            assert f"| {one.name} | {one.scale} | `{ratio}` | {value:.3g} |" in page, "run `lurm bench page`"
