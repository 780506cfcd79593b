"""The commands as a person runs them: results on stdout, progress on stderr, exit codes, nothing half-done."""

import contextlib
import errno
import json
import os
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lurm import __main__ as front_door
from lurm.artifacts import discard
from lurm.console import own_command
from lurm.release import current
from tests.integration.conftest import Built, build

pytestmark = pytest.mark.slow

BEHAVE = {"network": {"window": 32, "steps": {"least_events": 1}}, "training": {"epochs": 1, "batch_events": 256}}
LUMOS = {"epochs": 1, "network": {"width": 16, "n_heads": 2, "encoder_blocks": 1, "days": 42, "horizon": 14}}


def lurm(*words: str | Path, root: Path | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"LURM_ARTIFACTS_DIR": str(root)} if root else {})}
    command = [sys.executable, "-m", "lurm", *map(str, words)]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)


def test_export_writes_what_a_data_scientist_joins(small: Built, tmp_path: Path) -> None:
    out = tmp_path / "embeddings.parquet"
    ran = lurm("export", out, "--json", root=small.root)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    table = pq.read_table(out, page_checksum_verification=True)
    assert (table.num_rows, told["n_users"], told["dim"]) == (len(small.release().history), table.num_rows, 32)
    assert table.column_names == ["user_id", "embedding", "space_id", "as_of", "n_events"]
    embedding = table.schema.field("embedding").type
    assert (str(table.schema.field("user_id").type), embedding.list_size, str(embedding.value_type)) == (
        "string",
        32,
        "float",
    )
    assert set(table["space_id"].to_pylist()) == {small.release().space_id}
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), small.release().embeddings.vectors_ue)
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings.parquet"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["build", "no/such/folder"], 2, "no/such/folder"),
        (["export", "embeddings.csv"], 2, "export writes .parquet, .arrow or .npy"),
        (["export", "nowhere/embeddings.parquet"], 2, "a folder that can be written to"),
        (["export", "e.parquet", "--release", "../../etc"], 4, "is not a release id"),
        (["release", "activate", "20200101T000000-00000000"], 4, "there is no release"),
        (["release", "rollback"], 4, "no earlier release"),
        (["erase", ""], 2, "id 1 of 1 has 0 bytes, expected 1 to 512"),
        (["erase", "u", "x" * 513], 2, "nobody was erased"),
        (["evaluate", "no/such/folder"], 2, "no/such/folder"),
        (["evaluate", ".", "--model", "behavegpt", "--ablate", "--axis", "width"], 2, "leave out --ablate, --axis"),
        (["evaluate", ".", "--model", "behavegpt", "--markdown", "--report", "a.html"], 2, "out --markdown, --report"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(
    small: Built,
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LURM_ARTIFACTS_DIR", str(small.root))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ending:
        front_door.main([*words, "--json"])
    told = capfd.readouterr()
    assert ending.value.code == code
    assert message in told.err
    assert "Traceback" not in told.err
    assert json.loads(told.out)["error"]["exit_code"] == code


def test_a_build_tells_people_on_stderr_and_programs_on_stdout(small: Built) -> None:
    ran = lurm("build", small.dataset, "--dim", "32", "--json", root=small.root.parent / "front-door")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["metrics"]["n_users"] == len(small.release().history)
    assert "sort by user and time" in ran.stderr


def test_a_build_in_place_of_a_damaged_release_says_what_it_made(tiny: Path, root: Path) -> None:
    damaged = current(root)
    os.truncate(root / "releases" / str(damaged) / "manifest.json", 100)
    ran = lurm("build", tiny, "--json", root=root)
    assert ran.returncode == 0, ran.stderr
    assert damaged != json.loads(ran.stdout)["release_id"] == current(root)


@pytest.mark.parametrize("command", ["embed", "lookalike"])
def test_who_only_asks_does_not_wait_for_the_code_that_trains(small: Built, command: str, tmp_path: Path) -> None:
    seeds = small.release().history.users.take(np.arange(120))
    (tmp_path / "seeds.txt").write_text("\n".join(seeds))
    audience = [str(tmp_path / name) for name in ("seeds.txt", "audience.parquet")]
    words = {"embed": ["embed", seeds[0]], "lookalike": ["lookalike", *audience, "--percent", "10"]}[command]
    code = (
        f"import sys\nfrom lurm.__main__ import main\ntry:\n    main({[*words, '--json']})\n"
        "except SystemExit as ending:\n    assert not ending.code\n"
        "assert 'lurm.release' in sys.modules\nassert {'torch', 'sklearn', 'pandas'} & set(sys.modules) == set()"
    )
    environment = {**os.environ, "LURM_ARTIFACTS_DIR": str(small.root)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def children_of(pid: int) -> dict[int, int]:
    """Process -> a descriptor that can be read once it has ended, of all that descend from a process."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            parents[int(fields["Pid"])] = int(fields["PPid"])
    found, new = set(), {pid}
    while new:
        found |= new
        new = {child for child, parent in parents.items() if parent in new} - found
    return {child: os.pidfd_open(child) for child in found - {pid}}


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_an_evaluation_that_is_terminated_leaves_no_process_behind(small: Built, tmp_path: Path) -> None:
    root = shutil.copytree(small.root, tmp_path / "artifacts")
    environment = {**os.environ, "LURM_ARTIFACTS_DIR": str(root), "LURM_THREADS": "2"}
    command = [sys.executable, "-m", "lurm", "evaluate", str(small.dataset), "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ran:
        assert ran.stderr is not None
        told = []
        for line in ran.stderr:
            told.append(line)
            if "probe: " in line:
                break
        children = children_of(ran.pid)
        assert len(children) >= 2, "probes run in processes of their own: " + "".join(told[-5:])
        ran.send_signal(signal.SIGTERM)
        rest = ran.stderr.read()
        assert ran.wait(60) == 143
        assert "stopped; run it again to resume" in rest
        assert "Traceback" not in rest
        for ended in children.values():
            assert select.select([ended], [], [], 60)[0], "a process goes on"
            os.close(ended)


@pytest.mark.parametrize(
    ("called", "path", "told"),
    [
        ("shop/.venv/bin/lurm", "/usr/bin", ".venv/bin/lurm"),
        ("shop/my venv/lurm", "/usr/bin", "'my venv/lurm'"),
        ("shop/lurm", "/usr/bin", "./lurm"),
        ("bin/lurm", "{}/bin", "lurm"),
        ("bin/lurm", "{}/other:{}/bin", "../bin/lurm"),
    ],
)
def test_the_demo_names_the_command_it_was_called_by(
    called: str, path: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in (tmp_path / called, tmp_path / "other/lurm"):
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch(0o755)
    (tmp_path / "shop").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "shop")
    monkeypatch.setenv("PATH", path.replace("{}", str(tmp_path)))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / called), "demo"])
    assert own_command() == told
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "lurm/__main__.py"), "demo"])
    assert own_command().endswith(" -m lurm") and (tmp_path / "shop" / own_command().split()[0]).exists()


def test_what_to_type_next_can_be_typed(tmp_path: Path) -> None:
    sizes = ("--users", "60", "--items", "40", "--interests", "3", "--events-per-user", "8")
    made = lurm("simulate", "my shop", *sizes, cwd=tmp_path)
    built = lurm("build", "my shop", "--artifacts-dir", "it's here", cwd=tmp_path)
    for ran, words in ((made, ["build", "my shop"]), (built, ["serve", "--artifacts-dir", "it's here"])):
        assert ran.returncode == 0, ran.stderr
        called = shlex.split(ran.stdout.splitlines()[-1])
        assert (called[0], called[2:4], called[4:]) == ("Next:", ["-m", "lurm"], words)
        assert (
            shutil.which(called[1], path=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
            or (tmp_path / called[1]).exists()
        )


def test_the_demo_shows_a_person_and_recovers_the_planted_truth(tmp_path: Path) -> None:
    ran = lurm("demo", "--json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    answers = json.loads(ran.stdout)
    assert answers["embedding_again"] == {**answers["embedding_again"], "source": "cache", "equal": True}
    assert answers["planted_truth"]["adjusted_rand"] >= 0.9
    assert answers["planted_truth"]["lift"] >= 5
    assert len(answers["neighbors"]) == 6
    assert all(interest["words"] for interest in answers["interests"][:3])
    assert f"Who is {answers['user_id']}?" in ran.stderr, "with --json the story goes to stderr"


def test_what_does_not_fit_on_the_disk_is_told_as_such_by_every_stage(tiny: Path, tmp_path: Path) -> None:
    models = {"behavegpt": BEHAVE, "lumos": LUMOS, "models": ["behavegpt", "lumos"]}
    whole = build(tiny, tmp_path, **models)
    stages = sorted(stage for stage in (tmp_path / "stages").glob("[a-z]*") if not stage.name.startswith("history"))
    for stage in stages:
        discard(stage)
        with files_of_at_most(512), pytest.raises(OSError) as refused:
            build(tiny, tmp_path, **models)
        assert refused.value.errno == errno.EFBIG, f"{stage.name}: {refused.value}"
        assert build(tiny, tmp_path, **models).release_id == whole.release_id


@contextlib.contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
