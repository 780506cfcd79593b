"""What a long job says, where, and how often."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lurm.progress import Silent, TerminalReporter, _short, in_bytes, resident_now


class Clock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def reporter(clock: Clock, *, terminal: bool, interval_s: float = 5.0) -> tuple[TerminalReporter, io.StringIO]:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=120, highlight=False, soft_wrap=True)
    return TerminalReporter(console, interval_s=interval_s, clock=clock, memory=lambda: 1_204_000_000), written


def test_away_from_a_terminal_one_line_an_interval_and_one_at_the_end() -> None:
    clock = Clock()
    report, written = reporter(clock, terminal=False)
    with report.task("reading", 4_000, "rows") as task:
        for _ in range(8):
            clock.now_s += 2
            task.advance(500, "file 1")
    assert written.getvalue().splitlines() == [
        "  reading: 1.5k of 4k rows, 250/s, 10 s left, 1.2 GB, file 1",
        "  reading: 3k of 4k rows, 250/s, 4 s left, 1.2 GB, file 1",
        "  reading: 4k rows in 16.0 s, 250 rows/s, 1.2 GB, file 1",
    ]


def test_a_total_that_was_too_small_never_promises_negative_time() -> None:
    clock = Clock()
    report, written = reporter(clock, terminal=False)
    with report.task("reading", 10, "rows") as task:
        clock.now_s += 6
        task.advance(60)
    assert "0 s left" in written.getvalue()
    assert "-" not in written.getvalue()


def test_an_unknown_total_and_a_clock_that_stands_still_are_no_trouble() -> None:
    report, written = reporter(Clock(), terminal=False, interval_s=0.0)
    with report.task("reading", None, "rows") as task:
        task.advance(1)
    first, last = written.getvalue().splitlines()
    assert " of " not in first
    assert "left" not in first
    assert last == "  reading: 1 rows in 0.0 s, 1.2 GB"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_name_that_looks_like_markup_is_only_a_name(terminal: bool) -> None:
    clock = Clock()
    report, written = reporter(clock, terminal=terminal)
    with report.task("[/red] {x}", 2, "rows") as task:
        clock.now_s += 6
        task.advance(1, "[/bold] {y}")
        report.say("[/oops] {z}")
    for name in ("[/red] {x}", "[/bold] {y}", "[/oops] {z}"):
        assert name in written.getvalue()


def test_on_a_terminal_the_bar_goes_and_its_last_line_stays() -> None:
    clock = Clock()
    report, written = reporter(clock, terminal=True)
    with report.task("reading", 10, "rows") as task:
        task.advance(10)
        clock.now_s += 2
    assert written.getvalue().rstrip().endswith("reading: 10 rows in 2.0 s, 5 rows/s, 1.2 GB")
    assert written.getvalue().count("1.2 GB") > 1, "the bar says it too"
    assert "━" in written.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_an_error_inside_a_task_comes_out_and_claims_no_end(terminal: bool) -> None:
    report, written = reporter(Clock(), terminal=terminal)
    with pytest.raises(ZeroDivisionError), report.task("reading", 10, "rows") as task:
        task.advance(1)
        raise ZeroDivisionError
    assert " in 0.0 s" not in written.getvalue()


def test_results_and_progress_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    report = TerminalReporter()
    report.say("a line")
    with report.task("reading", 1, "rows") as task:
        task.advance(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a line" in captured.err


def test_a_library_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    report = Silent()
    report.say("a line")
    with report.task("reading", 1, "rows") as task:
        task.advance(1, "note")
    assert capsys.readouterr() == ("", "")


@given(st.floats(min_value=0.01, max_value=9.98e14))
def test_a_short_count_is_short_and_right(number: float) -> None:
    said = _short(number)
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(said[-1], 1.0)
    assert float(said.rstrip("kMGT")) * scale == pytest.approx(number, rel=0.0051)
    assert "e" not in said
    assert len(said) <= 7


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0"),
        (950, "950"),
        (999.5, "1k"),
        (12_345, "12.3k"),
        (999_700, "1M"),
        (4.1e6, "4.1M"),
        (3e12, "3T"),
    ],
)
def test_a_count_reads_as_a_person_says_it(number: float, said: str) -> None:
    assert _short(number) == said


@pytest.mark.parametrize(
    ("n_bytes", "said"), [(0, "0 B"), (950, "950 B"), (12_345, "12.3 kB"), (1.2e9, "1.2 GB"), (999.7e6, "1 GB")]
)
def test_bytes_read_as_a_person_says_them(n_bytes: float, said: str) -> None:
    assert in_bytes(n_bytes) == said


def test_memory_is_that_of_this_process() -> None:
    before = resident_now()
    held = bytearray(b"x") * 2**27
    grown = resident_now() - before
    assert 2**27 * 0.9 < grown < 2**27 * 1.5
    assert len(held) == 2**27
