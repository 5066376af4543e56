# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The page about a jobset, of real runs and of hostile files, in a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import charts, definitions, job, report
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import Layout
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.tests.unit.batch_host import Host, wait_for
from ansible_collections.sagequeue.batch.tests.unit.browser import PROGRAM, Browser

SECRET = 'hunter2 "of" <the> käfer'
needs_browser = pytest.mark.skipif(not PROGRAM, reason="no Chromium is installed (Debian's package chromium)")

# What each offset does.
SCRIPT = r"""
printf '\033[31mred\033[0m \007 <script>alert(1)</script> & "quotes" \342\200\256 turned \377\376 %s\n' "$LICENCE"
case $JOB_OFFSET in
    1) exit 3 ;;
    2) [ -e tried ] || { : > tried; exit 1; } ;;
    3) kill -SEGV $$ ;;
    4) sleep 600 ;;
    5) head -c 3000000 /dev/zero | tr '\0' x; exit 9 ;;
    6) touch holding; while [ ! -e go ]; do sleep 0.02; done ;;
esac
"""


class Page(HTMLParser):
    """A page as its tables and texts; what is not closed in order is an error."""

    VOID = ("meta", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _value in attrs}) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] == "caption":
            self._caption += data
        elif self._open and self._open[-1] in ("td", "th"):
            self.tables[self._caption][-1][-1] += data


class Run(NamedTuple):
    """A jobset that has been worked off, and the page about it."""

    host: Host
    path: Path
    text: str


def written(host: Host, name: str = "t", to: str = "") -> Run:
    with Queue(Layout(str(host.root), name), definitions.load(str(host.root), name)) as queue:
        path = Path(report.write(queue, to))
    return Run(host, path, path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, program: Path) -> Iterator[Run]:
    """Real workers: with failures, retries, a time-out, a signal, a worker that is killed and one that is stopped."""
    with contextlib.closing(Host(tmp_path_factory.mktemp("run"), program)) as host:
        host.script(SCRIPT)
        host.define(
            stride=12, timeout=1, attempts=2, grace=1, secrets={"LICENCE": SECRET, "LOCALE": "s3cr3t"}, environment={"OPEN": "seen"}
        )
        queue = host.queue()
        for how in (signal.SIGKILL, signal.SIGTERM):
            queue.enqueue(queue.jobset.offset_jobs([6]))
            worker = host.worker("t-1")
            wait_for((host.work / "holding").exists)
            worker.send_signal(how)
            worker.wait()
            (host.work / "holding").unlink()
        (host.work / "go").touch()
        queue.enqueue(queue.jobset.offset_jobs())
        workers = [host.worker(f"t-{k}", "--until-idle") for k in (2, 10)]
        assert [worker.wait(60) for worker in workers] == [0, 0]
        # What waits for nobody, and what came without the queue.
        host.put("failed", "adopted", "REASON=exit_status\nEXIT_STATUS=3\nDETAIL=told by an older script\n")
        said = host.sagequeue("report", "t")
        assert said.returncode == 0, said.stderr
        path = host.root / "reports" / "t.html"
        assert said.stdout == f"The report is {path}\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        yield Run(host, path, path.read_text(encoding="utf-8"))


