"""Test `compare.statistics`: means, confidence intervals and paired tests."""

from types import SimpleNamespace

import pytest

from pipeline.compare.statistics import holm, mean, paired


def test_the_interval_of_a_mean_is_students():
    found = mean([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.std) == (3, 2.0, 1.0)
    # t(0.975) for 2 degrees of freedom
    assert found.half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


def test_one_value_has_no_interval_and_no_value_has_no_mean():
    assert mean([5.0]).half is None
    assert mean([]) is None


def test_a_paired_test_equals_that_of_scipy():
    from scipy import stats

    ours, theirs = {1: 91.0, 2: 93.5, 3: 91.5, 9: 0.0}, {1: 90.0, 2: 92.0, 3: 91.0, 4: 0.0}
    pairs = paired(ours, theirs)
    expected = stats.ttest_rel([91.0, 93.5, 91.5], [90.0, 92.0, 91.0])
    assert pairs.seeds == [1, 2, 3]  # only common seeds count
    assert pairs.difference == pytest.approx(1.0)
    assert pairs.p == pytest.approx(expected.pvalue)
    assert (pairs.low, pairs.high) == pytest.approx(tuple(expected.confidence_interval()))


@pytest.mark.parametrize(
    "ours, theirs, verdict",
    [
        ({1: 9.0}, {1: 1.0}, "1 common seed: no test"),
        ({1: 9.0}, {2: 1.0}, "0 common seeds: no test"),
        ({1: 9.0, 2: 8.0}, {1: 9.0, 2: 8.0}, "the same in every pair"),
        ({1: 9.0, 2: 8.0}, {1: 8.0, 2: 7.0}, "no spread: no test"),
        ({1: 9.0, 2: 9.5, 3: 9.2}, {1: 8.0, 2: 8.4, 3: 8.1}, "better"),
        ({1: 8.0, 2: 8.4, 3: 8.1}, {1: 9.0, 2: 9.5, 3: 9.2}, "worse"),
        ({1: 9.0, 2: 8.0}, {1: 8.5, 2: 8.4}, "no difference shown"),
    ],
)
def test_the_verdict_follows_from_the_paired_test(ours, theirs, verdict):
    pairs = paired(ours, theirs)
    holm([pairs])
    assert pairs.verdict == verdict


def test_the_p_values_of_several_tests_are_corrected_by_holm():
    tests = [SimpleNamespace(p=p, p_holm=None) for p in (0.03, 0.01, None, 0.04)]
    holm(tests)
    assert [test.p_holm for test in tests] == [
        pytest.approx(v) if v else None for v in (0.06, 0.03, None, 0.06)
    ]
