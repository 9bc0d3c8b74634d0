"""A page in a real browser, driven by its own protocol: width, colour scheme, keyboard, mouse. Needs chromium."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from normscope import diagnose
from normscope.findings.diagnosis import content
from normscope.report.html import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
websocket = pytest.importorskip("websocket")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


class Page:
    """One tab: commands of the DevTools protocol, and what scripts in it return."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(address, timeout=30, suppress_origin=True)
        self.number, self.faults = itertools.count(1), list[str]()

    def send(self, method: str, **given: Any) -> Any:
        mine = next(self.number)
        self.socket.send(json.dumps({"id": mine, "method": method, "params": given}))
        while True:
            told = json.loads(self.socket.recv())
            if told.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.faults.append(json.dumps(told["params"])[:300])
            if told.get("id") == mine:
                return told["result"]

    def ask(self, script: str) -> Any:
        return self.send("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str) -> Any:
        end = time.monotonic() + 20
        while not (found := self.ask(script)) and time.monotonic() < end:
            time.sleep(0.05)
        assert found, script
        return found

    def press(self, key: str, text: str = "") -> None:
        code = {"Tab": 9, "Enter": 13, " ": 32}[key]
        about = {"key": key, "code": {" ": "Space"}.get(key, key), "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("browser")
    torch.manual_seed(0)
    x, y = torch.randn(32, 16), torch.arange(32) % 4
    nets = {
        name: nn.Sequential(*(m for _ in range(8) for m in (nn.Linear(16, 16), norm(), nn.ReLU())), nn.Linear(16, 4))
        for name, norm in (("plain", nn.Identity), ("normed", lambda: nn.BatchNorm1d(16)))
    }
    found = [diagnose(net, x, y, "cross_entropy", label=name, trial=False) for name, net in nets.items()]
    (folder / "page.html").write_text(render(content(found)))
    browser = subprocess.Popen(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
         f"--user-data-dir={folder / 'profile'}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        told = folder / "profile" / "DevToolsActivePort"
        end = time.monotonic() + 30
        while not (told.exists() and told.read_text().count("\n")) and time.monotonic() < end:
            time.sleep(0.1)
        port = told.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            tab = next(t for t in json.load(answer) if t["type"] == "page")
        page = Page(tab["webSocketDebuggerUrl"])
        page.send("Runtime.enable")
        page.send("Log.enable")
        page.send("Page.navigate", url=(folder / "page.html").as_uri())
        page.wait("document.querySelectorAll('.chart.screen svg').length > 3")
        yield page
    finally:
        browser.kill()
        browser.wait()


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_out_at_the_side_and_the_text_can_be_read(page: Page, width: int, scheme: str) -> None:
    page.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.wait("document.querySelectorAll('.chart.screen svg').length > 3")
    assert page.wait("document.documentElement.scrollWidth") <= width
    colours = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    ink, paper = (sum(map(int, c.split("(")[1].rstrip(")").split(",")[:3])) for c in page.ask(colours))
    assert (paper < 200 and ink > 500) if scheme == "dark" else (paper > 700 and ink < 200)


def test_a_legend_is_pressed_and_numbers_are_opened_from_the_keyboard(page: Page) -> None:
    page.send("Emulation.setDeviceMetricsOverride", width=1400, height=900, deviceScaleFactor=1, mobile=False)
    page.ask("document.body.focus(), scrollTo(0, 0)")
    seen = set()
    for _ in range(60):
        page.press("Tab")
        kind = page.ask("document.activeElement.closest('.legend') ? 'legend' : document.activeElement.tagName")
        if kind == "legend" and "legend" not in seen:
            page.press(" ", text=" ")
            assert page.ask("document.activeElement.getAttribute('aria-pressed')") == "true"
            page.press(" ", text=" ")
        if kind == "SUMMARY" and "SUMMARY" not in seen:
            page.press("Enter", text="\r")
            assert page.ask("document.activeElement.parentElement.open") is True
            page.press("Enter", text="\r")
        seen.add(kind)
    assert {"legend", "SUMMARY"} <= seen


def test_a_point_under_the_mouse_says_its_numbers(page: Page) -> None:
    page.send("Emulation.setDeviceMetricsOverride", width=1400, height=900, deviceScaleFactor=1, mobile=False)
    page.wait("document.querySelectorAll('.chart.screen svg').length > 3")
    page.ask("document.querySelector('.chart.screen svg').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = page.ask(
        "(() => { const b = document.querySelector('.chart.screen svg').getBoundingClientRect();"
        " return [b.x, b.y, b.width, b.height] })()"
    )
    for share in (0.5, 0.4, 0.6, 0.3, 0.7):
        for down in range(1, 20):
            at = {"x": box[0] + share * box[2], "y": box[1] + down / 20 * box[3]}
            page.send("Input.dispatchMouseEvent", type="mouseMoved", **at)
            if not page.ask("document.querySelector('#tip').hidden"):
                assert "layer" in page.ask("document.querySelector('#tip').textContent").lower()
                return
    pytest.fail("no tip was shown")


def test_the_page_raised_nothing(page: Page) -> None:
    assert page.faults == []
