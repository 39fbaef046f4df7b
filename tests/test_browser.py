"""What a user sees: the pages of MLflow and DVC in a real browser, without the internet."""

import re
import shutil
import socket
from collections.abc import Iterator

import psutil
import pytest
import vl_convert
from playwright.sync_api import Browser, Locator, Page, Route, ViewportSize, expect, sync_playwright

from lab import params
from tests.conftest import Clone
from tests.servers import free_port, running

pytestmark = pytest.mark.slow
PATIENCE = 60_000  # milliseconds: the first page takes long on a busy machine
SIZE: ViewportSize = {"width": 1600, "height": 1000}
COLUMNS = ("validation_accuracy", "test_accuracy", "lr")
OF_IMAGES = ["confusion", "curves", "mistakes", "weights"]
FIGURES = {
    "linear_regression": ["curves", "fit"],
    "softmax_regression": OF_IMAGES,
    "mlp": OF_IMAGES,
}
# What DVC's page loads from the internet. Here the last file contains all three, in newer versions.
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
        # Chromium's own sandbox refuses to run as root, as tests in a container do.
        browser = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox"], timeout=PATIENCE
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a new browser profile. Errors in it and requests to other hosts fail the test."""
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
    # MLflow shows a new user an assistant's panel and hints.
    for greeting in (
        page.locator("[data-component-id='mlflow.assistant.chat_panel.close']"),
        page.get_by_role("button", name="Got it"),
    ):
        page.add_locator_handler(greeting, lambda button: button.click())
    yield page
    context.close()
    assert not errors


@pytest.fixture(scope="module")
def clone(
    browser: Browser, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Clone:
    """Baseline results of one epoch, and an experiment of two, of which the run of mlp is recorded.

    Needs the browser, or skips.
    """
    finished: Clone = request.getfixturevalue("finished")
    clone = finished.copy(tmp_path_factory.mktemp("browser") / "clone")
    # In a plot of one epoch, the lines would be points.
    settings = ["lr=0.1", *(f"{model}.epochs=2" for model in FIGURES)]
    stages = [*(f"evaluate@{model}" for model in FIGURES), "record@mlp"]
    changes = [f"--set-param={setting}" for setting in settings]
    clone.run("dvc", "exp", "run", "--name", "faster", *changes, *stages)
    return clone


@pytest.fixture(scope="module")
def names(clone: Clone) -> list[str]:
    """The names of a model's two runs: of the commit before the results, and of the experiment."""
    return [f"baseline {clone.run('git', 'rev-parse', 'HEAD~1')[:7]}", "faster"]


@pytest.fixture(scope="module")
def port(clone: Clone) -> Iterator[int]:
    """The port at which `make ui` serves the clone's runs."""
    port = free_port()
    # Without `setup`, which would build an environment for the clone.
    command = ["make", "--old-file=setup", "ui", f"PORT={port}"]
    log = clone.folder / "make.log"
    with running(command, lambda: "viewStateShareKey" in log.read_text(), clone.folder):
        yield port


def open_experiment(page: Page, clone: Clone, port: int, title: str) -> None:
    """Open the link to a model's runs that `make ui` prints."""
    printed = (clone.folder / "make.log").read_text(encoding="utf-8")
    (link,) = re.findall(rf"{title} +(http://127.0.0.1:{port}/\S+)", printed)
    page.goto(link)


def check_columns(page: Page) -> None:
    """The table of runs shows parameters and results."""
    for column in COLUMNS:
        header = page.get_by_role("columnheader", name=column, exact=True)
        expect(header.first).to_be_visible()


def row(cell: Locator) -> Locator:
    """The row of a table with this cell, or with this in a cell."""
    return cell.page.get_by_role("row").filter(has=cell)


def check_curves(page: Page, *runs: str) -> None:
    """The page has one chart, with a curve for each of the runs, of one and two epochs."""
    legend = page.get_by_text("(validation_loss)")
    expect(legend).to_have_text([f"{run} (validation_loss)" for run in runs])
    lines = page.locator(".js-line")
    expect(lines).to_have_count(2 * len(runs))  # a smoothed line and a fainter exact one
    # Their colours can be equal: MLflow takes one of 20 by the run's random id.
    curves = {line.get_attribute("d") or "" for line in lines.all()}
    assert len(curves) == len(runs)
    assert sorted("L" in curve for curve in curves) == [False, True]


