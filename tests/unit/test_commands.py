"""The front door: what its commands print, where, and with which exit code they end."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import lurm
from lurm import __main__ as front_door
from lurm import release
from lurm.artifacts import draft
from lurm.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    DataError,
    LurmError,
    Overloaded,
    SettingsError,
    UnknownUser,
    UsageError,
)

HOUSEKEEPING = ("config", "doctor", "interests", "validate", "release")
RELEASE = ("list", "activate", "rollback", "verify", "prune")


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout, which must be one JSON document and nothing else."""
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def command(*words: object) -> Outcome:
        with pytest.raises(SystemExit) as ending:
            front_door.main([str(word) for word in words])
        captured = capsys.readouterr()
        code = ending.value.code
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err)

    return command


@pytest.fixture
def two_releases(artifacts_dir: Path) -> Path:
    """An artifacts folder with releases r1, then r2, which is active; enough of them to be listed."""
    for number, name in enumerate(("r1", "r2"), start=1):
        config = {"space_id": f"space{number}", "name": "tea shop"}
        with draft(artifacts_dir / "releases" / name, kind=release.KIND, key=name, config=config) as work:
            work.metrics.update(n_users=1_000 * number, n_events=5, n_items=4, n_interests=3, dim=2)
        release.activate(artifacts_dir, name)
    return artifacts_dir


def test_version_is_the_version(run: Run) -> None:
    outcome = run("--version")
    assert (outcome.code, outcome.out) == (0, f"lurm {lurm.__version__}\n")


@pytest.mark.parametrize(
    "words", [[], *([one] for one in HOUSEKEEPING), *(["release", one] for one in RELEASE)], ids=" ".join
)
def test_every_command_teaches_with_an_example(run: Run, words: list[str]) -> None:
    outcome = run(*words, "--help")
    assert outcome.code == 0
    assert f"\n    lurm {' '.join(words)}" in outcome.out
    assert ("--json" in outcome.out) == (words not in ([], ["release"]))


def test_the_list_of_commands_is_readable(run: Run) -> None:
    for words, names in ([], HOUSEKEEPING), (["release"], RELEASE):
        listed = run(*words, "--help").out.split("Commands:\n")[1].splitlines()
        lines = [line for line in listed if line.split()[0] in names]
        assert len(lines) == len(names)
        assert not [line for line in lines if line.endswith("...")]


