"""The README and the pages in docs: their figures, commands, files and links are the real ones."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from benchmarks import emulated, environments, seeds
from exact.probe import FROZEN
from lab import checkpoints, params, training
from lab.common import files, lockfile
from tools import results
from tools.studies import INGREDIENTS
from tracking.repository import ROOT

PAGES = [ROOT / "README.md", ROOT / "data/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
PUBLISHED = {"Softmax regression": "0.842", "Multilayer perceptron": "0.8833"}
NOT_RUN = "not run"  # in a table of measurements
FOLDERS = "exact|lab|stages|tracking|tools|tests|benchmarks|docs|data|results|.github"
ELSEWHERE = (
    r"(?<![\w.])/(?:work|root|home|tmp|Users)\b"
    r"|(?i:pypi|pythonhosted|conda|npmjs|docker\.io|huggingface)"
)
DOTALL_LINES = re.DOTALL | re.MULTILINE
ACCURACY = r"\b0\.[789]\d{2,3}\b"

every_page = pytest.mark.parametrize("page", TEXTS)


def block(page: str, name: str) -> str:
    """What stands between the marks of this name, which the page has once."""
    begin, end = results.marks(name)
    _, text = TEXTS[page].split(begin)
    text, _ = text.split(end)
    return text


def rows(page: str, name: str) -> list[list[str]]:
    """The cells of the table between these marks, without its header."""
    lines = block(page, name).strip().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code(text: str) -> str:
    """The code of a page: fenced blocks and code spans, one per line."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, flags=DOTALL_LINES)
    prose = re.sub(r"^```.*?^```", "", text, flags=DOTALL_LINES)
    spans = re.findall(r"`((?:[^`\n]|\n(?!\n))+)`", prose)
    return "\n".join([*fenced, *(span.replace("\n", " ") for span in spans)])


def prose(text: str) -> str:
    """A page without its marked tables, and without its code, whose output is tested elsewhere."""
    marked = r"^<!-- ([a-z]+) -->$.*?^<!-- /\1 -->$"
    return re.sub(rf"{marked}|^```.*?^```$", "", text, flags=DOTALL_LINES)


