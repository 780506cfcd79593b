import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from lurm.calendars import Calendar, of_dataset
from lurm.dataset import Dataset
from lurm.progress import Reporter, Silent
from lurm.release import Release
from lurm.saved import Audiences
from lurm.settings import environment_of
from tests import loaded
from tests.asking import saved
from training import pipeline
from training.recipes import Recipe
from training.world import Truth, WorldConfig, simulate

WORLD = WorldConfig(n_users=400, n_items=800, n_interests=24, days=400, events_per_user=80)
FAST = {"training": {"epochs": 2}, "encoder": {"dim": 32}}


@dataclass(frozen=True, slots=True)
class Built:
    """A small simulated world and the release that was built of it."""

    dataset: Path
    root: Path
    truth: Truth
    built: pipeline.Built

    def release(self) -> Release:
        return Release.open(self.root)


def build(dataset: Path, root: Path, *, reporter: Reporter | None = None, **tables: object) -> pipeline.Built:
    """Build with the tables of a recipe laid over the dataset's own."""
    opened = Dataset.open(dataset)
    laid = {**opened.extra, **FAST, **tables}
    recipe, reporter = Recipe.of(laid), reporter or Silent()
    return pipeline.build(opened, root, recipe=recipe, memory_limit_bytes=2**30, threads=1, reporter=reporter)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("small")
    simulate(folder / "world", WORLD, reporter=Silent())
    built = build(folder / "world", folder / "artifacts")
    return Built(folder / "world", folder / "artifacts", Truth.load(folder / "world"), built)


@pytest.fixture(scope="module")
def release(small: Built) -> Release:
    return small.release()


@pytest.fixture(scope="module")
def calendar(small: Built, release: Release) -> Calendar:
    return of_dataset(Dataset.open(small.dataset), release.history.users, release.attributes)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As a build trains; steps this small wait for each other longer than they take."""
    with threadpool_limits(limits=1, user_api="openmp"):
        yield


@pytest.fixture
def audiences(release: Release, tmp_path: Path) -> Audiences:
    return saved(release, tmp_path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world that is built in a second."""
    folder = tmp_path_factory.mktemp("tiny") / "world"
    simulate(
        folder, WorldConfig(n_users=60, n_items=120, n_interests=6, days=200, events_per_user=20), reporter=Silent()
    )
    with (folder / "dataset.toml").open("a") as file:
        file.write("\n[training]\nepochs = 1\n\n[encoder]\ndim = 32\n")
    return folder


@pytest.fixture(scope="session")
def tiny_root(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts as ``lurm build`` leaves them the first time, for nobody to change."""
    root = tmp_path_factory.mktemp("tiny-root") / "artifacts"
    loaded.run(["build", str(tiny)], environment_of(artifacts_dir=root, threads=1), check=True)
    return root


@pytest.fixture
def root(tiny_root: Path, tmp_path: Path) -> Path:
    """The same, for this test alone."""
    return shutil.copytree(tiny_root, tmp_path / "artifacts")
