"""Convert images and classes from the user's code to encoded bytes and labels."""

from __future__ import annotations

import io
import operator
from typing import TYPE_CHECKING, Any

from pipeline.data.sources.arrays import png
from pipeline.data.sources.classes import Label
from pipeline.display.errors import UserError

if TYPE_CHECKING:
    import numpy as np

KINDS = "a PIL image, encoded bytes, or a uint8 array or tensor"
SHAPES = "(H, W), (H, W, 3) or, of a tensor, (3, H, W)"


class Unfit(Exception):
    """An item is not a pair of an image and its class; the message says why."""


def pair(item: Any) -> tuple[bytes, Label]:
    """Return the encoded bytes and the label of an item.

    Raises:
        Unfit: the item is not a pair of an image and its class.
    """
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise Unfit(f"it is of type {_kind(item)}, no pair (image, class)")
    return encoded(item[0]), label(item[1])


def label(value: Any) -> Label:
    """Return a class as a name or an integer.

    Raises:
        Unfit: the class is neither.
    """
    if isinstance(value, str):
        found: Label = str(value)
    else:
        try:
            found = operator.index(value)
        except (TypeError, ValueError, RuntimeError):  # an array or a tensor
            raise Unfit(
                f"its class is of type {_kind(value)}; give a name or whole number"
            ) from None
    if found == "" or (isinstance(found, int) and found < 0):
        raise Unfit(f"its class is {found!r}; give a name, or a number from 0")
    return found


def encoded(image: Any) -> bytes:
    """Encode an image without loss.

    Raises:
        Unfit: `image` is not an image of a supported type.
    """
    import numpy as np
    from PIL import Image

    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return _written(image)
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if hasattr(image, "detach"):  # a tensor; its channels come first
        array = image.detach().cpu().numpy()
        return _of_array(array if array.ndim == 2 else np.moveaxis(array, 0, -1))
    raise Unfit(f"its image is of type {_kind(image)}; give {KINDS}")


def class_names(given: Any, where: str) -> tuple[str, ...]:
    """Return the names in an attribute `classes`, as torchvision's data sets have it; else ().

    Raises:
        UserError: the attribute is not a list of names.
    """
    attribute = getattr(given, "classes", ())
    names = tuple(attribute) if hasattr(attribute, "__iter__") else (attribute,)
    if isinstance(attribute, str) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: classes is {attribute!r:.60}; it must be a list of names")
    return tuple(map(str, names))


def _written(image: Any) -> bytes:
    """Encode a PIL image and its orientation as PNG, or as TIFF if PNG lacks the mode."""
    for kind in ("PNG", "TIFF"):
        stream = io.BytesIO()
        try:
            image.save(stream, kind, exif=image.getexif())
        except (OSError, KeyError, ValueError):
            continue
        return stream.getvalue()
    raise Unfit(f"its image has the mode {image.mode}, which no file holds; convert it to RGB")


def _of_array(array: np.ndarray) -> bytes:
    if array.dtype.name != "uint8":
        raise Unfit(
            f"its image is {array.dtype.name}; give uint8, 0 to 255: the training normalises it"
        )
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not array.size or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise Unfit(f"its image has the shape {array.shape}; give {SHAPES}")
    return png(array)


def _kind(value: Any) -> str:
    return type(value).__name__
