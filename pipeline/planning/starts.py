"""Find the files a training starts from: weights, or the structure of another run.

Each is settled to one file, which is identified by its hash. The hash is frozen with the run and is
part of the question. So the same weights at another path are the same question, and other weights
at the same path are noticed.
"""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from omegaconf import MISSING

from pipeline.config import Config
from pipeline.config.base import Values
from pipeline.config.model import ASIDE, Structured
from pipeline.display.errors import UserError, nearest
from pipeline.planning import outline
from pipeline.planning.planned_stage import PlannedStage
from pipeline.records import disk, named, rundir, store
from pipeline.records.schemas import Result
from slurm import files

WEIGHTS, STRUCTURE = "model.pretrained", "method.structure"
PINS = {WEIGHTS: f"{WEIGHTS}_sha256", STRUCTURE: f"{STRUCTURE}_sha256"}
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".json")
LIBRARIES = ("timm", "torchvision")
HUBS = ("hf-hub:", "hf_hub:", "timm/")  # before names of timm's weights on the hub
SHOWN = 12  # digits of a hash that a message shows
GIVE = "give the run that it is of, by name, or a .safetensors or .pth of model.state_dict()"
NO_WEIGHTS = {  # first bytes of files that people mistake for weights, and what these files are
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` fetches what it points to",
    b"<": "a page of the web, not what was to be downloaded; download it again",
    b"\x89HDF": f"an HDF5 file, as Keras writes them, and torch cannot read it; {GIVE}",
    b"{": "a text (JSON), as that which lists several files of weights; load them with the library "
    "that wrote them, and give one .safetensors of model.state_dict()",
    b"\x1f\x8b": "compressed (gzip); unpack it, and give the file of weights in it",
}
ARCHIVES = {  # entries of zip archives that people mistake for weights, and what the archives are
    "archive_format": f"an exported program (.pt2), which holds code; {GIVE}",
    "constants.pkl": f"a TorchScript program, which holds code; {GIVE}",
}


def pin(values: Values) -> None:
    """Replace each name of a file or run in `values` by its path; put the file's hash beside it.

    Raises:
        UserError: there is no such file, run or name, or the file does not have the given hash.
    """
    for key, digest_key in PINS.items():
        section, name = key.split(".")
        settings = values.get(section)
        word = settings.get(name) if isinstance(settings, dict) else None
        if settings is None or not isinstance(word, str) or _is_none(word):
            continue  # checked later, by the schema and the rules of `config.sense`
        path = _found(key, word, values)
        digest, given = _digest(key, path), settings.get(f"{name}_sha256")
        if given not in (None, digest):
            raise UserError(
                f"{key}={word} has the SHA-256 {digest}, and {digest_key} says {given}; "
                "give that file, or leave out the hash"
            )
        settings |= {name: str(path), f"{name}_sha256": digest}
        if key == STRUCTURE and settings.get("start", "") is None:
            settings["start"] = _of_run(path, "method").get("start", "drawn")


def _is_none(word: str) -> bool:
    return word in ("", MISSING) or not word.isprintable()


def _found(key: str, word: str, values: Values) -> Path:
    """Return the file that a word means: a path, a run's file, or weights that a library named."""
    if "://" in word:
        raise UserError(
            f"{key}={word} is an address, and nothing is downloaded; fetch it where there is a "
            "network (curl -LO), and give the file"
        )
    path = rundir.absolute(word)
    named = ("/" not in word or word.startswith(HUBS)) and not word.endswith(SUFFIXES)
    if named and _is_run(run := rundir.run_dir(Path(str(values["root"])), word)):
        return _in_run(key, run)
    if not named or rundir.there(path):
        return _in_run(key, path) if _is_run(path) else path
    model = values.get("model")
    if key == WEIGHTS and isinstance(model, dict) and model.get("family") in LIBRARIES:
        return _of_library(str(model["family"]), str(model.get("name")), word)
    runs = sorted(run.name for run in _runs(Path(str(values["root"]))))
    cure = nearest(word, runs) if runs else f"there are no runs in {values['root']}"
    raise UserError(f"{key}={word} is neither a file nor a run; {cure}")


def _runs(root: Path) -> Iterator[Path]:
    folder = rundir.run_dir(root, "")
    return (run for run in (folder.iterdir() if folder.is_dir() else ()) if _is_run(run))


def _is_run(path: Path) -> bool:
    with suppress(OSError):  # e.g. no permission: whoever reads the file reports the error
        return all((path / name).is_file() for name in ("config.yaml", "run.json"))
    return False


def _in_run(key: str, run: Path) -> Path:
    """Return the file of a run that `key` asks for: its fused weights, or its structure.

    Raises:
        UserError: the stage that writes it is not finished, or the file was changed since.
    """
    stage, name = ("fuse", "model.safetensors") if key == WEIGHTS else ("train", "structure.json")
    if not (run / stage / rundir.RESULT).exists():
        cure = named.relaunch(run.parent.parent, run.name, "stage=all")
        raise UserError(
            f"{key}={run.name} is a run whose {stage} is not finished; `{cure}` goes on with it"
        )
    path = run / stage / name
    known = store.read(Result, run / stage).outputs.get(name)
    if path.is_file() and known is not None and _digest(key, path) != known.sha256:
        raise UserError(f"{key}: {path} is not as {stage} wrote it; restore it")
    return path


def _of_library(family: str, name: str, word: str) -> Path:
    found = outline.weights(family, name, word)
    if isinstance(found, outline.Unknown):
        raise UserError(
            f"{WEIGHTS}={word} is neither a file nor a run, and whether {family} has it is not "
            f"known: {found.why}; give a file"
        )
    return found


def _digest(key: str, path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        UserError: the file cannot be read, is empty, or is of a kind that holds no weights.
    """
    try:
        with files.opened(path) as file:
            begin, stat = file.read(64), os.fstat(file.fileno())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{key}={path} is not there; give a file, or a run by its name") from None
    except OSError as error:
        if error.errno == errno.EINVAL and path.is_dir():
            raise UserError(f"{key}={path} is a folder and no run; give a file in it") from None
        raise UserError(f"{key}={path} cannot be read ({error.strerror}); fix the cause") from None
    if key == WEIGHTS and (what := _no_weights(path, begin)):
        raise UserError(f"{key}={path} is {what}")
    if not begin:
        raise UserError(f"{key}={path} is empty; restore it")
    return _hash(path, stat.st_size, stat.st_mtime_ns)


def _no_weights(path: Path, begin: bytes) -> str | None:
    """Return what kind of file this is, if its first bytes show that it holds no weights."""
    if begin[8:9] == b"{":  # safetensors: JSON after the 8 bytes of its length
        return None
    if path.suffix == ".onnx":
        return f"a network in ONNX, not its weights by name; {GIVE}"
    if begin.startswith(b"PK"):
        return _of_archive(path)
    marks = (what for mark, what in NO_WEIGHTS.items() if begin.lstrip().startswith(mark))
    return next(marks, None)


def _of_archive(path: Path) -> str | None:
    """Return what a zip archive is; None if it may hold weights written by `torch.save`."""
    try:
        names = zipfile.ZipFile(path).namelist()
    except (OSError, zipfile.BadZipFile):
        return None  # truncated: torch will report where
    if names and all(name.endswith(".npy") for name in names):
        return f"an archive of numpy arrays (.npz), which torch cannot read; {GIVE}"
    inside = {name.partition("/")[2] for name in names}
    return next((what for name, what in ARCHIVES.items() if name in inside), None)


@cache  # each run of a sweep calls this
def _hash(path: Path, size: int, changed: int) -> str:
    return disk.sha256(path)


def _of_run(path: Path, section: str) -> Values:
    """Return a section of the settings of the run that a file belongs to; {} if to none."""
    run = path.parent.parent
    return dict(rundir.read_yaml(run / "config.yaml")[section]) if _is_run(run) else {}


def changed_files(config: Config, plan: list[PlannedStage]) -> list[str]:
    """Check that the files a training starts from are present and unchanged; return notes.

    A training that continues from a checkpoint no longer needs these files. For such a training, a
    missing or changed file is a note instead of an error.

    Raises:
        UserError: a file is missing or changed, or a structure belongs to another network.
    """
    train = next(planned for planned in plan if planned.stage.name == "train")
    if not train.runs:
        return []
    begun = not train.repeats and any((train.dir / "checkpoints").glob("step-*.json"))
    notes = []
    for key, path, digest in _pinned(config):
        wrong = _wrong(key, path, digest)
        if wrong and not begun:
            raise UserError(f"{wrong}; restore it, or choose another name= to train from the start")
        notes += [f"{wrong}; the training goes on from its checkpoint"] if wrong else []
    if isinstance(config.method, Structured) and not begun:
        _check_run(config, Path(config.method.structure))
    return notes


def _pinned(config: Config) -> Iterator[tuple[str, Path, str | None]]:
    for key in PINS:
        section, name = key.split(".")
        settings = getattr(config, section)
        if (path := getattr(settings, name, None)) is not None:
            yield key, Path(path), getattr(settings, f"{name}_sha256")


def _wrong(key: str, path: Path, digest: str | None) -> str | None:
    try:
        found = _digest(key, path)
    except UserError as error:
        return str(error).partition(";")[0]
    if found == digest:
        return None
    return (
        f"{key}={path} has changed since the run was frozen "
        f"(SHA-256 {found[:SHOWN]}… instead of {str(digest)[:SHOWN]}…)"
    )


def _check_run(config: Config, path: Path) -> None:
    """Refuse the structure of a run of another network, or of one that has not grown.

    Raises:
        UserError: the message names the difference.
    """
    key = f"{STRUCTURE}={path}"
    try:
        content = rundir.read_json(path)
    except UserError:
        content = None
    if not isinstance(content, dict) or "blocks" not in content:
        raise UserError(f"{key} is not a structure.json of a run; give a run that has grown")
    if not content["blocks"]:
        raise UserError(
            f"{key} has no branches: nothing had grown in the end; use method=plain, or a run that "
            "has grown"
        )
    if not (model := _of_run(path, "model")):
        return
    method = _of_run(path, "method")
    if method["kind"] == "static":
        raise UserError(
            f"{key} is of a run that did not grow; its branches are those of "
            f"method={method['name']}, which gives them to a network from the first step"
        )
    ours = config.model.model_dump(mode="json", exclude=set(ASIDE))
    differing = [f"model.{k} {model.get(k)} → {ours[k]}" for k in ours if ours[k] != model.get(k)]
    if differing:
        raise UserError(
            f"{key} is of another network ({', '.join(differing)}); choose that one, or a run of "
            "this one"
        )
