"""Write tables of images, and folders of them, as the library of Hugging Face does."""

import json

import pyarrow as pa
from pyarrow import parquet

from pipeline.data.sources.choose import source
from tests.pipeline.data.preparing import encoded, picture, settings

IMAGES = [encoded(picture(n)) for n in range(12)]


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


CLASSES = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}, "image": {"_type": "Image"}}


def table(images=IMAGES[:8], labels=None, noted=CLASSES, **columns):
    """Return a table of images and labels with the metadata of Hugging Face."""
    rows = [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(images)]
    labels = [n % 2 for n in range(len(images))] if labels is None else labels
    found = pa.table({"image": pa.array(rows, STRUCT), "label": labels, **columns})
    note = json.dumps({"info": {"features": noted}})
    return found.replace_schema_metadata({"huggingface": note} if noted else None)


def write(path, content, rows=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(content, path, row_group_size=rows)


def saved(folder, content, rows=3):
    """Write a folder as `save_to_disk` does, with a cache file as `map` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("data-00000-of-00001.arrow", "cache-1234.arrow"):
        with (
            pa.OSFile(str(folder / name), "wb") as file,
            pa.ipc.new_stream(file, content.schema) as to,
        ):
            to.write_table(content, rows)
    named = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(named))


def both(root, train, val, names=("data/train-00000-of-00001", "data/validation-00000-of-00001")):
    for name, content in zip(names, (train, val), strict=True):
        write(root / f"{name}.parquet", content)


def found(root, val_fraction=None, image_column=None, label_column=None):
    return source(
        settings(
            name="parquet", root=str(root), val_fraction=val_fraction,
            image_column=image_column, label_column=label_column,
        )
    )  # fmt: skip
