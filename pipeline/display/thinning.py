"""Decide which points of a long curve are shown, by their number alone.

Every reader of a history shows the same points, whether it reads all at once or in pieces, and no
point is dropped later when the curve grows.
"""

ALL = 4000


def shown(number: int) -> bool:
    """Return whether the point of a step or an epoch is shown.

    The first 4,000 points are shown, every 2nd of the next 4,000, every 4th of the next 8,000, and
    so on: 2,000 more each time the curve doubles in length, 19,906 of a million.
    """
    doublings = (max(0, number - 1) // ALL).bit_length()
    return number % (1 << doublings) == 0
