"""What a user sees: MLflow's pages and DVC's, in a real browser, without the internet.

With SCREENSHOTS=<folder> pictures of the pages are left there, to look at.
"""

import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import vl_convert
from playwright.sync_api import Browser, Locator, Page, Route, ViewportSize, expect, sync_playwright
from ruamel.yaml import YAML

from tests.conftest import Clone
from tests.servers import healthy, running

pytestmark = pytest.mark.slow
PATIENCE = 60_000  # milliseconds: the first page takes long on a busy machine
SIZE: ViewportSize = {"width": 1600, "height": 1000}
EPOCHS = 3
PICTURES = {
    "linear_regression": ["curves", "fit"],
    "softmax_regression": ["curves", "confusion", "mistakes", "templates"],
    "mlp": ["curves", "confusion", "mistakes", "filters"],
}
# What DVC's page loads from the internet. Here the last brings all three, in newer versions.
LIBRARY = re.compile(r"https://cdn\.jsdelivr\.net/npm/(vega|vega-lite|vega-embed)@[0-9.]+")
EXPOSED = "window.vegaEmbed = vegaEmbed"
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("Chromium is not installed (on Debian: apt install chromium)")
    with sync_playwright() as driver:
        # Chromium's own sandbox refuses to run as root, which tests in a container are.
        browser = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox"], timeout=PATIENCE
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a browser that has never been here; no error in it, no request to elsewhere."""
    context = browser.new_context(viewport=SIZE)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))

    def answer(route: Route) -> None:
        library = LIBRARY.fullmatch(route.request.url)
        if library is None:
            errors.append(f"a request to {route.request.url}")
            route.abort()
        else:
            code = vl_convert.javascript_bundle(EXPOSED) if library[1] == "vega-embed" else ""
            route.fulfill(body=code, content_type="text/javascript; charset=utf-8")

    page.route(re.compile(r"https?://(?!127\.0\.0\.1:)"), answer)
    # MLflow greets whoever is new with the panel of an assistant, and with hints.
    for greeting in (
        page.locator("[data-component-id='mlflow.assistant.chat_panel.close']"),
        page.get_by_role("button", name="Got it"),
    ):
        page.add_locator_handler(greeting, lambda button: button.click())
    yield page
    context.close()
    assert not errors


@pytest.fixture
def keep(page: Page, tmp_path: Path) -> Callable[[str], None]:
    """Keeps what the page shows as a picture of this name."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)

    def screenshot(name: str) -> None:
        page.screenshot(path=folder / f"{name}.png", full_page=True)

    return screenshot


@pytest.fixture(scope="module")
def clone(browser: Browser, clone: Clone) -> Clone:  # the browser first: it may be missing
    """With the pipeline run, and an experiment beside it."""
    clone.edit({"  epochs: 1\n": f"  epochs: {EPOCHS}\n"})
    clone.commit("trainings that have curves")
    clone.run("dvc", "repro")
    clone.commit("results")
    clone.run("dvc", "exp", "run", "--temp", "--name", "faster", "-S", "lr=0.1", "record@mlp")
    return clone


@pytest.fixture(scope="module")
def baseline(clone: Clone) -> str:
    """The name of the runs that `dvc repro` recorded: the commit before that of the results."""
    return f"baseline {clone.run('git', 'rev-parse', 'HEAD~1')[:7]}"


@pytest.fixture(scope="module")
def port(clone: Clone) -> Iterator[int]:
    """Where `make ui` serves the clone's runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Without `setup`, which would build the clone an environment of its own.
    command = ["make", "--old-file=setup", "ui", f"PORT={port}"]
    with running(command, lambda: healthy(f"http://127.0.0.1:{port}"), clone.folder):
        yield port


def open_experiment(page: Page, port: int, model: str) -> None:
    """The way from MLflow's first page to a model's runs."""
    page.goto(f"http://127.0.0.1:{port}/")
    # Its first page is that of its other part, for language models.
    page.get_by_role("button", name="Model training").click()
    page.get_by_role("link", name=model, exact=True).click()


def row(cell: Locator) -> Locator:
    """The row of a table with this cell, or with this in a cell."""
    return cell.page.get_by_role("row").filter(has=cell)


def check_curves(page: Page, *runs: str) -> None:
    """The page's one chart has a curve for each of the runs, in a colour of its own."""
    legend = page.get_by_text("(validation_loss)")
    expect(legend).to_have_text([f"{run} (validation_loss)" for run in runs])
    lines = page.locator(".js-line")
    expect(lines).to_have_count(2 * len(runs))  # each is there smoothed, and fainter as it is
    curves = {
        line.evaluate("line => line.style.stroke"): line.get_attribute("d") or ""
        for line in lines.all()
    }
    assert len(curves) == len(set(curves.values())) == len(runs)
    assert {len(re.findall("[ML]", curve)) for curve in curves.values()} == {EPOCHS}


