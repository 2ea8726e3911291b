"""The demo's page: its text without a browser, then what a reader sees and does, in headless Chromium."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aisec_fast.cli import _output
from aisec_fast.cli.report import demo_page, page, plots

from .report_sample import EVIL, sample

pytest.importorskip("plotly", reason="the extra report is not installed")
pytest.importorskip("jinja2", reason="the extra report is not installed")

RESULT = sample(EVIL)
RESULT["throughput"][-1]["backend"] = (
    "<b>&amp;</b>"  # a plot's labels may hold tags and entities, so plotly is told otherwise
)
KERNELS = {(row["family"], row["operation"]) for row in RESULT["throughput"]}
RESULT["throughput"][0]["gb_per_s"] = 1234.5  # as text it would sort before 2


@pytest.fixture(scope="module")
def text() -> str:
    return demo_page.build(RESULT)


# --- Without a browser ------------------------------------------------------------------------------------------------


def sections(text: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', text)


def test_every_section_is_there(text: str) -> None:
    assert sections(text) == ["training", "robustness", "digits", "seal", "throughput", "measured", "next"]


def test_what_the_result_lacks_is_left_out() -> None:
    assert sections(demo_page.build({})) == ["next"]


@pytest.mark.parametrize("missing", sorted(RESULT))
def test_each_key_is_optional(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")
    assert "<h1>" in demo_page.build({key: value for key, value in RESULT.items() if key != missing})


def test_a_seal_that_failed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")
    made = demo_page.build({"manifest": {"verified": False, "tampered_file": None, "files": 1, "algorithm": "sha256"}})
    assert "Sealed, found changed." in made
    assert "Does not verify" in made
    assert "Missed" in made
    assert "Verified" not in made


def test_no_text_breaks_out(text: str) -> None:
    assert EVIL not in text
    assert html.escape(EVIL).replace("&quot;", "&#34;") in text
    assert text.lower().count("<script") - text.count("<script>") == 1  # the data; the others are ours
    assert text.lower().count("</script") == 3
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data
    assert json.loads(data[1])["download"] == RESULT


def test_what_json_cannot_say_becomes_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")
    made = demo_page.build(
        {
            "epsilon": math.inf,
            "training": {"epoch": [1, 2], "plain": {"accuracy": [0.5, 0.6], "loss": [math.nan, 1.0]}},
        }
    )
    data = re.search(r'id="data">(.*?)</script>', made, re.DOTALL)
    assert data
    assert json.loads(data[1])["figures"]["loss"]["data"][0]["y"] == [None, 1.0]
    assert "∞" in made


def test_the_policy_lets_only_our_scripts_run(text: str) -> None:
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]+)"', text)[0])
    directives = {one.split()[0]: one.split()[1:] for one in policy.split(";")}
    assert directives["default-src"] == ["'none'"]
    assert [one[:8] for one in directives["script-src"]] == ["'sha256-", "'sha256-"]
    assert directives["img-src"] == ["data:"]


def test_a_script_that_would_end_its_element_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "'</SCRIPT>'")
    with pytest.raises(ValueError, match="</script"):
        demo_page.build({})


@pytest.mark.parametrize("module", ["plotly", "jinja2"])
def test_a_missing_package_is_named_with_its_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as raised:
        demo_page.build(RESULT)
    message = _output.missing_package(raised.value)
    assert message is not None
    assert "pip install '.[report]'" in message


def test_style_and_script_are_in_the_package() -> None:
    for name in ("page.html", "page.js", "style.css"):
        assert resources.files("aisec_fast.cli.report").joinpath(name).is_file()


def test_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.html"
    _output.write_text("ε", str(file))
    assert file.read_bytes() == "ε".encode()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        _output.write_text("new", str(file))
    assert file.read_text(encoding="utf-8") == "ε"
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]


def test_numbers_of_lines_with_other_places_stand_side_by_side() -> None:
    one, two = plots.line("a", [1, 2], [0.1, 0.2], "plain"), plots.line("b", [2, 3], [0.3, None], "private")
    figure = page.Figure("n", "t", "s", [one, two], {"xaxis": {"title": {"text": "eps"}}})
    assert figure.numbers == (["eps", "a", "b"], [[1, 0.1, None], [2, 0.2, 0.3], [3, None, None]])


# --- In a browser -----------------------------------------------------------------------------------------------------


def browser_or_reason() -> tuple[str | None, str]:
    """The browser's path, or None and why there is none to test with."""
    if "LD_PRELOAD" in os.environ:
        return None, "a sanitizer's runtime is preloaded, and a browser does not run under it"
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    return path, f"no browser: none of {', '.join(names)} is on the PATH"