def test_it_says_what_happened(run: Run) -> None:
    found = Page(run.text)
    history = run.host.history()
    reasons = {row[0]: row[1:] for row in found.tables["Failed attempts by reason"][1:]}
    assert reasons == {
        "exit status 3": ["3", "2", "2"], "signal 11": ["2", "1", "1"], "timeout": ["2", "1", "1"], "exit status 9": ["2", "1", "1"],
        "exit status 1": ["1", "1", "0"], "orphan": ["1", "1", "0"],
    }  # fmt: skip
    workers = found.tables["Attempts of each worker"][1:]
    # One that history does not know of has no worker.
    assert [row[0] for row in workers] == ["t-1", "t-2", "t-10"]
    assert sum(int(row[1]) for row in workers) == len(history)
    assert sum(int(row[2]) for row in workers) == sum(1 for line in history if line["result"] == "done") == 8
    assert sum(int(row[4]) for row in workers) == sum(1 for line in history if line["reason"] == "worker_stopped") == 1
    ended = [rows for caption, rows in found.tables.items() if caption.startswith("Attempts that ended")][0][1:]
    assert sum(int(row[1]) + int(row[2]) + int(row[3]) for row in ended) == len(history)
    longest = found.tables["Run time of attempts: the most"][1]
    assert longest[0] == "t_off4" and longest[2] == "failed"
    assert {row[0]: row[1] for row in found.tables["Definition, without secrets"]}["secrets"] == "LICENCE, LOCALE (values not shown)"
    assert "8 of 13 jobs are done." in found.text and "told by an older script" in found.text


def test_logs_are_shown_harmless_and_without_secrets(run: Run) -> None:
    found = Page(run.text)
    assert 'red \\x07 <script>alert(1)</script> & "quotes" <U+202E> turned \ufffd\ufffd [secret]' in found.text
    assert "characters left out" in found.text and "failed: exit_status: exit status 9, attempt 2 of 2" in found.text
    for form in (SECRET, "hunter2", "s3cr3t"):
        assert form not in found.text and form not in run.text
    assert not [tag for tag, _more in found.tags if tag in ("script", "img", "iframe", "object", "embed", "form", "base")]
    # Nothing that could be fetched.
    assert not [
        value
        for _tag, more in found.tags
        for name, value in more.items()
        if name in ("src", "href") and value[:1] != "#" and value != "data:,"
    ]
    assert len(run.text) < 200_000


def test_a_secret_that_a_log_is_cut_in_stays_one(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_LOG", 100)
    host.define(secrets={"A": "abcdefghijklmnop"})
    for before in range(90, 140):
        (host.root / "var/t/log/x.log").write_bytes(b"-" * 300 + b"abcdefghijklmnop" + b"-" * before)
        with host.queue() as queue:
            shown = report.Report(queue).log("x").lines[0]
        assert not re.search("[a-p]{2}", shown.replace("[secret]", "").replace("characters left out", "")), shown
    (host.root / "var/t/log/x.log").unlink()
    os.symlink("/etc/passwd", host.root / "var/t/log/x.log")
    with host.queue() as queue:
        shown_log = report.Report(queue).log("x")
    assert shown_log.lines == [] and "not a regular file" in shown_log.note


# Values that a history could hold, where a line of ours has a text.
WILD: list[Any] = [None, True, -1, 1e308, float("nan"), [], {"a": 1}, "\ud800", "</table><script>", "x" * 5000, "-5", "1e400", "a\nb\0c"]
WILD += ["9999-12-31T23:59:59.999Z", "0001-01-01T00:00:00.000Z", "2026-13-99T99:99:99.000Z", "\u202egnitirw"]
USUAL = {
    "job": "t_off1",
    "result": "failed",
    "attempts": "1",
    "started_at": "2026-11-20T10:00:00.000Z",
    "ended_at": "2026-11-20T10:00:02.500Z",
    "duration_s": "2.500",
    "peak_memory_kib": "1234",
    "reason": "exit_status",
    "exit_status": "3",
    "worker": "t-1",
}


def lay(host: Host, lines: list[Any]) -> None:
    with open(host.root / "var/t/run/history.jsonl", "w", encoding="utf-8") as file:
        file.writelines(
            (line if isinstance(line, str) else json.dumps({"claim": f"{place:032x}", **line})) + "\n" for place, line in enumerate(lines)
        )


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_attempts_make_a_whole_page(host: Host, count: int) -> None:
    host.define()
    lay(host, [USUAL] * count)
    found = Page(written(host).text)
    assert ("No attempt has been made yet." in found.text) == (count == 0)
    assert len(found.tables.get("Attempts of each worker", [0, 0])) == 2


def test_what_cannot_be_read_is_left_out_and_said(host: Host) -> None:
    host.define(secrets={"A": "s3cr3t"})
    lines: list[Any] = [{**USUAL, key: value} for key in USUAL for value in WILD]
    lay(host, [*lines, "[]", "no JSON", '{"job": 1}', "[" * 100_000, USUAL])
    found = Page(written(host).text)
    wild_jobs = sum(1 for value in WILD if not (isinstance(value, str) and job.is_name(value)))
    assert f"{wild_jobs + 4} lines of the history could not be read" in found.text
    assert sum(int(row[1]) for row in found.tables["Attempts of each worker"][1:]) == len(lines) - wild_jobs + 1


def test_it_says_how_the_jobset_stands_now(host: Host) -> None:
    """What runs, an earlier gate and the one of now, and failures of which the history knows nothing."""
    host.define(stride=9)
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs())
    host.dead_claimer()
    lay(host, [{**USUAL, "job": "t_off1"}, {**USUAL, "job": "t_off2"}])
    found = Page(written(host).text)
    assert found.tables["Running jobs"][1][:2] == ["t_off0", "t-dead"] and found.tables["Running jobs"][1][3] != "yes"
    queue.close_gate("<anna>")
    queue.open_gate()
    (host.work / "t_stop.txt").write_text("STOP requested by berta at noon\n")
    host.put("failed", "odd", "nonsense\n")
    host.put("failed", "killed", "REASON=signal\nDETAIL=ended by SIGKILL\n")
    found = Page(written(host).text)
    assert "The gate is closed (STOP requested by berta at noon): no job is claimed." in found.text
    assert found.tables["Gates that were opened again"][1][1].startswith("STOP requested by <anna> at ")
    assert "malformed_job" in found.text and "ended by SIGKILL" in found.text
    (host.work / "t_stop.txt").write_text("SAT off=3 stride=9\n")
    assert "It is solved by t_off3: SAT off=3 stride=9. The witness is in " in Page(written(host).text).text