def lockfile_outputs() -> list[Path]:
    """The outputs that dvc.lock names: a fresh clone does not have them yet."""
    with contextlib.chdir(ROOT):
        return list(lockfile.outputs())


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run(source: str, **names: Any) -> tuple[str, dict[str, Any]]:
    """Run an example; return what it printed, and its variables."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(source, names)  # noqa: S102 -- an example of our own pages
    return printed.getvalue().strip(), names


# Figures


def test_the_table_of_results_is_that_of_the_metrics() -> None:
    assert block("README.md", "results") == results.table()


def test_the_readme_quotes_the_ten_seeds_of_the_other_page_and_the_published_results() -> None:
    p = params.load(ROOT / "params.yaml")
    measured = {p.models[name].title: exact for name, exact, *_ in rows("docs/results.md", "seeds")}
    quoted = rows("README.md", "published")
    assert {title: value for title, value, _ in quoted} == measured
    published = {
        title: match[1]
        for title, _, text in quoted
        if (match := re.match(r"\[(0\.\d+)\]\(https://", text))
    }
    assert published == PUBLISHED
    assert all(figure in TEXTS["docs/results.md"] for figure in PUBLISHED.values())


def test_the_table_of_seeds_has_every_classifier_and_adds_up() -> None:
    p = params.load(ROOT / "params.yaml")
    table = rows("docs/results.md", "seeds")
    classifiers = [name for name, entry in p.models.items() if entry.task == "classification"]
    assert [name for name, *_ in table] == classifiers
    for _, exact, native, difference in table:
        (a, _), (b, _) = ([float(x) for x in cell.split(" ± ")] for cell in (exact, native))
        points = float(difference.removesuffix(" points"))
        assert points == pytest.approx(100 * (a - b), abs=0.0105)  # of rounded means


@every_page
def test_an_accuracy_in_prose_is_that_of_a_results_file_or_published(page: str) -> None:
    known = set(PUBLISHED.values())
    for path in ROOT.glob("results/*/metrics.json"):
        accuracy = files.read_json(path).get("test_accuracy")
        known |= {f"{accuracy:.3f}", f"{accuracy:.4f}"} if accuracy is not None else set()
    found = re.findall(ACCURACY, prose(TEXTS[page]))
    assert set(found) <= known
    assert "0.8001" not in known and re.findall(ACCURACY, "of 0.8001.") == ["0.8001"]


def test_the_other_machines_computed_the_frozen_hash() -> None:
    table = rows("docs/exactness.md", "machines")
    found = {digest for _, _, *exact, _ in table for digest in exact} - {NOT_RUN, ""}
    assert found == {FROZEN[:10]}
    native = {native for *_, native in table} - {NOT_RUN, ""}
    assert len(native) > 1 and FROZEN[:10] not in native
    assert len(table) >= len(emulated.MACHINES)


def test_the_environments_computed_what_dvc_lock_says() -> None:
    table = rows("docs/exactness.md", "environments")
    assert [name for name, *_ in table] == list(environments.ENVIRONMENTS)
    expected = environments.digits(environments.committed())
    assert {exact for _, exact, _ in table} - {NOT_RUN} <= {expected}
    native = {native for _, _, native in table} - {NOT_RUN, ""}
    assert len(native) != 1 and expected not in native


def test_a_number_in_words_is_that_of_the_code() -> None:
    assert checkpoints.INTERVAL == training.NORM_EVERY == len(seeds.SEEDS) == 10
    for page, phrase in (
        ("docs/using.md", "at most about ten seconds old"),
        ("docs/results.md", "mean over every tenth step"),
        ("docs/studies.md", "mean over every tenth step"),
        ("docs/results.md", "## Ten seeds"),
        ("README.md", "over ten seeds"),
    ):
        assert phrase in " ".join(TEXTS[page].split())


def test_what_the_studies_conclude_is_in_their_tables() -> None:
    activations = {name: cells for name, *cells in rows("docs/studies.md", "activation")}
    validation = {name: float(cells[0]) for name, cells in activations.items()}
    test = {name: float(cells[1]) for name, cells in activations.items()}
    assert max(validation, key=lambda name: validation[name]) == "tanh"
    assert max(test, key=lambda name: test[name]) == "relu"
    assert min(validation["tanh"], validation["relu"]) - validation["sigmoid"] > 0.05
    table = rows("docs/studies.md", "lr")
    lr = params.load(ROOT / "params.yaml").lr
    rates, losses, *accuracies = ([float(cell) for cell in row] for row in zip(*table, strict=True))
    assert rates[losses.index(min(losses))] == lr
    softmax, mlp = accuracies
    assert rates[softmax.index(max(softmax))] == lr
    assert sorted(rates, key=lambda rate: mlp[rates.index(rate)])[-2:] == [lr, 0.1]
    assert round(5000 * (mlp[rates.index(0.1)] - mlp[rates.index(lr)])) == 2


def test_each_row_of_the_third_study_has_its_line() -> None:
    assert [name for name, *_ in rows("docs/studies.md", "ingredients")] == list(INGREDIENTS)
    lines = [line for line in TEXTS["docs/studies.md"].splitlines() if "seed=1,2,3,4,5" in line]
    changes: dict[str, str] = {}
    for line, added in zip(lines, INGREDIENTS.values(), strict=True):
        changes |= added
        settings = re.findall(r"-S '?mlp\.(\w+)=([^' ]+)'? ", line)
        assert {key: value.strip("[]") for key, value in settings} == changes
        assert line.endswith(" record@mlp")


def test_the_table_of_result_files_has_every_output_and_its_columns() -> None:
    listed = {name.strip("`"): text for name, text in rows("docs/results.md", "files")}
    outputs = lockfile_outputs()
    assert set(listed) == {path.name for path in outputs if path.parts[0] == "results"}
    for name, text in listed.items():
        written = [ROOT / path for path in outputs if path.name == name]
        if name.endswith(".safetensors") or not all(path.exists() for path in written):
            continue  # not made yet
        columns = set[str]().union(*(header(path) for path in written))
        assert set(re.findall(r"`(\w+)`", text)) <= columns, name


def header(path: Path) -> set[str]:
    """The columns of a CSV file, or the keys of a JSON file."""
    return set(files.read_json(path) if path.suffix == ".json" else files.read_rows(path)[0])


# The README itself


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 110 and len(README.split()) <= 900


def test_the_example_of_the_readme_has_six_lines_and_prints_what_it_says() -> None:
    source = re.sub(r"^```\w*\n", "", block("README.md", "example"), flags=re.MULTILINE)
    assert len([line for line in source.splitlines() if line]) == 6
    printed, names = run(source)
    assert source.strip().endswith(f"print(loss.item())  # {printed}")
    # The control: the same in native arithmetic is another number.
    native = source.replace("exact.mode(seed=1)", "torch.random.fork_rng()")
    assert run(native)[0] != printed
    assert all(weights.grad is not None for weights in names["model"].parameters())


# What the pages name


@every_page
def test_every_make_target_module_and_parameter_that_a_page_names_is_there(page: str) -> None:
    text = code(TEXTS[page])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE)
    for target in re.findall(r"\bmake (?:-\S+ )*([a-z][a-z-]*)", text):
        assert target in targets, target
    for module in re.findall(r"python -m ([a-z_.]+)", text):
        assert importlib.util.find_spec(module), module
    tree = YAML(typ="safe").load(ROOT / "params.yaml")
    for added, key in re.findall(r"-S '?(\+?)([a-z_.]+)=", text):
        names = key.split(".")
        if f"{names[0]}:" in text.splitlines():
            continue  # a section that the page adds
        value = tree
        for name in names[:-1] if added else names:
            assert isinstance(value, dict) and name in value, key
            value = value[name]


@every_page
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    added = set(re.findall(r"<!-- file: (\S+) -->", TEXTS[page]))  # by who follows the page
    text = re.sub(r"^<!-- (file|insert|append): .*?^```$", "", TEXTS[page], flags=DOTALL_LINES)
    outputs = [path.as_posix() for path in lockfile_outputs()]
    for path in re.findall(rf"(?<![\w/.*-])((?:{FOLDERS})/[\w./*<>-]*)", code(text)):
        name = re.sub(r"<\w+>", "*", path.rstrip("."))
        if name in added or not name.strip("*/"):
            continue
        made = any(Path(output).match(name.rstrip("/")) for output in outputs)
        folder = any(output.startswith(name.rstrip("/*") + "/") for output in outputs)
        assert made or folder or any(ROOT.glob(name.rstrip("/"))), path


@every_page
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in link:
            assert link.startswith("https://"), link
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target.read_text(encoding="utf-8")), link


def test_every_page_is_linked_from_the_readme_or_a_page_that_it_links() -> None:
    linked = {
        (ROOT / page).parent.joinpath(link).resolve()
        for page, text in TEXTS.items()
        for link in re.findall(r"\]\(([^)#\s]+)", text)
        if "://" not in link
    }
    assert set(PAGES[1:]) <= linked


@every_page
def test_no_page_names_a_registry_or_a_path_of_one_machine(page: str) -> None:
    assert not re.findall(ELSEWHERE, TEXTS[page])
    assert re.findall(ELSEWHERE, "in /home/me and ./tmp, on PyPI") == ["/home", "PyPI"]


@every_page
def test_the_marks_of_tables_are_in_pairs(page: str) -> None:
    begun = re.findall(r"^<!-- ([a-z]+) -->$", TEXTS[page], flags=re.MULTILINE)
    ended = re.findall(r"^<!-- /([a-z]+) -->$", TEXTS[page], flags=re.MULTILINE)
    assert begun == ended and len(set(begun)) == len(begun)