def test_a_link_opens_the_results_and_two_runs_are_compared(
    page: Page, clone: Clone, port: int, names: list[str]
) -> None:
    open_experiment(page, clone, port, "Multilayer perceptron")
    check_columns(page)
    for name in names:
        link = page.get_by_role("link", name=name, exact=True)
        row(link).get_by_role("checkbox").first.check()

    page.get_by_role("button", name="Compare").click()
    for name, values in (("Run Name:", names), ("lr", ["0.03", "0.1"])):
        header = page.get_by_role("rowheader", name=name, exact=True)
        expect(row(header).get_by_role("cell")).to_have_text(values)
    page.locator(".parcoords").first.wait_for()

    link = page.get_by_role("link", name="validation_loss", exact=True)
    link.dispatch_event("click")  # a click by position can miss, as the page still moves
    check_curves(page, *names)


def test_the_first_page_leads_to_the_results_and_to_the_curves_of_all_runs(
    page: Page, port: int, names: list[str]
) -> None:
    page.goto(f"http://127.0.0.1:{port}/")
    # The first page is about language models.
    page.get_by_role("button", name="Model training").click()
    page.get_by_role("link", name="mlp", exact=True).click()
    page.get_by_role("link", name=names[0], exact=True).wait_for()
    header = page.get_by_role("columnheader", name=COLUMNS[0], exact=True)
    assert not header.count()  # the control: the view adds it
    page.get_by_role("button", name="Views").click()
    page.get_by_test_id("saved-views-item-results").click()
    check_columns(page)

    page.locator("label:has(input[value=CHART])").click()
    # A metric with one value has a line too, of no length.
    page.locator(".js-line").filter(visible=True).first.wait_for()
    page.get_by_placeholder("Search metric charts").fill("^validation_loss$")
    check_curves(page, *reversed(names))


def test_a_run_shows_its_description_and_its_figures(
    page: Page, clone: Clone, port: int, names: list[str]
) -> None:
    for model, entry in params.load(clone.folder / "params.yaml").models.items():
        open_experiment(page, clone, port, entry.title)
        page.get_by_role("link", name=names[0], exact=True).click()
        page.get_by_role("button", name="Expand description").click()
        run = page.url.split("/")[-1]
        expect(page.get_by_text(f"make replay RUN={run}")).to_be_visible()

        page.get_by_role("tab", name="Artifacts").click()
        expect(page.get_by_text(".png")).to_have_text([f"{name}.png" for name in FIGURES[model]])
        for name in FIGURES[model]:
            page.get_by_text(f"{name}.png", exact=True).click()
            figure = page.get_by_alt_text(f"{name}.png", exact=True)
            expect(figure).to_be_visible()
            expect(figure).to_have_js_property("complete", True)
            assert figure.evaluate("figure => figure.naturalWidth") > 300


def listening(port: int) -> set[str]:
    """The addresses at which processes of this machine listen on the port."""
    found = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return {address.ip for address in found if address.port == port}


def test_the_pages_are_served_to_this_machine_only(port: int) -> None:
    with socket.create_server(("", 0)) as everywhere:
        assert listening(everywhere.getsockname()[1]) == {"0.0.0.0"}  # noqa: S104  # the control
    assert listening(port) == {"127.0.0.1"}


def test_dvc_draws_every_plot_that_dvc_yaml_declares(
    page: Page, clone: Clone, run_all: bool
) -> None:
    models = [entry.title for entry in params.load(clone.folder / "params.yaml").models.values()]
    training = [title for model in models for title in (model, f"{model}, gradient by layer")]
    titles = [*training, *(model for model in models for _ in ("predictions", "breakdown"))]
    commands = ([["show"]] if run_all else []) + [["diff", "HEAD", "faster"]]
    for command, *experiments in commands:
        clone.run("dvc", "plots", command, *experiments)
        page.goto((clone.folder / "dvc_plots/index.html").as_uri())
        drawn = page.locator("svg.marks")
        expect(drawn).to_have_count(len(titles))
        for plot, title in zip(drawn.all(), titles, strict=True):
            for text in (title, *(experiments or ["workspace"])):
                expect(plot).to_contain_text(text)
            marks = plot.locator("g.role-mark")  # lines, points and bars; not axes and legends
            width = "marks => Math.max(...marks.map(mark => mark.getBBox().width))"
            assert marks.evaluate_all(width) > 200, title