class Visit(NamedTuple):
    """An open page, everything it wrote to the console, and every address it asked for."""

    page: Any
    messages: list[str]
    requests: list[str]

    def drawn(self) -> None:
        self.page.wait_for_selector("html[data-plots=drawn]")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path, reason = browser_or_reason()
    required = os.environ.get("AISEC_FAST_REQUIRE_BROWSER", "0") not in ("", "0")
    if not required:
        pytest.importorskip("playwright", reason="playwright is not installed")
    if path is None:
        (pytest.fail if required else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    flags = (
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


def visit(chromium: Any, file: Path, **settings: Any) -> Visit:
    context = chromium.new_context(accept_downloads=True, **settings)
    opened = Visit(context.new_page(), [], [])
    opened.page.set_default_timeout(20_000)
    opened.page.on("console", lambda message: opened.messages.append(f"{message.type}: {message.text}"))
    opened.page.on("pageerror", lambda error: opened.messages.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(file.as_uri())
    opened.drawn()
    return opened


@pytest.fixture(scope="module")
def file(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    _output.write_text(text, str(path))
    return path


@pytest.fixture(scope="module")
def desktop(chromium: Any, file: Path) -> Visit:
    return visit(chromium, file, viewport={"width": 1440, "height": 900}, color_scheme="light")


@pytest.fixture(scope="module")
def phone(chromium: Any, file: Path) -> Visit:
    settings = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark", "reduced_motion": "reduce"}
    return visit(chromium, file, **settings)


def background(page: Any) -> list[int]:
    """The page's background and that of each plot, as seen: [red, green, blue]."""
    found = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return [int(one) for one in re.findall(r"\d+", found)[:3]]


def plot_colours(page: Any) -> dict[str, list[str]]:
    """Paper, font and first line or bar of each plot, as drawn."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('.plot')].map((plot) => [plot.dataset.figure, [
            getComputedStyle(plot.querySelector('.main-svg')).backgroundColor,
            getComputedStyle(plot.querySelector('.xtick text')).fill,
            getComputedStyle(plot.querySelector('.js-line, .point path')).stroke,
        ]]))"""
    )


def test_the_headline_figures_equal_the_data(desktop: Visit) -> None:
    page = desktop.page
    assert page.inner_text("h1") == "Trained privately, attacked, sealed, verified."
    cards = dict(
        zip(page.locator(".card dt").all_inner_texts(), page.locator(".card .value").all_inner_texts(), strict=True)
    )
    assert cards == {
        "Private accuracy": "95.6\u202f%",
        "Privacy ε": "3.00",
        "Under attack": "52.0\u202f%",
        "A private step": "2.18\u00d7",
        "Seal": "Verified",
    }
    lead = page.inner_text(".lead")
    for said in ("ε = 3.00", "95.6\u202f%", "98.1\u202f%", "33.0\u202f%", EVIL, "41 seconds"):
        assert said in lead


def test_every_plot_has_its_traces_and_points(desktop: Visit) -> None:
    training, robust = RESULT["training"], RESULT["robust_accuracy"]
    lengths = {
        "accuracy": [len(training["epoch"])] * 2,
        "epsilon": [len(training["epsilon"]["epoch"])],
        "loss": [len(training["epoch"])],
        "robustness": [len(robust["plain"]), len(robust["private"])],
    }
    found = desktop.page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('.plot')].map((plot) => [plot.dataset.figure, {
            lengths: plot.data.map((trace) => trace.x.length),
            lines: plot.querySelectorAll('.scatterlayer .js-line').length,
            markers: plot.querySelectorAll('.scatterlayer .point').length,
            bars: plot.querySelectorAll('.barlayer .point').length,
            floors: plot.querySelectorAll('.shapelayer path').length,
        }]))"""
    )
    assert {name: one["lengths"] for name, one in found.items() if not name.startswith("throughput")} == lengths
    assert {name: one["lines"] for name, one in found.items() if name in lengths} == {
        name: len(one) for name, one in lengths.items()
    }
    assert found["robustness"]["markers"] == sum(lengths["robustness"])
    kernels = [one for name, one in found.items() if name.startswith("throughput")]
    assert len(kernels) == len(KERNELS)
    assert sum(one["bars"] for one in kernels) == len(RESULT["throughput"])
    assert all(one["floors"] == 2 for one in kernels)  # the line and its rim


def test_the_pointer_shows_both_values(desktop: Visit) -> None:
    from playwright.sync_api import expect

    desktop.page.hover("#figure-robustness .plot .nsewdrag", position={"x": 300, "y": 100})
    expect(desktop.page.locator("#figure-robustness .hoverlayer")).to_contain_text("plain : 61.0%")
    expect(desktop.page.locator("#figure-robustness .hoverlayer")).to_contain_text("private : 72.0%")


def test_the_floor_stands_where_it_was_measured(desktop: Visit) -> None:
    found = desktop.page.evaluate(
        "() => [...document.querySelectorAll('.figures.small .plot')].map((plot) => plot.layout.shapes.map((s) => s.x0))"
    )
    floors = list(dict.fromkeys(row["floor_ns"] for row in RESULT["throughput"]))
    assert found == [[floor, floor] for floor in floors]


def test_the_digits_are_pictures_with_words(desktop: Visit) -> None:
    pictures = desktop.page.evaluate(
        """() => [...document.querySelectorAll('.pictures svg')].map((one) => [
            one.querySelectorAll('rect').length, one.getBoundingClientRect().width, one.getAttribute('aria-label')])"""
    )
    assert len(pictures) == 3 * len(RESULT["digits"])
    for digit, (count, width, label) in zip(RESULT["digits"], pictures[::3], strict=True):
        assert count == sum(value > 0 for row in digit["original"] for value in row)
        assert width > 60
        assert f"digit {digit['label']}" in label
    said = desktop.page.locator(".said").all_inner_texts()
    assert [re.findall(r"\d", one) for one in said] == [[str(d["plain"]), str(d["private"])] for d in RESULT["digits"]]
    wrong = sum(digit[name] != digit["label"] for digit in RESULT["digits"] for name in ("plain", "private"))
    assert desktop.page.locator(".said .bad").count() == wrong


def test_a_hostile_name_stays_a_name(desktop: Visit) -> None:
    assert desktop.page.evaluate("document.images.length") == 0
    assert desktop.page.evaluate("document.scripts.length") == 3
    assert f"changed: {EVIL}" in desktop.page.inner_text("#seal")


def test_a_hostile_label_stays_a_label_in_a_plot(desktop: Visit) -> None:
    labels = desktop.page.locator(".figures.small .ytick text").all_text_contents()
    names = [f"{row['backend']} {row['instruction_set'] or ''}".strip() for row in RESULT["throughput"]]
    assert sorted(labels) == sorted(names)
    assert "<b>&amp;</b>" in labels


def test_the_toggle_changes_page_and_plots(desktop: Visit) -> None:
    page = desktop.page
    light, light_plots = background(page), plot_colours(page)
    assert min(light) > 200
    assert page.get_attribute("#theme", "aria-pressed") == "false"
    page.focus("#theme")
    page.keyboard.press("Enter")
    desktop.drawn()
    dark_plots = plot_colours(page)
    assert max(background(page)) < 60
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    for name, colours in light_plots.items():
        assert all(before != after for before, after in zip(colours, dark_plots[name], strict=True)), name
    page.emulate_media(color_scheme="light")  # what the reader chose stays
    assert max(background(page)) < 60
    page.click("#theme")
    desktop.drawn()
    assert background(page) == light
    assert plot_colours(page) == light_plots


def column(page: Any, key: str) -> list[str]:
    return page.evaluate(
        """(key) => {
            const heads = [...document.querySelectorAll('#table-throughput th')];
            const at = heads.findIndex((head) => head.dataset.key === key);
            return [...document.querySelectorAll('#table-throughput tbody tr')]
                .filter((row) => !row.hidden).map((row) => row.cells[at].textContent);
        }""",
        key,
    )


def test_a_click_sorts(desktop: Visit) -> None:
    page, rows = desktop.page, RESULT["throughput"]
    head = page.locator('#table-throughput th[data-key="gb_per_s"]')
    expected = [f"{speed:,.1f}" for speed in sorted(row["gb_per_s"] for row in rows)]
    assert expected[-1] == "1,234.5"
    assert column(page, "gb_per_s") != expected
    head.locator("button").click()
    assert column(page, "gb_per_s") == expected
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")
    assert column(page, "gb_per_s") == expected[::-1]
    assert head.get_attribute("aria-sort") == "descending"
    page.click('#table-throughput th[data-key="family"] button')
    assert column(page, "family") == sorted(row["family"] for row in rows)
    assert head.get_attribute("aria-sort") is None


def test_filters_filter(desktop: Visit) -> None:
    page, rows = desktop.page, RESULT["throughput"]
    page.fill("[data-filter]", "BLAKE3 numba")
    assert column(page, "operation") == ["blake3"]
    assert page.inner_text("output") == f"1 of {len(rows)} rows"
    page.fill("[data-filter]", "")
    page.select_option('select[data-key="family"]', "clipping")
    page.select_option('select[data-key="label"]', "native avx2")
    assert sorted(column(page, "operation")) == ["clip_and_sum", "private_sum"]
    page.select_option('select[data-key="family"]', "")
    page.select_option('select[data-key="label"]', "")
    assert len(column(page, "ns")) == len(rows)


def test_the_legend_hides_a_line_through_a_change_of_theme(desktop: Visit) -> None:
    from playwright.sync_api import expect

    page = desktop.page
    plain = page.locator("#figure-robustness .legend button", has_text="plain")

    def shows(lines: int) -> None:
        expect(page.locator("#figure-robustness .scatterlayer .trace")).to_have_count(lines)

    shows(2)
    plain.press("Space")
    shows(1)
    assert plain.get_attribute("aria-pressed") == "false"
    page.click("#theme")
    desktop.drawn()
    shows(1)
    plain.click()
    shows(2)
    page.click("#theme")
    desktop.drawn()


def saved(page: Any, selector: str) -> tuple[str, str]:
    with page.expect_download() as download:
        page.click(selector)
    path = download.value.path()
    return download.value.suggested_filename, path.read_bytes().decode()


def test_downloads(desktop: Visit) -> None:
    page = desktop.page
    name, content = saved(page, "#download")
    assert name == "demo.json"
    assert json.loads(content) == RESULT
    name, content = saved(page, "#figure-robustness [data-save=svg]")
    assert name == "robustness.svg"
    assert ET.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
    assert "Answers that survive the attack" in content
    assert content.count('class="js-line"') == 2 + 2  # the lines, and the same in the legend
    name, content = saved(page, "#figure-robustness [data-save=csv]")
    assert name == "robustness.csv"
    robust = RESULT["robust_accuracy"]
    read = [[float(one) for one in row] for row in list(csv.reader(io.StringIO(content)))[1:]]
    assert read == [[float(eps), robust["plain"][eps], robust["private"][eps]] for eps in robust["plain"]]


def test_dark_is_the_default_where_the_reader_wants_it(phone: Visit, desktop: Visit) -> None:
    assert max(background(phone.page)) < 60
    assert phone.page.get_attribute("#theme", "aria-pressed") == "true"
    on_desktop = plot_colours(desktop.page)
    assert all(colours != on_desktop[name] for name, colours in plot_colours(phone.page).items())


def test_a_change_of_the_readers_system_is_followed(phone: Visit) -> None:
    phone.page.emulate_media(color_scheme="light", reduced_motion="reduce")
    phone.page.wait_for_selector("#theme[aria-pressed=false]")
    phone.drawn()
    assert min(background(phone.page)) > 200
    phone.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    phone.page.wait_for_selector("#theme[aria-pressed=true]")
    phone.drawn()


def test_nothing_moves_where_the_reader_wants_it_still(phone: Visit, desktop: Visit) -> None:
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert phone.page.evaluate(behaviour) == "auto"
    assert desktop.page.evaluate(behaviour) == "smooth"


@pytest.mark.parametrize("name", ["desktop", "phone"])
def test_nothing_is_cut_off(name: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(name).page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    hidden = "(one) => one.scrollWidth > one.clientWidth && getComputedStyle(one).overflowX !== 'auto'"
    assert page.evaluate(f"[...document.querySelectorAll('.panel, .panel .scroll')].filter({hidden}).length") == 0
    cut = page.evaluate(
        """() => [...document.querySelectorAll('.plot')].flatMap((plot) => {
            const frame = plot.getBoundingClientRect();
            return [...plot.querySelectorAll('text')].filter((text) => text.textContent.trim()).filter((text) => {
                const box = text.getBoundingClientRect();
                return box.left < frame.left - 1 || box.right > frame.right + 1
                    || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
            }).map((text) => `${plot.dataset.figure}: ${text.textContent}`);
        })"""
    )
    assert cut == []


@pytest.mark.parametrize("name", ["desktop", "phone"])
def test_axe_finds_no_barrier(name: str, request: pytest.FixtureRequest) -> None:
    """Names, roles, order of headings, and the contrast of every text: the desktop is light, the phone dark."""
    if os.environ.get("AISEC_FAST_REQUIRE_BROWSER", "0") in ("", "0"):
        pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    from axe_playwright_python.sync_playwright import Axe

    # A plot is one picture with a name; its numbers are in a table below it.
    found = Axe().run(
        request.getfixturevalue(name).page, context={"exclude": [[".plot"]]}, options={"resultTypes": ["violations"]}
    )
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("name", ["desktop", "phone"])
def test_the_visit_was_quiet_and_stayed_home(name: str, request: pytest.FixtureRequest, file: Path) -> None:
    opened = request.getfixturevalue(name)
    assert opened.messages == []
    assert [one for one in opened.requests if not one.startswith(("data:", "blob:"))] == [file.as_uri()]


def test_an_injected_script_does_not_run(phone: Visit) -> None:
    """Last: the browser reports it on the console."""
    phone.page.evaluate(
        """() => {
            const script = document.createElement('script');
            script.textContent = 'window.injected = true';
            document.body.append(script);
            document.body.insertAdjacentHTML('beforeend', '<img src="x" onerror="window.injected = true">');
        }"""
    )
    phone.page.wait_for_timeout(200)
    assert phone.page.evaluate("window.injected") is None
    assert any("Content Security Policy" in message for message in phone.messages)
