"""The report in a real browser, on a wide window and on a phone's: nothing sticks out, nothing is missing, no errors.

Needs a Chromium on the path or in $POSTTRAIN_BROWSER; without one these tests are skipped, and say so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.model.artifacts import RunDir, write_json, write_text
from posttrain.report.build import build_report

from .browser import Page, browser, find_browser
from .written_run import write_run

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on the path: install one, or name it in $POSTTRAIN_BROWSER"
)
WIDTHS = (1400, 390)
UNBROKEN = "9" * 3000

OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"
# What lies in a box that scrolls by itself may be wider than the window.
STICKING_OUT = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('svg, .scroll')
    && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.tagName + '.' + e.className)
"""
PLOTS = """
[...document.querySelectorAll('figure')].map(f => {
    const svg = f.querySelector('svg'), box = svg.getBoundingClientRect(), lines = svg.querySelectorAll('path');
    return {width: box.width, height: box.height, left: box.left, right: box.right, lines: lines.length,
            drawn: [...lines].filter(l => l.getBoundingClientRect().width > 50).length,
            title: [...svg.querySelectorAll('text')].map(t => t.textContent).join(' ')};
})
"""
SECTIONS = """
[...document.querySelectorAll('nav a')].map(a => {
    const target = document.getElementById(a.getAttribute('href').slice(1));
    return [a.textContent, target !== null && target.tagName === 'H2' && target.getBoundingClientRect().height > 0];
})
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with a bit of everything, and with what pages break on."""
    run = write_run(tmp_path_factory.mktemp("report") / "run")
    stage = run.stage("student_rl")
    rows = [
        {"step": step, "loss": 0.1, "reward": 0.1 * step, "entropy": 2.0 - step, "completions/mean_length": 9.0 + step}
        for step in range(4)
    ]
    write_text(stage.metrics, "".join(json.dumps(row) + "\n" for row in rows))
    sample: dict[str, object] = {
        "mode": "thinking",
        "prompt": "<script>throw 1</script>" + UNBROKEN,
        "answer": UNBROKEN,
    }
    sample |= {"completion": UNBROKEN, "score": 0.0, "truncated": True, "thinking_tokens": 3000}
    write_text(stage.samples, json.dumps(sample) + "\n")
    write_json(run.path / "environment.json", {"machine": UNBROKEN})
    return build_report(run)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert BROWSER is not None
    with browser(BROWSER, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_is_whole(page: Page, report: Path, width: int) -> None:
    page.events.clear()
    page.open(report, width=width)
    page.evaluate(OPEN_ALL)
    assert page.evaluate("innerWidth") == width
    scroll, client = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert scroll <= client <= width
    assert page.evaluate(STICKING_OUT) == []
    sections = page.evaluate(SECTIONS)
    assert [name for name, there in sections if there] == [
        *(
            "Stages",
            "Thinking budget",
            "Distillation against RL",
            "Agreement with the teacher",
            "Training",
            "Data",
            "Samples",
            "Run",
        )
    ]
    assert page.evaluate("document.querySelectorAll('thead th').length") >= 5  # the table of four stages
    assert page.complaints() == []


@pytest.mark.parametrize("width", WIDTHS)
def test_plots_are_seen(page: Page, report: Path, width: int) -> None:
    page.open(report, width=width)
    plots = page.evaluate(PLOTS)
    titles = " ".join(plot["title"] for plot in plots)
    for wanted in ("thinking budget", "On-policy distillation", "reward", "entropy", "completion length", "difficulty"):
        assert wanted in titles
    for plot in plots:
        assert plot["width"] > 250 and plot["height"] > 130, plot
        assert plot["left"] >= 0 and plot["right"] <= width, plot
        assert plot["drawn"] >= 1, plot


def test_a_run_just_begun_is_a_page_too(page: Page, tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole")
    run = RunDir(tmp_path / "begun")
    write_text(run.recipe, whole.recipe.read_text())
    page.events.clear()
    page.open(build_report(run), width=390)
    assert "not finished" in page.evaluate("document.body.textContent")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate(STICKING_OUT) == [] and page.complaints() == []


def test_the_test_would_notice(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'>"
        "<div style='width:900px'>wide</div><img src='nowhere.png'><script>nothing.there()</script>"
    )
    page.events.clear()
    page.open(broken, width=390)
    assert page.evaluate(STICKING_OUT) == ["DIV."]
    told = " ".join(page.complaints())
    assert "Uncaught" in told and "nowhere.png" in told
