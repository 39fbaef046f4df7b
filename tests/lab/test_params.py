"""Good parameters are read as they are meant, bad ones refused in one line."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from lab import params

FILE = Path(__file__).parent.parent / "params.yaml"
GOOD = FILE.read_text(encoding="utf-8")


def load(tmp_path: Path, text: str | bytes) -> params.Params:
    path = tmp_path / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return params.load(path)


def replaced(old: str, new: str) -> str:
    assert GOOD.count(old) >= 1
    return GOOD.replace(old, new, 1)


def test_the_committed_file_is_good() -> None:
    params.load()


def test_values_are_read_as_they_are_written() -> None:
    p = params.load(FILE)
    assert p.seed == 1 and p.lr == 0.03 and p.arithmetic == "exact"
    assert p.regression_data.weights == (2.0, -3.4)
    assert p.mlp.hidden == (256, 128) and p.mlp.lr_schedule == "linear"


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-5", 1e-5), ("1e-05", 1e-5), ("1E5", 1e5), (".1", 0.1), ("0.10", 0.1), ("1", 1.0)],
)
def test_a_number_is_a_number_however_it_is_written(
    tmp_path: Path, written: str, value: float
) -> None:
    assert load(tmp_path, replaced("lr: 0.03", f"lr: {written}")).lr == value


@pytest.mark.parametrize(
    "text", [GOOD.replace("\n", "\r\n"), GOOD + "# Füße, 靴\n", "\ufeff" + GOOD]
)
def test_line_ends_comments_and_byte_order_mark_do_not_matter(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == params.load(FILE)


BAD = [
    # what is replaced, by what, what the message says
    ("seed: 1", "seed: true", "seed = True: expected a valid integer"),
    ("seed: 1", "seed: '1'", "seed = '1': expected a valid integer"),
    ("seed: 1", "seed: 1.0", "seed = 1.0: expected a valid integer"),
    ("seed: 1", "seed: -1", "seed = -1: expected greater than or equal to 0"),
    ("seed: 1", f"seed: {2**63}", "seed = 9223372036854775808: expected less than"),
    ("seed: 1", f"seed: 1{'0' * 5000}", "expected YAML: Exceeds the limit"),
    ("seed: 1", "seed:", "seed = None: expected a valid integer"),
    ("seed: 1", "", "seed: this key is missing"),
    ("seed: 1", "seed: 1\nseed: 2", 'found duplicate key "seed"'),
    ("seed: 1", "sed: 1", "sed: unknown key; accepted here: seed, lr, arithmetic,"),
    ("seed: 1", "seed: [", "expected YAML"),
    (
        "seed: 1",
        "seed: !!python/object/apply:os.system [exit]",
        "line 2: expected plain values, found the tag",
    ),
    ("seed: 1", "seed: 1\n3: 4", "3: expected the name of a parameter as key"),
    ("lr: 0.03", "lr: .nan", "lr = nan: expected a finite number"),
    ("lr: 0.03", "lr: .inf", "lr = inf: expected a finite number"),
    ("lr: 0.03", "lr: 0", "lr = 0: expected greater than 0"),
    ("lr: 0.03", "lr: -0.1", "lr = -0.1: expected greater than 0"),
    ("lr: 0.03", "lr: false", "lr = False: expected a valid number"),
    ("lr: 0.03", "lr: fast", "lr = 'fast': expected a valid number"),
    ("lr: 0.03", "lr: [0.1]", "lr = [0.1]: expected a valid number"),
    ("train: 1000", "train: 2", "expected train of at least 3"),
    ("train: 1000", "train: 1.5", "regression_data.train = 1.5: expected a valid integer"),
    ("- 2.0\n", "- two\n", "regression_data.weights.0 = 'two': expected a valid number"),
    ("noise: 0.01", "noise: -1", "regression_data.noise = -1: expected greater than or equal to 0"),
    ("validation: 5000", "validation: 0", "fashion_mnist.validation = 0: expected greater than"),
    ("validation: 5000", "validation: 60000", "fashion_mnist.validation = 60000: expected less"),
    ("epochs: 5\n", "epochs: 0\n", "linear_regression.epochs = 0: expected greater than"),
    ("batch_size: 10\n", "batch_size: 0\n", "linear_regression.batch_size = 0: expected greater"),
    ("momentum: 0.0", "momentum: 1.0", "linear_regression.momentum = 1.0: expected less than 1"),
    ("lr_schedule: constant", "lr_schedule: cosine", "expected 'constant' or 'linear'"),
    ("linear_regression:", "linear_regression: 3\nx:", "x: unknown key"),
    ("  - 256\n  - 128\n", "    []\n", "mlp.hidden = []: expected at least 1 item, not 0"),
    ("  - 256\n", "  - true\n", "mlp.hidden.0 = True: expected a valid integer"),
    ("  - 256\n", "  - 0\n", "mlp.hidden.0 = 0: expected greater than or equal to 1"),
    ("  - 256\n", "  - 1\n" * 10_000, "mlp.hidden = [1, 1"),
    ("  - 256\n  - 128\n", "    256\n", "mlp.hidden = 256: expected a list"),
    ("activation: relu", "activation: gelu", "expected 'relu', 'sigmoid' or 'tanh'"),
    ("dropout: 0.0", "dropout: 1", "mlp.dropout = 1: expected less than 1"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD, ids=[bad[1][:30] for bad in BAD])
def test_bad_values_are_refused_in_one_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(params.ParamsError) as error:
        load(tmp_path, replaced(old, new))
    assert message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "the file = None: expected a section of keys and values"),
        (b"- 1\n", "the file = [1]: expected a section"),
        (b"\xff\x00", "expected text in UTF-8"),
        (b"# \n" * 100_000, "expected at most 100000 characters"),
        (b"\x00", "expected YAML"),
        (b"[" * 10_000, "expected YAML"),
        (b"a: &a [x]\nmlp: [*a, *a]\n", "line 2: expected plain values, found the alias *a"),
    ],
)
def test_files_that_are_no_parameters_are_refused(
    tmp_path: Path, contents: bytes, message: str
) -> None:
    with pytest.raises(params.ParamsError) as error:
        load(tmp_path, contents)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(params.ParamsError, match=r"none\.yaml: cannot be read: No such file"):
        params.load(tmp_path / "none.yaml")


def test_parameters_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        params.load(FILE).lr = 1.0  # type: ignore[misc]


def test_a_run_logs_what_its_model_saw() -> None:
    p = params.load(FILE)
    assert p.seen_by("linear_regression").keys() == {
        "seed", "lr", "arithmetic",
        "epochs", "batch_size", "momentum", "weight_decay", "lr_schedule",
        "regression_data.train", "regression_data.validation", "regression_data.test",
        "regression_data.weights", "regression_data.bias", "regression_data.noise",
    }  # fmt: skip
    assert p.seen_by("mlp").keys() - p.seen_by("softmax_regression").keys() == {
        "hidden", "activation", "dropout",
    }  # fmt: skip
