"""Test which states of a job mean that it is active or held."""

import pytest

from tests.slurm.test_requeue import entry


@pytest.mark.parametrize(
    ("state", "active"),
    [
        ("RUNNING", True), ("PENDING", True), ("COMPLETING", True), ("REQUEUED", True),
        ("SUSPENDED", True), ("COMPLETED", False), ("CANCELLED", False), ("TIMEOUT", False),
        ("PREEMPTED", False), ("NODE_FAIL", False), ("SPECIAL_EXIT", True), ("OF_TOMORROW", True),
    ],
)  # fmt: skip
def test_only_a_job_that_may_still_work_is_active(state, active):
    assert entry(state=state).active is active


@pytest.mark.parametrize(
    ("state", "reason", "held"),
    [
        ("PENDING", "JobHeldUser", True), ("PENDING", "launch failed requeued held", True),
        ("PENDING", "job_requeued_in_held_state", True), ("PENDING", "JobHoldMaxRequeue", True),
        ("SPECIAL_EXIT", "None", True), ("REQUEUE_HOLD", "None", True),
        ("PENDING", "Resources", False), ("PENDING", "QOSUsageThreshold", False), ("RUNNING", "None", False),
    ],
)  # fmt: skip
def test_a_job_that_waits_for_somebody_to_release_it_is_held(state, reason, held):
    assert entry(state=state, reason=reason).held is held
