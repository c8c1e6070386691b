"""Test the stars of `compare`: only a paired test over common seeds makes a group worth its cost."""

import json

import pytest

from pipeline.compare import table
from pipeline.compare.answer import answer
from pipeline.compare.collect import Run

CLEAR = {seed: 2.0 + 0.1 * (seed % 3) for seed in range(5)}  # better than BASE for each seed
BASE = dict.fromkeys(range(5), 0.0)
VAGUE = {0: 3.0, 1: -1.0, 2: 2.0, 3: -2.0, 4: 1.0}


def compared(**groups):
    """Compare groups, each given by its accuracies (minus 90) by seed, and its cost in plain steps."""
    runs = [
        Run(
            name=f"{name}-{seed}",
            seed=seed,
            settings={"data.name": "d", "method.name": name, "model.name": more.get("model", "m")},
            metrics={"eval/fused/top1": 90 + value, "train/seconds": 9.0}
            | ({} if work is None else {"train/plain_steps": work}),
            wall_hours=1.0,
        )
        for name, (values, work, *rest) in groups.items()
        for more in [rest[0] if rest else {}]
        for seed, value in values.items()
    ]
    return answer("t", runs, [], False)


def only(values, *seeds):
    return {seed: values[seed] for seed in seeds}


@pytest.mark.parametrize(
    ("groups", "stars"),
    [
        ({"plain": (BASE, 100), "dbb": (CLEAR, 300)}, {"plain", "dbb"}),
        ({"plain": (BASE, 100), "dbb": (VAGUE, 300)}, {"plain"}),  # no difference shown
        ({"plain": (CLEAR, 100), "dbb": (BASE, 300)}, {"plain"}),  # worse and more expensive
        ({"plain": (BASE, 300), "dbb": (CLEAR, 100)}, {"dbb"}),  # better and cheaper
        ({"plain": (BASE, 100), "dbb": (CLEAR, 100)}, {"dbb"}),  # better at the same price
        ({"plain": (only(BASE, 0), 100), "dbb": (only(CLEAR, 0), 300)}, set()),  # one seed
        (
            {"plain": (only(BASE, 0, 1), 100), "dbb": (only(CLEAR, 2, 3), 300)},
            set(),
        ),  # no common seed
        (
            {"plain": (only(BASE, 0, 1), 100), "dbb": (only(CLEAR, 1, 2), 300)},
            set(),
        ),  # one common seed
        ({"plain": (BASE, 100), "dbb": (dict.fromkeys(range(5), 1.0), 300)}, set()),  # no spread
        ({"plain": (BASE, None), "dbb": (CLEAR, 300)}, set()),  # the cost of plain is unknown
        ({"plain": (BASE, 100), "dbb": (CLEAR, None)}, set()),
        (
            {"plain": (BASE, 100), "dbb": (CLEAR, 300, {"model": "n"})},
            set(),
        ),  # the plain steps of another model
        ({"plain": (BASE, 100), "acb": (BASE, 200), "dbb": (CLEAR, 300)}, {"plain", "dbb"}),
    ],
)
def test_a_group_has_a_star_if_it_is_worth_its_cost(groups, stars):
    result = compared(**groups)
    assert {group.settings["method.name"] for group in result.groups if group.pareto} == stars


def test_a_better_mean_over_other_seeds_earns_no_star():
    # worse for the common seeds
    easy = only(dict.fromkeys(range(9), 5.0), 5, 6) | only(VAGUE, 1, 3)
    result = compared(plain=(BASE, 100), dbb=(easy, 300))
    assert [g.settings["method.name"] for g in result.groups if g.pareto] == ["plain"]


def test_an_unknown_cost_is_noted():
    result = compared(plain=(BASE, 100), dbb=(CLEAR, None))
    unknown = next(group for group in result.groups if group.settings["method.name"] == "dbb")
    assert (unknown.cost, table.work(unknown.cost)) == (None, "–")
    assert any("dbb-0" in note and "not known" in note for note in result.notes)
    assert any(note.startswith("no ★") for note in result.notes)
    facts = json.loads(result.to_json())
    assert (facts["cost_unit"], facts["time_unit"]) == ("plain steps", "hours")
