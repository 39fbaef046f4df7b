"""Prepare one data set: the files in data/<data set>."""

from lab import params, schema
from stages import argument, run


def main() -> None:
    """params.yaml in, the files of the data set out."""
    p = params.load()
    models = {entry.data: model for model, entry in p.models.items()}
    name = argument("Prepare one data set.", "data", models)
    p.dataset(models[name]).prepare(schema.folder(name), p)


if __name__ == "__main__":
    run(main)
