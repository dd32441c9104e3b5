"""The playground in a real headless browser, in front of a server that answers by a script. No vLLM is needed.

With a real vLLM behind it the page is opened in tests/test_serve_vllm.py.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import posttrain.budget
from posttrain.budget.server.app import PAGE_POLICY
from tests.browser import Page, browser, find_browser

BINARY = find_browser()
PAGE = Path(posttrain.budget.__file__).parent / "playground.html"
SIZES = {"wide": 1440, "narrow": 375}
pytestmark = pytest.mark.skipif(BINARY is None, reason="no Chromium here (POSTTRAIN_BROWSER names one)")


class Scripted(http.server.BaseHTTPRequestHandler):
    """Streams a chat completion as the budget server does: a token an event, with the figures so far in each."""

    asked: list[dict[str, Any]]
    pause: float
    fault: Callable[[dict[str, Any]], str | None]

    def do_GET(self) -> None:
        if self.path == "/playground":
            self._answer(200, "text/html; charset=utf-8", PAGE.read_bytes())
        else:
            self._answer(200, "application/json", b'{"data": [{"id": "first"}, {"id": "second"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).asked.append(body)
        if fault := type(self).fault(body):
            self._answer(400, "application/json", json.dumps({"error": {"message": fault}}).encode())
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        try:
            for event in self._events(body):
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
                time.sleep(type(self).pause)
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            pass  # the page has hung up

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        thinks = 12 if body["enable_thinking"] else 0
        budget = body.get("thinking_budget")
        own = thinks if budget in (None, -1) else min(thinks, budget)
        forced = 3 if own < thinks else 0
        pieces = [("reasoning", f"thought {at} <b>not bold</b> ") for at in range(own)]
        pieces += [("reasoning", "enough. ")] * forced + [("content", "\n\nIt is "), ("content", "forty-two.")]
        closed = "budget" if forced else "natural" if own else None
        for at, (kind, text) in enumerate(pieces, 1):
            details = {
                "reasoning_tokens": min(at, own),
                "thinking_forced_tokens": max(0, min(at - own, forced)),
                "thinking_closed_by": closed if kind == "content" else "unclosed",
                "thinking_budget": budget,
            }
            end = "stop" if at == len(pieces) else None
            yield {
                "choices": [{"index": 0, "delta": {kind: text}, "finish_reason": end}],
                "usage": {"completion_tokens": at, "completion_tokens_details": details},
            }

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-security-policy", PAGE_POLICY.decode())
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[Scripted]]]:
    script = type("Script", (Scripted,), {"asked": [], "pause": 0.0, "fault": staticmethod(lambda body: None)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), script) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", script
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert BINARY is not None
    with browser(BINARY, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), "Space": (32, " "), "ArrowDown": (40, "")}


def press(page: Page, key: str, *, ctrl: bool = False, shift: bool = False) -> None:
    code, text = KEYS[key]
    name = " " if key == "Space" else key
    event = {"key": name, "code": key, "windowsVirtualKeyCode": code, "modifiers": 2 * ctrl + 8 * shift}
    typed = {} if ctrl or not text else {"text": text}
    page.call("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **event, **typed)
    page.call("Input.dispatchKeyEvent", type="keyUp", **event)


def until(page: Page, expression: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.02)


def opened(page: Page, url: str, width: int = SIZES["wide"]) -> None:
    page.events.clear()
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=850, deviceScaleFactor=1, mobile=width < 600)
    page.call("Page.navigate", url=f"{url}/playground")
    until(page, f"location.href.startsWith('{url}') && document.readyState === 'complete'")
    until(page, "document.querySelector('#model').value !== ''")


def reach(page: Page, selector: str, *, presses: int = 60) -> None:
    """Walk there with the tabulator."""
    for _ in range(presses):
        if page.evaluate(f"document.activeElement.matches({json.dumps(selector)})"):
            return
        press(page, "Tab")
    raise AssertionError(f"{selector} cannot be reached from the keyboard")


def lanes(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.evaluate(
        """[...document.querySelectorAll('.lane')].map(lane => ({
            title: lane.getAttribute('aria-label'),
            thinking: lane.querySelector('.thinking dd').textContent,
            answer: lane.querySelector('.answer dd').textContent,
            seconds: lane.querySelector('.seconds dd').textContent,
            state: lane.querySelector('.state').textContent,
            reply: lane.querySelector('.reply').textContent,
            thoughts: lane.querySelector('.thoughts .text').textContent,
            folded: !lane.querySelector('.thoughts').open,
            hidden: lane.querySelector('.thoughts').hidden,
        }))"""
    )
    return found


def complaints(page: Page, url: str) -> list[str]:
    """What the console said, and requests to anyone but this server."""
    return [each for each in page.complaints() if not each.startswith(f"request: {url}/")]


@pytest.mark.parametrize("size", SIZES)
def test_a_question_is_asked_and_read_with_the_keyboard_alone(
    page: Page, server: tuple[str, type[Scripted]], size: str, tmp_path: Path
) -> None:
    url, script = server
    opened(page, url, SIZES[size])
    assert page.evaluate("document.activeElement.id") == "question"  # one may type at once
    page.call("Input.insertText", text="What is six times seven?")
    reach(page, ".lane:nth-child(2) .budget")
    page.evaluate("document.activeElement.select()")
    page.call("Input.insertText", text="5")
    press(page, "Enter", ctrl=True)
    until(page, "document.querySelector('#said').textContent.startsWith('Done.')")
    without, small, large, free = lanes(page)
    assert (without["thinking"], without["answer"], without["hidden"]) == ("0", "2", True)
    assert (small["title"], small["thinking"], small["answer"]) == ("budget 5", "5", "2")
    assert small["state"] == "The budget of 5 tokens closed the thinking."
    assert (large["thinking"], free["thinking"], free["state"]) == ("12", "12", "The model ended its thinking itself.")
    assert all(lane["reply"] == "It is forty-two." and lane["folded"] for lane in (without, small, large, free))
    assert all(re.fullmatch(r"\d+\.\d", lane["seconds"]) for lane in (without, small, large, free))
    assert small["thoughts"].startswith("thought 0 <b>not bold</b> ")  # text, never markup
    asked = {(body["enable_thinking"], body.get("thinking_budget")) for body in script.asked}
    assert asked == {(False, None), (True, 5), (True, 256), (True, -1)}
    reach(page, ".lane:nth-child(2) summary")
    press(page, "Enter")
    until(page, "document.querySelectorAll('.thoughts')[1].open")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
    columns = page.evaluate("new Set([...document.querySelectorAll('.lane')].map(lane => lane.offsetLeft)).size")
    assert columns == (4 if size == "wide" else 1)
    page.screenshot(tmp_path / f"{size}.png")
    assert (tmp_path / f"{size}.png").stat().st_size > 20_000
    assert complaints(page, url) == []


def test_budgets_are_added_changed_and_removed_with_the_keyboard(
    page: Page, server: tuple[str, type[Scripted]]
) -> None:
    url, script = server
    opened(page, url)
    page.call("Input.insertText", text="?")
    reach(page, "#add")
    press(page, "Enter")
    assert page.evaluate("document.activeElement.matches('.lane:nth-child(5) .budget')")
    page.call("Input.insertText", text="7")
    for _ in range(3):
        press(page, "Tab", shift=True)
    reach(page, ".lane:nth-child(4) .remove")
    press(page, "Space")
    assert [lane["title"] for lane in lanes(page)] == ["without thinking", "budget 64", "budget 256", "budget 7"]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove: budget 7"
    press(page, "Enter", ctrl=True)
    until(page, "document.querySelector('#said').textContent.startsWith('Done.')")
    assert 7 in {body.get("thinking_budget") for body in script.asked}


def test_escape_stops_and_the_next_question_is_answered(page: Page, server: tuple[str, type[Scripted]]) -> None:
    url, script = server
    script.pause = 0.3
    opened(page, url)
    page.call("Input.insertText", text="?")
    press(page, "Enter", ctrl=True)
    until(page, "document.querySelectorAll('.running').length === 4")
    until(page, "document.querySelectorAll('.lane')[1].querySelector('.thinking dd').textContent > 1")
    press(page, "Escape")
    until(page, "document.querySelectorAll('.running').length === 0")
    assert "Stopped." in {lane["state"] for lane in lanes(page)}
    script.pause = 0.0
    press(page, "Enter", ctrl=True)
    until(page, "[...document.querySelectorAll('.reply')].every(reply => reply.textContent === 'It is forty-two.')")
    assert complaints(page, url) == []


def test_what_the_server_refuses_stands_in_its_lane_alone(page: Page, server: tuple[str, type[Scripted]]) -> None:
    url, script = server
    script.fault = staticmethod(lambda body: "too little" if body.get("thinking_budget") == 64 else None)
    opened(page, url)
    page.call("Input.insertText", text="?")
    press(page, "Enter", ctrl=True)
    until(page, "document.querySelector('#said').textContent.startsWith('Done.')")
    found = lanes(page)
    assert (found[1]["state"], found[1]["reply"]) == ("too little", "No answer.")
    assert [lane["reply"] for lane in found].count("It is forty-two.") == 3


def test_a_question_or_a_budget_that_is_missing_is_asked_for(page: Page, server: tuple[str, type[Scripted]]) -> None:
    url, script = server
    opened(page, url)
    press(page, "Enter", ctrl=True)
    assert script.asked == []
    page.call("Input.insertText", text="?")
    page.evaluate("document.querySelectorAll('.budget')[2].value = '-3'")
    press(page, "Enter", ctrl=True)
    assert script.asked == []
    assert page.evaluate("document.activeElement === document.querySelectorAll('.budget')[2]")


def test_everything_has_a_name_and_enough_contrast(page: Page, server: tuple[str, type[Scripted]]) -> None:
    opened(page, server[0])
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea, summary')].filter(each =>
            !(each.getAttribute('aria-label') || each.labels?.length || each.textContent.trim())).length"""
    )
    assert nameless == 0
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours = page.evaluate(
            """(() => { const style = getComputedStyle(document.documentElement), of = name => {
                const probe = document.createElement('i'); probe.style.color = style.getPropertyValue(name);
                document.body.append(probe); const found = getComputedStyle(probe).color; probe.remove();
                return found.match(/\\d+/g).map(Number); };
              return Object.fromEntries(['--page', '--card', '--ink', '--soft', '--accent', '--on-accent', '--think',
                '--answer', '--forced', '--bad'].map(name => [name, of(name)])); })()"""
        )
        for ink in ("--ink", "--soft", "--bad", "--think", "--answer", "--forced"):
            assert contrast(colours[ink], colours["--card"]) >= 4.5, (scheme, ink)
        assert contrast(colours["--soft"], colours["--page"]) >= 4.5
        assert contrast(colours["--on-accent"], colours["--accent"]) >= 4.5
    page.call("Emulation.setEmulatedMedia", features=[])


def contrast(one: list[int], other: list[int]) -> float:
    """The contrast ratio of two colours (WCAG 2.2, from 1 to 21)."""

    def luminance(colour: list[int]) -> float:
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_the_page_names_no_other_place() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:)", text)
