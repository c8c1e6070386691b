"""Test `display.errors`: the most informative line of an error, and suggestions of valid names."""

import pytest

from pipeline.display import exits
from pipeline.display.errors import gist, nearest

OF_A_WORKER = """Caught ValueError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "worker.py", line 1, in fetch
ValueError: no such image
"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("out of memory", "RuntimeError: out of memory"),
        ("\n  first \nsecond\n", "RuntimeError: first"),
        ("", "RuntimeError: no reason given"),
        (OF_A_WORKER, "ValueError: no such image"),
        ("no Traceback here\nmore", "RuntimeError: no Traceback here"),
    ],
)
def test_the_most_informative_line_of_an_error_is_shown(message, expected):
    assert gist(RuntimeError(message)) == expected


@pytest.mark.parametrize(
    ("codes", "worst"),
    [((0, 0), 0), ((0, 130), 130), ((130, 1), 1), ((1, 2, 130), 2)],
)
def test_a_failure_counts_more_than_a_run_that_was_cancelled(codes, worst):
    assert exits.worst(*codes) == worst


MANY = [f"bn{n}.weight" for n in range(50)]


@pytest.mark.parametrize(
    ("word", "valid", "expected"),
    [
        ("bn7.weigth", MANY, "did you mean 'x=bn7.weight'?"),
        ("nothing", MANY, "there are 50, e.g. bn0.weight, bn1.weight, bn2.weight"),
        ("nothing", MANY[:2], "valid are: bn0.weight, bn1.weight"),
        ("vit", ["vit_b_16", *MANY], "did you mean 'x=vit_b_16'?"),
    ],
)
def test_only_a_similar_name_is_suggested(word, valid, expected):
    assert nearest(word, valid, "x=") == expected
