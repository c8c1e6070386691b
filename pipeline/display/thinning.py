"""Which points of a long curve are shown: a rule of their number alone.

Whoever reads a history, whole or in pieces, and however often it was interrupted, shows the same
points, and none of them has to be taken back when the curve grows.
"""

ALL = 4000


def shown(number: int) -> bool:
    """Return whether the point of a step or an epoch is shown.

    The first 4,000 are, every 2nd of the next 4,000, every 4th of the next 8,000, and so on: 2,000
    more each time that the curve becomes twice as long, 19,906 of a million.
    """
    doublings = (max(0, number - 1) // ALL).bit_length()
    return number % (1 << doublings) == 0
