"""Images of your own, as `data=custom data.target=images:Shapes` reads them.

What has a length and gives pairs by number will do, such as this class and any map-style `Dataset`
of torch; so will a function that yields the pairs: `data.target=images:shapes`.
"""

import random
from collections.abc import Iterator

from PIL import Image, ImageDraw

CLASSES = ["circle", "square", "triangle"]
SIDES = {"square": 4, "triangle": 3}


class Shapes:
    """Drawings of one shape each; `classes` and `targets` as torchvision's data sets have them."""

    classes = CLASSES

    def __init__(self, images: int = 300, size: int = 24) -> None:
        self.targets = [number % len(CLASSES) for number in range(images)]
        self._size = size

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        return draw(number, self._size, CLASSES[self.targets[number]]), self.targets[number]


def shapes(images: int = 300, size: int = 24) -> Iterator[tuple[Image.Image, str]]:
    """Yield the same drawings with the names of their classes."""
    for number in range(images):
        name = CLASSES[number % len(CLASSES)]
        yield draw(number, size, name), name


def draw(seed: int, size: int, shape: str) -> Image.Image:
    """Return a shape of a random colour and place, the same for the same seed."""
    chance = random.Random(seed)
    dark, light = (tuple(chance.sample(tones, 3)) for tones in (range(100), range(120, 256)))
    picture = Image.new("RGB", (size, size), dark)
    radius = chance.uniform(size / 5, size / 3)
    centre = [chance.uniform(radius, size - radius) for _ in range(2)]
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.circle(centre, radius, light)
    else:
        pen.regular_polygon((*centre, radius), SIDES[shape], fill=light)
    return picture