@pytest.mark.parametrize(
    "words",
    [
        ("lookalike", "seeds.txt", "{}.parquet", "--percent", "1"),
        ("audience", "members", "alike", "{}.parquet"),
        ("export", "{}.arrow"),
        ("forecast", "{}.parquet"),
        ("evaluate", "log", "--report", "{}.parquet"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("place", ["nowhere/out", "folder", "x" * 300])
def test_where_nothing_can_be_written_is_said_before_anything_is_looked_for(
    run: Run, words: tuple[str, ...], place: str
) -> None:
    Path("seeds.txt").write_text("1\n2\n")
    for suffix in ("parquet", "arrow"):
        Path(f"folder.{suffix}").mkdir()
    before = sorted(Path().rglob("*"))
    outcome = run(*(word.format(place) for word in words))  # there is no release, no log and no audience either
    assert (outcome.code, outcome.out) == (2, "")
    assert "cannot be written" in outcome.err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ("--cuts", "3"),
        ("--seeds", "1"),
        ("--cuts", "2", "--seeds", "3"),
        ("--cuts", "3", "--model", "behavegpt"),
        ("--cuts", "2", "--seeds", "3", "--model", "behavegpt"),
    ],
    ids=" ".join,
)
def test_cuts_and_seeds_are_refused_where_nothing_is_repeated(run: Run, words: tuple[str, ...]) -> None:
    outcome = run("evaluate", "log", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert words[0] in outcome.err and "add --model lumos" in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rollout", "3", "--at", "2024-12-24"), "leave out --at"),
        (("--rollout", "3", "-k", "10", "--location", "home"), "leave out -k, --location"),
        (("--paths", "3"), "leave out --paths, or add --rollout"),
        (("--days", "7", "--seed", "0"), "leave out --days, --seed, or add --rollout"),
        (("--rollout", "0"), "greater than or equal to 1"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, tuple) else "",
)
def test_options_of_next_that_would_go_unheard_are_refused(run: Run, words: tuple[str, ...], said: str) -> None:
    outcome = run("next", "somebody", *words)  # there is no release: nothing is looked for before
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--users", "u.txt", "--where", "nonsense nope", "--percent", "5"), "leave out --percent, --where"),
        (("--combine", '"a"', "--include-seeds", "--exclude", "@b"), "leave out --exclude, --include-seeds"),
        (("--where", "country = UK", "--percent", "5", "--negative", "@b"), "leave out --percent, --negative"),
        ((), "Give exactly one of --users, --like and --combine, or --where alone"),
        (("--where", "nonsense nope"), "found 'nope'"),
        (("--like", "@a", "--mix", "base"), "add --balance ATTRIBUTE"),
        (("--like", "@a", "--balance", "country", "--mix", "us"), "expected seeds or base"),
        (("--like", "@a", "--count", "5", "--percent", "5"), "2 of percent, count and probability"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, tuple) else "",
)
def test_options_of_an_audience_that_would_go_unheard_are_refused(run: Run, words: tuple[str, ...], said: str) -> None:
    outcome = run("audience", "save", "some", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err


def test_a_misspelt_command_is_a_usage_error_with_a_hint(run: Run) -> None:
    outcome = run("confg")
    assert (outcome.code, outcome.out) == (2, "")
    assert "Did you mean 'config'?" in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("build", "csv", "--dim", "0"), "'--dim'"),
        (("build", "csv", "--dmi", "8"), "--dmi"),
        (("build",), "argument"),
        (("bulid", "csv"), "bulid"),
        (("evaluate", "csv", "--model", "none"), "none"),
        (("release", "list", "more"), "more"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, tuple) else "",
)
def test_a_wrong_command_line_is_told_people_and_programs_alike(run: Run, words: tuple[str, ...], said: str) -> None:
    plain, outcome = run(*words), run(*words, "--json")
    assert (plain.code, plain.out, outcome.code, outcome.err) == (2, "", 2, plain.err)
    assert outcome.document["error"]["type"] == "UsageError"
    assert outcome.document["error"]["exit_code"] == 2
    assert said in outcome.document["error"]["message"]
    assert said in plain.err


