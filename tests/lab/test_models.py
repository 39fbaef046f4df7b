"""Models start as drawn, are stored whole, and are read back only if they are whole."""

import json
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.clones import ROOT
from lab import files, models, params
from lab.models import Architecture

MLP = Architecture(inputs=20, outputs=3, hidden=(16, 8), activation="tanh", dropout=0.5)


def test_the_parameters_become_layers() -> None:
    p = params.load(ROOT / "tests/params.yaml")
    regression, softmax, mlp = (models.build(models.architecture(m, p), 1) for m in params.MODELS)
    assert [(n, tuple(w.shape)) for n, w in regression.named_parameters()] == [
        ("output.weight", (1, 2)), ("output.bias", (1,)),
    ]  # fmt: skip
    assert [tuple(w.shape) for w in softmax.parameters()] == [(10, 784), (10,)]
    assert list(models.linear_layers(mlp)) == ["hidden_1", "hidden_2", "output"]
    assert [tuple(w.shape) for w in mlp.parameters()] == [
        (256, 784), (256,), (128, 256), (128,), (10, 128), (10,),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("activation", "module"), [("relu", nn.ReLU), ("sigmoid", nn.Sigmoid), ("tanh", nn.Tanh)]
)
def test_the_network_computes_what_torchs_layers_do(
    activation: params.Activation, module: type[nn.Module]
) -> None:
    model = models.build(MLP.model_copy(update={"activation": activation}), 1)
    plain = nn.Sequential(nn.Linear(20, 16), module(), nn.Linear(16, 8), module(), nn.Linear(8, 3))
    for own, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        theirs.data.copy_(own.data)
    x = torch.linspace(-3, 3, 100).view(5, 20)
    assert torch.equal(models.predict(model, x), plain(x))


def test_initial_weights_have_the_deviation_that_the_docstring_names() -> None:
    def deviation(architecture: Architecture) -> list[float]:
        layers = models.linear_layers(models.build(architecture, 3)).values()
        assert not any(layer.bias.any() for layer in layers)
        return [layer.weight.std().item() for layer in layers]

    wide = Architecture(inputs=784, outputs=10)
    assert deviation(wide) == pytest.approx([0.01], rel=0.05)
    deep = Architecture(inputs=784, outputs=10, hidden=(400, 300))
    expected = [784**-0.5, 400**-0.5, 300**-0.5]
    assert deviation(deep) == pytest.approx([2**0.5 * e for e in expected], rel=0.05)
    assert deviation(deep.model_copy(update={"activation": "tanh"})) == pytest.approx(
        expected, rel=0.05
    )


def test_initial_weights_follow_from_the_seed_and_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (models.build(MLP, seed).hidden_1.weight for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)  # type: ignore[arg-type]
    assert not torch.equal(first, other)  # type: ignore[arg-type]


def test_dropout_silences_the_share_keeps_the_mean_and_differs_from_call_to_call() -> None:
    layer, x = models.Dropout(0.3, seed=1, layer=1), torch.ones(100, 1000)
    first, second = layer(x), layer(x)
    for y in (first, second):
        assert y.unique().tolist() == pytest.approx([0, 1 / 0.7])
        assert abs(float((y == 0).double().mean()) - 0.3) < 0.01
    assert not torch.equal(first, second)
    assert torch.equal(models.Dropout(0.3, seed=1, layer=1)(x), first)
    assert not torch.equal(models.Dropout(0.3, seed=1, layer=2)(x), first)
    assert torch.equal(layer.eval()(x), x)


def test_a_model_reads_back_and_its_file_is_always_the_same(tmp_path: Path) -> None:
    model = models.build(MLP, 1)
    digests = set()
    for name in ("a", "a-longer-name"):
        models.save(model, tmp_path / name)
        digests.add(files.sha256(tmp_path / name))
    assert len(digests) == 1
    back = models.load(tmp_path / "a")
    assert back.architecture == MLP and not back.training
    x = torch.ones(4, 20)
    assert torch.equal(models.predict(back, x), models.predict(model, x))


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(files.InputError, match=r"\(20,\), the data have \(21,\)"):
        models.predict(models.build(MLP, 1), torch.ones(4, 21))


def _header(path: Path) -> tuple[dict[str, object], bytes]:
    contents = path.read_bytes()
    (n,) = struct.unpack("<Q", contents[:8])
    return json.loads(contents[8 : 8 + n]), contents[8 + n :]


def _spoil(path: Path, how: str) -> None:
    contents = path.read_bytes()
    header, data = _header(path)
    architecture = json.loads(header["__metadata__"]["architecture"])  # type: ignore[index]
    match how:
        case "missing":
            path.unlink()
            return
        case "empty":
            contents = b""
        case "truncated":
            contents = contents[:-1]
        case "trailing":
            contents += b"\0"
        case "pickle":
            contents = b"\x80\x04cos\nsystem\n(S'exit'\ntR."
        case "nan":
            contents = contents[:-4] + struct.pack("<f", float("nan"))
        case "no architecture":
            del header["__metadata__"]
        case "other architecture":
            architecture["hidden"] = [16, 9]
        case "huge architecture":
            architecture["hidden"] = [65_536] * 64
        case "unknown activation":
            architecture["activation"] = "exec"
        case "other dtype":
            for tensor in header.values():
                if tensor.get("dtype") == "F32":  # type: ignore[attr-defined]
                    tensor["dtype"] = "I32"  # type: ignore[index]
    if how not in ("empty", "truncated", "trailing", "pickle", "nan"):
        if "__metadata__" in header:
            header["__metadata__"] = {"architecture": json.dumps(architecture)}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        contents = struct.pack("<Q", len(text)) + text + data
    path.write_bytes(contents)


@pytest.mark.parametrize(
    "how",
    ["missing", "empty", "truncated", "trailing", "pickle", "nan", "no architecture",
     "other architecture", "huge architecture", "unknown activation", "other dtype"],
)  # fmt: skip
def test_other_files_are_refused_in_one_line(tmp_path: Path, how: str) -> None:
    path = tmp_path / "model"
    models.save(models.build(MLP, 1), path)
    models.load(path)  # the control
    _spoil(path, how)
    with pytest.raises(files.InputError, match="/model: ") as error:
        models.load(path)
    assert "\n" not in str(error.value)
