"""Record one trained and evaluated model as an MLflow run: results/<model>/receipt.json.

The only stage with an effect outside its outputs. The receipt says what was recorded
by its contents, not by time or run, so it is the same wherever the result is.
"""

from pathlib import Path

from lab import files, params, tracking
from stages import model_argument, run


def main() -> None:
    """All that the other stages wrote for the model in, one MLflow run and its receipt out."""
    name = model_argument("Record one model's results as an MLflow run.")
    p = params.load()
    folder = Path("results", name)
    data = sorted(params.DATA[name].iterdir())
    model, metrics, history = (
        folder / f for f in ("model.safetensors", "metrics.json", "history.csv")
    )
    tables = sorted(folder.glob("*.csv"))
    digests = {path: files.sha256(path) for path in (*data, *tables, metrics, model)}
    tracking.record(
        name,
        params=p.seen_by(name),
        history=files.read_csv(history),
        metrics=files.read_json(metrics),
        digests=digests,
        data=data,
        artifacts=[*tables, metrics, Path("params.yaml")],
        model=model,
        shape=p.shape(name),
    )
    receipt = {path.as_posix(): digest for path, digest in digests.items()}
    files.write_json(
        folder / "receipt.json", {"fingerprint": tracking.fingerprint(digests), "sha256": receipt}
    )


if __name__ == "__main__":
    run(main)