def test_two_experiments_are_compared(
    page: Page, port: int, baseline: str, keep: Callable[[str], None]
) -> None:
    open_experiment(page, port, "mlp")
    page.get_by_role("button", name="Views").click()
    page.get_by_test_id("saved-views-item-results").click()
    for column in ("validation_accuracy", "test_accuracy", "lr"):
        header = page.get_by_role("columnheader", name=column, exact=True)
        expect(header.first).to_be_visible()
    for name in (baseline, "faster"):
        link = page.get_by_role("link", name=name, exact=True)
        row(link).get_by_role("checkbox").first.check()
    keep("runs")

    page.get_by_role("button", name="Compare").click()
    for name, values in (("Run Name:", [baseline, "faster"]), ("lr", ["0.03", "0.1"])):
        header = page.get_by_role("rowheader", name=name, exact=True)
        expect(row(header).get_by_role("cell")).to_have_text(values)
    page.locator(".parcoords").first.wait_for()
    page.set_viewport_size({"width": 1600, "height": 2400})  # the page scrolls within itself
    keep("comparison")
    page.set_viewport_size(SIZE)

    page.get_by_role("link", name="validation_loss", exact=True).click()
    check_curves(page, baseline, "faster")
    keep("comparison-curves")


def test_the_curves_of_all_runs_are_in_one_chart(
    page: Page, port: int, baseline: str, keep: Callable[[str], None]
) -> None:
    open_experiment(page, port, "mlp")
    page.locator("label:has(input[value=CHART])").click()
    # A metric that has one value has a line too, of no length.
    page.locator(".js-line").filter(visible=True).first.wait_for()
    keep("charts")
    page.get_by_placeholder("Search metric charts").fill("^validation_loss$")
    check_curves(page, "faster", baseline)
    keep("charts-curves")


@pytest.mark.parametrize("model", PICTURES)
def test_a_run_shows_its_description_and_its_pictures(
    page: Page, port: int, baseline: str, model: str, keep: Callable[[str], None]
) -> None:
    open_experiment(page, port, model)
    page.get_by_role("link", name=baseline, exact=True).click()
    page.get_by_role("button", name="Expand description").click()
    run = page.url.split("/")[-1]
    expect(page.get_by_text(f"make replay RUN={run}")).to_be_visible()
    keep(f"{model}-run")

    page.get_by_role("tab", name="Artifacts").click()
    expect(page.get_by_text(".png")).to_have_text(sorted(f"{p}.png" for p in PICTURES[model]))
    for name in PICTURES[model]:
        page.get_by_text(f"{name}.png", exact=True).click()
        picture = page.get_by_alt_text(f"{name}.png", exact=True)
        expect(picture).to_be_visible()
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("picture => picture.naturalWidth") > 300
        keep(f"{model}-{name}")


def reachable(port: int) -> set[str]:
    """The addresses of this machine at which somebody listens."""
    addresses = {"127.0.0.1", "127.0.0.2"}
    with socket.socket(type=socket.SOCK_DGRAM) as asking, suppress(OSError):
        asking.connect(("192.0.2.255", 9))  # sends nothing, but chooses the way out
        addresses.add(asking.getsockname()[0])
    found = set()
    for address in addresses:
        with suppress(OSError), socket.create_connection((address, port), timeout=10):
            found.add(address)
    return found


def test_the_pages_are_for_this_machine_alone(port: int) -> None:
    with socket.create_server(("", 0)) as everywhere:
        assert reachable(everywhere.getsockname()[1]) > {"127.0.0.1"}
    assert reachable(port) == {"127.0.0.1"}


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_no_other_address_listens(port: int) -> None:
    tables = (Path("/proc/net", name).read_text() for name in ("tcp", "tcp6"))
    sockets = [line.split()[1:4] for table in tables for line in table.splitlines()[1:]]
    listening = [local.split(":") for local, _, state in sockets if state == "0A"]
    here = int.from_bytes(socket.inet_aton("127.0.0.1"), sys.byteorder)
    assert [at for at, number in listening if int(number, 16) == port] == [f"{here:08X}"]


@pytest.mark.parametrize(
    ("command", "experiments"),
    [("show", ["workspace"]), ("diff", ["HEAD", "faster"])],
    ids=["show", "diff"],
)
def test_dvc_draws_every_plot_that_dvc_yaml_declares(
    page: Page, clone: Clone, command: str, experiments: list[str], keep: Callable[[str], None]
) -> None:
    plots = YAML(typ="safe").load(clone.folder / "dvc.yaml")["plots"]
    titles = [options["title"] for plot in plots for options in plot.values()]
    clone.run("dvc", "plots", command, *(experiments if command == "diff" else []))
    page.goto((clone.folder / "dvc_plots/index.html").as_uri())
    drawn = page.locator("svg.marks")
    expect(drawn).to_have_count(len(titles))
    keep(f"dvc-plots-{command}")
    for plot, title in zip(drawn.all(), titles, strict=True):
        for text in (title, *experiments):
            expect(plot).to_contain_text(text)
        marks = plot.locator("g.role-mark")  # lines, points and bars; not axes and legends
        width = "marks => Math.max(...marks.map(mark => mark.getBBox().width))"
        assert marks.evaluate_all(width) > 200, title
