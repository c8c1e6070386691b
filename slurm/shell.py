"""The environment in which SLURM's commands are called: nothing in it changes what they answer.

Each of them takes options from the shell, by its own name or SLURM's: SQUEUE_PARTITION hides jobs,
SLURM_TIME_FORMAT makes times unreadable, SCANCEL_STATE spares jobs. What a shell says to sbatch is
not lost: see `slurm.wishes`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

OPTION = re.compile(
    r"(SLURM|SLURMD|SBATCH|SALLOC|SRUN|SQUEUE|SACCT|SACCTMGR|SINFO|SCONTROL|SCANCEL)_"
)
KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}  # which cluster, and who we are there


def clean(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return an environment without options of SLURM's commands."""
    return {
        name: value for name, value in environment.items() if name in KEPT or not OPTION.match(name)
    }