def test_config_shows_where_each_value_comes_from(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("lurm.toml").write_text("workers = 3")
    monkeypatch.setenv("LURM_PORT", "9000")
    monkeypatch.setenv("LURM_REDIS_URL", "redis://:hunter2@cache:6379/0")
    rows = {row["variable"]: row for row in run("config", "--json").document}
    found = {name: (rows[name]["value"], rows[name]["source"]) for name in ("LURM_PORT", "LURM_WORKERS", "LURM_HOST")}
    assert found == {
        "LURM_PORT": (9000, "environment"),
        "LURM_WORKERS": (3, "file"),
        "LURM_HOST": ("127.0.0.1", "default"),
    }
    shown = run("config").out
    assert "LURM_PORT" in shown
    assert "hunter2" not in shown
    assert run("config", "--markdown").out.startswith("| variable |")


def test_a_wrong_setting_ends_with_2_and_says_which(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LURM_PROT", "9000")
    outcome = run("config", "--json")
    assert outcome.code == 2
    assert outcome.document["error"]["type"] == "SettingsError"
    assert outcome.err == f"lurm: {outcome.document['error']['message']}\n"
    assert "LURM_PORT?" in outcome.err
    monkeypatch.delenv("LURM_PROT")
    monkeypatch.setenv("LURM_FOO", "1")
    assert run("config").err == "lurm: unknown setting LURM_FOO in the environment; `lurm config` lists them all.\n"


def test_releases_are_listed_with_the_active_one_marked(run: Run, two_releases: Path) -> None:
    listed = run("release", "list", "--artifacts-dir", two_releases, "--json").document
    assert [(one["release_id"], one["active"], one["n_users"]) for one in listed] == [
        ("r1", False, 1000),
        ("r2", True, 2000),
    ]
    header, first, second = run("release", "list", "--artifacts-dir", two_releases).out.splitlines()
    assert header.split() == ["release", "of", "made", "users", "events", "items", "interests", "dim", "space"]
    assert first.split()[0] == "r1"
    assert second.split()[:2] == ["*", "r2"]
    assert "2,000" in second


def test_no_release_yet_is_said_and_is_no_error(run: Run, artifacts_dir: Path) -> None:
    outcome = run("release", "list", "--artifacts-dir", artifacts_dir)
    assert outcome.code == 0
    assert "lurm build" in outcome.out
    assert run("release", "list", "--artifacts-dir", artifacts_dir, "--json").document == []


@pytest.mark.parametrize("there", ["file", "file/deeper", "/proc/nothing"])
@pytest.mark.parametrize("words", [("build", "events.csv"), ("release", "prune", "--keep", "1")])
def test_artifacts_that_can_have_no_folder_are_a_wrong_setting(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("events.csv").write_text("user_id,item_id,timestamp\nu,i,2024-01-01\n")
    outcomes = [run(*words, "--artifacts-dir", there), run("release", "list", "--artifacts-dir", "file")]
    assert [(outcome.code, outcome.err.count("\n")) for outcome in outcomes] == [(2, 1)] * 2
    assert f"{there} is no folder" in outcomes[0].err and "file is no folder" in outcomes[1].err
    assert all("LURM_ARTIFACTS_DIR" in outcome.err for outcome in outcomes)


def test_the_active_release_is_the_one_that_was_activated(
    run: Run, two_releases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LURM_ARTIFACTS_DIR", str(two_releases))
    assert run("release", "activate", "r1").out == "active: r1\n"
    assert release.current(two_releases) == "r1"


def test_a_release_that_is_not_there_ends_with_4(run: Run, two_releases: Path) -> None:
    outcome = run("release", "activate", "r3", "--artifacts-dir", two_releases, "--json")
    assert (outcome.code, outcome.document["error"]["type"]) == (4, "ArtifactMissing")
    assert "r1, r2" in outcome.err
    assert release.current(two_releases) == "r2"


@pytest.mark.parametrize("damage", [b"", b"r9\n", b"\xff\xfe"])
def test_a_damaged_pointer_points_at_nothing_until_a_release_is_activated(
    run: Run, two_releases: Path, damage: bytes
) -> None:
    (two_releases / "current").write_bytes(damage)
    listed = run("release", "list", "--artifacts-dir", two_releases, "--json").document
    assert [one["active"] for one in listed] == [False, False]
    for command in ("rollback", "verify"):
        outcome = run("release", command, "--artifacts-dir", two_releases)
        assert (outcome.code, outcome.err.count("\n")) == (4, 1)
    assert run("release", "activate", "r1", "--artifacts-dir", two_releases).code == 0
    assert release.current(two_releases) == "r1"


def test_a_damaged_release_does_not_verify(run: Run, two_releases: Path) -> None:
    outcome = run("release", "verify", "--artifacts-dir", two_releases)
    assert (outcome.code, outcome.out) == (4, "")


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("LURM_API_KEYS_FILE", "nowhere", "LURM_API_KEYS_FILE cannot be read"),
        ("LURM_API_KEYS", "somebody read", "LURM_API_KEYS line 1"),
        ("LURM_OTEL_ENDPOINT", "collector:4318", "LURM_OTEL_ENDPOINT is not"),
    ],
)
def test_the_doctor_fails_what_a_service_would_not_start_with(
    run: Run, variable: str, value: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    outcome = run("doctor", "--json")
    (failed,) = [check for check in outcome.document["checks"] if check["verdict"] == "fail"]
    assert (outcome.code, failed["name"]) == (1, "service")
    assert complaint in failed["found"]


@pytest.mark.parametrize(("spoiled", "code"), [(0, 0), (1, 0), (2, 3)])
def test_validate_ends_with_3_when_a_build_would_stop(run: Run, tmp_path: Path, spoiled: int, code: int) -> None:
    rows = [f"u{n % 7},i{n % 5},{'never' if n < spoiled else 1_700_000_000 + n}" for n in range(100)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    outcome = run("validate", "log.csv", "--json")
    assert outcome.code == code
    assert (outcome.document["n_rows"], outcome.document["n_bad"]) == (100, spoiled)
    shown = run("validate", "log.csv")
    assert shown.code == code
    assert outcome.document["verdict"] in " ".join(shown.out.split())


@pytest.mark.parametrize(("spoiled", "code"), [(0, 2), (50, 3)])
def test_validate_ends_with_2_when_a_recipe_names_what_the_log_lacks(
    run: Run, tmp_path: Path, spoiled: int, code: int
) -> None:
    rows = [f"u{n % 7},i{n % 5},{'never' if n < spoiled else 1_700_000_000 + n}" for n in range(100)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    (tmp_path / "recipe.toml").write_text("[encoder.bag.behavior_weights]\nbyu = 2.0\n")
    outcome = run("validate", "log.csv", "--recipe", "recipe.toml", "--json")
    assert (outcome.code, outcome.document["exit_code"]) == (code, code)
    assert "names 'byu'; the log has event" in outcome.document["verdict"]


def test_a_dataset_that_is_not_there_is_a_usage_error(run: Run) -> None:
    outcome = run("validate", "nowhere", "--json")
    assert (outcome.code, outcome.document["error"]["exit_code"]) == (2, 2)
    assert "nowhere" in outcome.err


def test_the_starter_config_can_be_copied_from_what_is_shown(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / ("a long name of a folder " * 8)
    folder.mkdir()
    (folder / "events.csv").write_text("user_id,item_id,timestamp\nu,i,1700000000\nv,j,1700000001\n")
    shown = run("validate", folder).out
    copied = shown.split("starter config\n")[1].rpartition("\n\n")[0]
    (tmp_path / "copied.toml").write_text(copied)
    assert run("validate", "copied.toml").code == 0
    assert tomllib.loads(copied) == tomllib.loads(run("validate", folder, "--json").document["config"])


def test_validate_reads_what_the_build_would_read_of_a_config_and_a_recipe(run: Run, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,i,1700000000\nv,j,1700000001\n")
    misspelt = "[training]\nlearning_rat = 0.1\n"
    (tmp_path / "dataset.toml").write_text(f'{misspelt}[events]\npath = "log.csv"\n')
    (tmp_path / "recipe.toml").write_text(misspelt)
    for words in (("dataset.toml",), ("log.csv", "--recipe", "recipe.toml")):
        outcome = run("validate", *words)
        assert (outcome.code, outcome.out) == (2, "")
        assert "did you mean 'learning_rate'?" in outcome.err
    assert run("validate", "log.csv").code == 0


def ending_with(error: BaseException) -> str:
    """The name of a command that ends so."""

    def ends(as_json: bool = typer.Option(False, "--json")) -> None:
        raise error

    name = f"ends-{type(error).__name__.lower()}-{id(error)}"
    front_door.app.command(name, hidden=True)(ends)
    return name


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LurmError("why"), 1),
        (UsageError("why"), 2),
        (SettingsError("why"), 2),
        (DataError("why"), 3),
        (ArtifactMissing("why"), 4),
        (ArtifactCorrupt("why"), 4),
        (Overloaded("why"), 1),
        (OSError(errno.ENOSPC, "why"), 1),
        (OSError(errno.EFBIG, "why"), 1),
        (PermissionError(errno.EACCES, "why"), 1),
    ],
    ids=lambda case: type(case).__name__,
)
def test_an_error_is_one_line_and_a_code(run: Run, error: Exception, code: int) -> None:
    outcome = run(ending_with(error))
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("lurm: ")
    assert "why" in outcome.err
    assert outcome.err.count("\n") == 1
    document = run(ending_with(error), "--json").document
    assert document["error"]["exit_code"] == code


def test_an_unknown_user_stays_unnamed(run: Run) -> None:
    outcome = run(ending_with(UnknownUser("alice@example.com")), "--json")
    assert outcome.code == 3
    assert "alice" not in outcome.out + outcome.err


def test_a_full_disk_comes_with_advice(run: Run) -> None:
    outcome = run(ending_with(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert "write to a larger disk; builds go to LURM_ARTIFACTS_DIR" in outcome.err


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        front_door.main([ending_with(ZeroDivisionError())])
    with pytest.raises(FileNotFoundError):
        front_door.main([ending_with(FileNotFoundError(errno.ENOENT, "no such file"))])


BROKEN = """
import sys
sys.modules["service"] = None  # importing it is an error from here on
from lurm.__main__ import main
main(["--version"])
"""


def test_broken_commands_leave_the_others_usable() -> None:
    outcome = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, check=True)
    assert outcome.stdout == f"lurm {lurm.__version__}\n"
    assert "the commands of service are missing" in outcome.stderr
    assert "lurm doctor" in outcome.stderr


WAITING = """
import sys
from lurm import __main__ as front_door

@front_door.app.command()
def wait():
    print("waiting", flush=True)
    sys.stdin.read()

front_door.main(["wait"])
"""


def test_ctrl_c_is_130_and_says_how_to_go_on() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert said.splitlines()[-1] == "lurm: stopped; run it again to resume"
    assert "Traceback" not in said
