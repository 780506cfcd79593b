"""The report in a real Chromium: it runs nothing, loads nothing, fits a phone, and can be read in both themes."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_report import HOSTILE, hostile, plausible
from training.evaluate.report import write_report

pytestmark = pytest.mark.slow

MEGABYTES = 2
LEAST_CONTRAST = {"text": 4.5, "graphics": 3.0}  # WCAG 2.2, AA
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

# A frame as wide as a screen around the page, and what can be measured of it from outside.
FRAME = """<!doctype html><body>
<iframe id="frame" style="border: 0" width="{width}" height="900" srcdoc="{page}"></iframe>
<pre id="measured"></pre><script>
frame.onload = () => {{
  const page = frame.contentDocument, view = frame.contentWindow
  const all = (selector) => [...page.querySelectorAll(selector)]
  const ground = (e) => {{
    for (; e; e = e.parentElement) {{
      const color = view.getComputedStyle(e).backgroundColor
      if (color != "rgba(0, 0, 0, 0)") return color
    }}
    return view.getComputedStyle(page.body).backgroundColor
  }}
  const pair = (e, key) => [view.getComputedStyle(e)[key], ground(e)]
  measured.textContent = JSON.stringify({{
    title: page.title,
    scripts: page.scripts.length,
    loaded: view.performance.getEntriesByType("resource").length,
    width: page.documentElement.scrollWidth,
    plots: all("svg").map((e) => [e.getBoundingClientRect().width, e.getBoundingClientRect().height]),
    text: all("p, td, th, dd, dt, summary, a, figcaption, .quiet, .fine, li").map((e) => pair(e, "color"))
      .concat(all("svg text").map((e) => pair(e, "fill"))),
    graphics: all(".mark").map((e) => pair(e, "color")).concat(all("svg use").map((e) => pair(e, "fill"))),
  }})
}}
</script>"""


@pytest.fixture(scope="session")
def chromium() -> str:
    """Its command; 300 MB, so that nothing installs it for this."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed to open the report in: sudo apt-get install chromium")
    return found


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(plausible(), path)
    return path.read_text()


@pytest.fixture(scope="session")
def attack(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("attack") / "report.html"
    write_report(hostile(), path)
    return path.read_text()


def measured(chromium: str, page: str, folder: Path, *, width: int = 1000, dark: bool = False) -> dict[str, Any]:
    """What a frame of that width shows of the page."""
    framed = folder / "framed.html"
    framed.write_text(FRAME.format(width=width, page=html.escape(page)))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    outcome = subprocess.run(
        [chromium, *options, theme, "--virtual-time-budget=10000", "--dump-dom", framed.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = re.search(r'<pre id="measured">(.*?)</pre>', outcome.stdout, re.DOTALL)
    assert found and found[1], outcome.stderr
    facts: dict[str, Any] = json.loads(html.unescape(found[1]))
    return facts


def luminance(color: str) -> float:
    """Relative, as WCAG defines it, of "rgb(r, g, b)"."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(front: str, back: str) -> float:
    low, high = sorted((luminance(front), luminance(back)))
    return (high + 0.05) / (low + 0.05)


def test_names_from_outside_run_nothing(chromium: str, attack: str, tmp_path: Path) -> None:
    # without the policy only the escaping is left to stop them
    facts = measured(chromium, POLICY.sub("", attack), tmp_path)
    shown = HOSTILE.replace("\x0b", "")
    assert facts["title"].replace("\x0b", "") == f"{shown}: what the embeddings know"
    assert (facts["scripts"], facts["loaded"]) == (0, 0)


def test_the_policy_stops_what_escaping_would_miss(chromium: str, page: str, tmp_path: Path) -> None:
    broken = page.replace("</h1>", f"{HOSTILE}</h1>", 1)
    assert measured(chromium, broken, tmp_path)["title"] == "blogs: what the embeddings know"
    assert measured(chromium, POLICY.sub("", broken), tmp_path)["title"] == "taken", "the attack works where it may"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_both_themes_can_be_read(chromium: str, page: str, tmp_path: Path, dark: bool) -> None:
    facts = measured(chromium, page, tmp_path, dark=dark)
    (paper,) = {back for front, back in facts["text"] if contrast(front, back) > 14} & {
        "rgb(255, 255, 255)",
        "rgb(20, 23, 27)",
    }
    assert (luminance(paper) < 0.1) == dark
    for what, least in LEAST_CONTRAST.items():
        assert len(facts[what]) > 50
        faint = {(front, back) for front, back in map(tuple, facts[what]) if contrast(front, back) < least}
        assert faint == set()


@pytest.mark.parametrize("width", [390, 1000])
def test_nothing_sticks_out_of_the_page(chromium: str, page: str, tmp_path: Path, width: int) -> None:
    facts = measured(chromium, page, tmp_path, width=width)
    assert facts["width"] <= width
    assert len(facts["plots"]) > 20
    assert all(300 < across <= width and down > 100 for across, down in facts["plots"])
    assert facts["loaded"] == 0


def test_long_names_fit_a_phone(chromium: str, attack: str, tmp_path: Path) -> None:
    assert measured(chromium, attack, tmp_path, width=390)["width"] <= 390


def test_it_can_be_mailed(page: str) -> None:
    assert len(page.encode()) < MEGABYTES * 2**20
