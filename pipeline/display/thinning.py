"""Decide which points of a long curve are shown, from the number of each point alone.

So every reader of a history shows the same points, whether it reads the file at once or in pieces,
and no point disappears when the curve grows.
"""

ALL = 4000


def shown(number: int) -> bool:
    """Whether the point of a step or an epoch is shown.

    The first 4,000 points are shown, then every 2nd of the next 4,000, every 4th of the next 8,000,
    and so on: 2,000 more points each time the curve doubles in length, 19,906 of a million.
    """
    doublings = (max(0, number - 1) // ALL).bit_length()
    return number % (1 << doublings) == 0
