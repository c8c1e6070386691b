"""Write tar shards of samples, and open them as the source `webdataset`."""

import io
import tarfile

from pipeline.data.sources.choose import source
from tests.pipeline.data.preparing import encoded, picture, settings

IMAGES = [encoded(picture(n)) for n in range(12)]


def sample(number, label=None, key="{:04d}", ending="jpg"):
    """Return the two members of a sample, its image and its class, as bytes by name."""
    name = key.format(number)
    label = number % 2 if label is None else label
    return {f"{name}.{ending}": IMAGES[number], f"{name}.cls": str(label).encode()}


def samples(*numbers, **changes):
    return {name: data for n in numbers for name, data in sample(n, **changes).items()}


def tar(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar(members))
    return path


def shards(root):
    """Write two training shards and one validation shard, of four samples each; return the folder."""
    write(root / "x-train-0000.tar", samples(0, 1, 2, 3))
    write(root / "x-train-0001.tar", samples(4, 5, 6, 7))
    write(root / "x-val-0000.tar", samples(8, 9, 10, 11))
    return root


def found(root, val_fraction=None, train=None, val=None):
    return source(
        settings(name="webdataset", root=str(root), val_fraction=val_fraction, train=train, val=val)
    )
