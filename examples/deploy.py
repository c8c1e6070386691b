"""Classify images with an exported file, and nothing else from this project.

    python examples/deploy.py outputs/runs/demo/fuse/model.onnx picture.png

A `.onnx` file needs onnxruntime and pillow; a `.pt2` or `.ts` file needs torch and pillow, and
`--trust`, for it can hold code, which runs as you. What an image has to go through, and the names
of the classes, are in the model card inside the file.
"""

import argparse
import json
import math
import stat
import sys
import warnings
import zipfile
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

Image.init()
FORMATS = sorted(Image.OPEN.keys() - {"EPS"})  # a program, which Pillow would have Ghostscript run
LARGEST_CARD = 2**26  # bytes; a small archive may claim more than fits into memory
LARGEST_SIDE = 2**14  # pixels that a card may ask for
CARD_ERRORS = (
    LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, json.JSONDecodeError,
)  # fmt: skip
MAX_PIXELS, MAX_ASPECT = 100_000_000, 50  # as in prep; a small image may claim more, too


def main():
    """Print the most likely classes of each image."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="model.onnx, model.int8.onnx, model.pt2, model.ts")
    parser.add_argument("images", type=Path, nargs="+", help="JPEG, PNG, … of any size")
    parser.add_argument("--trust", action="store_true", help="run the code of a .pt2 or .ts file")
    parser.add_argument("--top", type=count, default=3, help="classes shown (default: 3)")
    arguments = parser.parse_args()
    try:
        check(arguments.model)  # a runtime has words of its own for what is not there
        if arguments.model.suffix == ".onnx":
            run, card = load_onnx(arguments.model)
        else:
            run, card = load_torch(arguments.model, arguments.trust)
        classes = card["preprocess"]["classes"]
        for path in arguments.images:
            check(path)
            scores = run(prepare(path, card["preprocess"]))
            if len(scores) != len(classes):
                raise LookupError(f"{len(classes)} classes, {len(scores)} scores")
            if not all(map(math.isfinite, scores)):
                raise ValueError(f"{arguments.model}: its scores for {path} are not finite")
            probabilities = softmax(scores)
            best = sorted(range(len(classes)), key=lambda i: -probabilities[i])[: arguments.top]
            told = ", ".join(f"{classes[i]} {100 * probabilities[i]:.1f} %" for i in best)
            print(visible(f"{path}: {told}"))
    except CARD_ERRORS as error:
        print(visible(f"error: {arguments.model}: its model card is not one of ours ({error})"),
              file=sys.stderr)  # fmt: skip
        return 2
    except (OSError, ValueError, MemoryError) as error:
        named = isinstance(error, OSError) and error.filename
        told = f"{error.filename}: {error.strerror}" if named else error
        told = "memory is too small for this" if isinstance(error, MemoryError) else told
        print(visible(f"error: {told}"), file=sys.stderr)
        return 2
    return 0


def count(text):
    """Return a whole number from 1 on."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def check(path):
    """Refuse what cannot be read, and a FIFO, which would block until somebody writes to it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a regular file")
    path.open("rb").close()


def prepare(path, told):
    """Return an image as a flat list of numbers, as in evaluation, and its shape in a batch."""
    short, size = told["resize"], told["image_size"]
    if not (0 < short <= LARGEST_SIDE and 0 < size <= LARGEST_SIDE):
        raise LookupError(f"resize {short}, image_size {size}")
    mode = {1: "L", 3: "RGB"}.get(len(told["mean"]))
    if mode is None or len(told["std"]) != len(told["mean"]):
        raise LookupError("mean and std are of one or three channels")
    image = picture(path).convert(mode)
    width, height = image.size
    scale = short / min(width, height)
    image = image.resize(
        (short, int(height * scale)) if width <= height else (int(width * scale), short),
        Image.Resampling[told["interpolation"].upper()],
    )
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    return [
        (value / 255 - mean) / std
        for channel, mean, std in zip(image.split(), told["mean"], told["std"], strict=True)
        for value in channel.tobytes()
    ], (1, len(mode), size, size)


def picture(path):
    """Return an image upright, as 8-bit RGB."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width}x{height} pixels are more than {MAX_PIXELS:,}")
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise ValueError(f"{width}x{height} pixels are thinner than 1:{MAX_ASPECT}")
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PPM"):
                image = image.point(lambda value: value * (1 / 257) + 0.5).convert("L")
            if image.mode in ("I", "F"):
                raise ValueError("the range of its pixels is not known; store it as 8 or 16 bits")
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise ValueError(f"{path}: no image that Pillow knows") from None
    except Exception as error:  # Pillow has a class for each kind of damage
        raise ValueError(f"{path}: {error or type(error).__name__}") from None


def load_onnx(path):
    """Return a function from a prepared image to scores, and the model card."""
    import numpy
    import onnxruntime

    try:
        onnxruntime.set_default_logger_severity(4)  # errors are raised, and need no second message
        session = onnxruntime.InferenceSession(path)
    except Exception as error:  # onnxruntime has a class of its own for each reason
        raise ValueError(f"{path} cannot be loaded: {reason(error)}") from None

    def run(prepared):
        values, shape = prepared
        images = numpy.array(values, dtype=numpy.float32).reshape(shape)
        try:
            return session.run(None, {"images": images})[0][0].tolist()
        except Exception as error:
            raise ValueError(f"{path} cannot be run: {reason(error)}") from None

    return run, json.loads(session.get_modelmeta().custom_metadata_map["card.json"])


def reason(error):
    """Return what onnxruntime says behind the number and the name of an error, and the path."""
    return str(error).partition("\n")[0].rpartition(" : ")[2].rpartition("failed:")[2].strip()


def load_torch(path, trust):
    """Return a function from a prepared image to scores, and the model card."""
    card = read_card(path)
    if not trust:
        raise ValueError(
            f"{path} is not opened: it may hold code, to run as you; add --trust if you know who "
            "made it, or take the .onnx file, which holds none"
        )
    import torch

    try:
        script = path.suffix == ".ts"
        network = torch.jit.load(path) if script else torch.export.load(path).module()
    except Exception as error:  # torch has a class of its own for each reason, too
        raise ValueError(f"{path} cannot be loaded: {str(error).partition(chr(10))[0]}") from None

    def run(prepared):
        values, shape = prepared
        try:
            with torch.inference_mode():
                return network(torch.tensor(values).reshape(shape))[0].tolist()
        except Exception as error:
            raise ValueError(f"{path} cannot be run: {str(error).partition(chr(10))[0]}") from None

    return run, card


def read_card(path):
    """Return the model card in a `.pt2` or `.ts` file, a ZIP archive; nothing in it is run."""
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            ours = [m for m in archive.infolist() if m.filename.endswith("/extra/card.json")]
            if not ours or ours[0].file_size > LARGEST_CARD:
                raise ValueError("it has no model card")
            return json.loads(archive.read(ours[0]))
        except Exception as error:  # zipfile has a class for each kind of damage
            raise ValueError(f"{path} is not an exported network, or is damaged: {error}") from None


def visible(text):
    """Return text with control characters as escapes: the names of classes come from a file."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def softmax(scores):
    """Return probabilities."""
    highest = max(scores)
    exponentials = [math.exp(score - highest) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


if __name__ == "__main__":
    sys.exit(main())