def test_many_attempts_are_drawn_together(host: Host) -> None:
    host.define(secrets={"A": "s3cr3t"})
    lines = []
    for place in range(20_000):
        minute = f"2026-11-{1 + place // 1440 % 28:02}T{place // 60 % 24:02}:{place % 60:02}"
        failed = (
            {"result": "pending", "reason": f"reason-{place % 50}", "detail": "s3cr3t"}
            if place % 100 == 0
            else {"result": "done", "reason": "ok"}
        )
        lines.append(
            {
                **USUAL,
                "job": f"j{place}",
                "started_at": f"{minute}:00.000Z",
                "ended_at": f"{minute}:59.000Z",
                "worker": f"t-{place % 60}",
                **failed,
            }
        )
    lay(host, lines)
    made = written(host)
    found = Page(made.text)
    assert len(found.tables["Attempts of each worker"]) == 1 + charts.WORKERS
    assert "20 workers with fewer attempts are left out" in found.text
    assert len(found.tables["Failed attempts by reason"]) <= 2 + report.GROUPS and "s3cr3t" not in made.text
    assert sum(1 for tag, _more in found.tags if tag == "rect") < charts.WORKERS * charts.BARS * 2 + 500
    assert len(made.text) < 2_000_000


def test_of_a_long_history_the_end_is_read(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_HISTORY", 1 << 20)
    host.define()
    lay(host, [{**USUAL, "job": f"j{place}"} for place in range(10_000)])
    found = Page(written(host).text)
    assert "what is older than its last 1 MiB is left out" in found.text and "0 lines" not in found.text
    assert 3000 < int(found.tables["Attempts of each worker"][1][1]) < 6000 and "could not be read" not in found.text


def test_it_is_written_where_it_is_wanted(host: Host) -> None:
    host.define()
    assert written(host, to=str(host.base)).path == host.base / "t.html"
    assert written(host, to=str(host.base / "new" / "my.html")).path == host.base / "new" / "my.html"
    (host.base / "file").touch()
    refused = host.sagequeue("report", "t", "--to", str(host.base / "file" / "x.html"))
    assert refused.returncode == 1 and "can't write the report" in refused.stderr and "Traceback" not in refused.stderr
    unknown = host.sagequeue("report", "tt")
    assert unknown.returncode == 1 and "did you mean t?" in unknown.stderr


# ---- in a browser ------------------------------------------------------------------------------------------------------

# Every text that is seen, with its own colour and the one behind it.
CONTRAST = """(() => {
  const rgb = colour => colour.match(/[0-9.]+/g).map(Number);
  const light = colour => { const [r, g, b] = rgb(colour).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = element => { for (; element; element = element.parentElement) { const colour = getComputedStyle(element).backgroundColor;
                              if (rgb(colour).length === 3) return colour; } return 'rgb(255, 255, 255)'; };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    if (!element.checkVisibility() || ![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    if (element.tagName === 'title') continue;
    const style = getComputedStyle(element), svg = element.tagName === 'text';
    const [a, b] = [light(svg ? style.fill : style.color), light(behind(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.tagName, element.textContent.slice(0, 40)]);
  }
  return found; })()"""
# What axe and others look for first, as far as a page without forms and pictures can have it.
FAULTS = """(() => {
  const all = (what, wrong, word) => [...document.querySelectorAll(what)].filter(wrong).map(e => word + ': ' + e.outerHTML.slice(0, 80));
  const id = name => document.querySelectorAll('[id="' + name + '"]').length;
  const scrolls = e => e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX === 'auto';
  const titles = [...document.querySelectorAll('h1, h2, h3')];
  const one = what => document.querySelectorAll(what).length === 1;
  return [
    ...all('[id]', e => id(e.id) !== 1, 'id twice'),
    ...all('[aria-labelledby]', e => id(e.getAttribute('aria-labelledby')) !== 1, 'named by nothing'),
    ...all('a[href^="#"]', e => id(e.getAttribute('href').slice(1)) !== 1, 'leads nowhere'),
    ...all('[role=img], [role=region], nav', e => !e.getAttribute('aria-label'), 'no name'),
    ...all('svg:not([role=img]):not([aria-hidden=true])', e => true, 'neither named nor hidden'),
    ...all('table', e => !e.caption || e.querySelector('th:not([scope])') || !e.querySelector('thead th[scope=col]'), 'table'),
    ...all('*', e => scrolls(e) && e.tabIndex < 0, 'scrolls and has no tab stop'),
    ...all('h1, h2, h3', e => e !== titles[0] && e.tagName[1] - titles[titles.indexOf(e) - 1].tagName[1] > 1, 'skips a level'),
    ...all('[tabindex]', e => e.tabIndex > 0, 'out of order'),
    ...all('details', e => !e.firstElementChild || e.firstElementChild.tagName !== 'SUMMARY', 'details'),
    ...(document.documentElement.lang === 'en' && document.title && one('main') && one('h1') ? [] : ['lang, title, main, h1']),
  ]; })()"""


@pytest.fixture
def look(tmp_path: Path) -> Iterator[Any]:
    """Open pages in a browser; where SAGEQUEUE_TEST_PICTURES names a folder, keep pictures of them there."""
    browsers: list[Browser] = []

    def opened(path: Path, name: str, **how: Any) -> Browser:
        browser = Browser(tmp_path / f"profile{len(browsers)}", **how)
        browsers.append(browser)
        browser.open(path.as_uri())
        if os.environ.get("SAGEQUEUE_TEST_PICTURES"):
            browser.picture(Path(os.environ["SAGEQUEUE_TEST_PICTURES"]) / f"{name}.png")
        return browser

    yield opened
    for browser in browsers:
        browser.close()


@needs_browser
@pytest.mark.parametrize(("name", "width", "dark"), [("light", 1100, False), ("dark", 1100, True), ("narrow", 340, False)])
def test_a_browser_shows_it(run: Run, look: Any, name: str, width: int, dark: bool) -> None:
    browser = look(run.path, name, width=width, dark=dark)
    browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
    texts = browser.ask(CONTRAST)
    assert len(texts) > 100
    assert [text for text in texts if text[0] < 4.5] == []
    assert browser.ask(FAULTS) == []
    # Tables scroll by themselves, the page doesn't.
    assert browser.ask("document.documentElement.scrollWidth <= innerWidth")
    bars = browser.ask("[...document.querySelectorAll('.lane rect')].map(e => [e.getBoundingClientRect().width, getComputedStyle(e).fill])")
    assert len(bars) == len(run.host.history()) and all(width > 0 and fill not in ("none", "rgb(0, 0, 0)") for width, fill in bars)
    assert browser.complaints == []
    assert browser.requests == [run.path.as_uri()]


@needs_browser
def test_it_is_read_by_keyboard(run: Run, look: Any) -> None:
    browser = look(run.path, "keyboard")
    shown = "e.getBoundingClientRect().width > 0 && getComputedStyle(e).outlineStyle"
    focused = f"(e => [e.tagName, e.textContent.slice(0, 30), {shown}])(document.activeElement)"
    stops = []
    while len(stops) < 200:
        browser.press("Tab")
        stops.append(tuple(browser.ask(focused)))
        if stops[-1][0] == "BODY":
            break
    assert stops[0][:2] == ("A", "Skip to the content") and stops[1][:2] == ("A", "Summary")
    assert all(outline == "solid" for tag, _text, outline in stops if tag != "BODY"), stops
    # Every part that can be opened, and every table and log that is open, in the page's order.
    reached = "[...document.querySelectorAll('a[href], summary, [tabindex=\"0\"]')].filter(e => e.checkVisibility())"
    order = browser.ask(f"{reached}.map(e => e.textContent.slice(0, 30))")
    assert [text for tag, text, _outline in stops if tag != "BODY"] == order
    browser.press("Tab")
    browser.press("Enter")
    assert browser.ask("location.hash") == "#content"
    browser.press("Tab")
    assert browser.ask("document.activeElement.textContent") == "The jobset's definition"
    browser.press("Enter")
    assert browser.ask("document.activeElement.parentElement.open")


@needs_browser
def test_nothing_on_the_page_can_reach_a_network(run: Run, look: Any, tmp_path: Path) -> None:
    """Had something slipped through the escaping, the page's own policy would stop it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        callers: list[bytes] = []

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as caller, contextlib.suppress(TimeoutError):
                        # It also opens connections that it may want later.
                        caller.settimeout(0.5)
                        callers.append(caller.recv(10_000))
                        caller.sendall(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        base = f"http://127.0.0.1:{server.getsockname()[1]}"
        slipped = f'<script>document.title = "run"</script><img src="{base}/a"><iframe src="{base}/c"></iframe>'
        slipped += f'<link rel="stylesheet" href="{base}/b">'
        for name, text in (("kept", run.text), ("open", re.sub("<meta http-equiv[^>]*>", "", run.text))):
            path = tmp_path / f"{name}.html"
            path.write_text(text.replace("</main>", slipped + "</main>"), encoding="utf-8")
            browser = look(path, name)
            if name == "kept":
                assert callers == [] and browser.ask("document.title") == "t: report of a jobset" and len(browser.complaints) >= 4
            else:
                assert len(callers) >= 3 and browser.ask("document.title") == "run", "a test that could not fail"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@needs_browser
def test_a_browser_copes_with_hostile_and_with_many(host: Host, look: Any) -> None:
    host.define()
    lay(host, [{**USUAL, key: value} for key in USUAL for value in WILD])
    browser = look(written(host).path, "hostile", width=340)
    assert browser.complaints == [] and browser.ask(FAULTS) == []
    assert browser.ask("document.querySelectorAll('script, [onload]').length") == 0
