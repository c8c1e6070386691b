"""Make the environment for SLURM's commands, without variables that change their output.

SLURM's commands read options from the environment: SQUEUE_PARTITION hides jobs, SLURM_TIME_FORMAT
makes times unparsable, SCANCEL_STATE spares jobs. `slurm.wishes` obeys or refuses the variables for
sbatch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

OPTION = re.compile(
    r"(SLURM|SLURMD|SBATCH|SALLOC|SRUN|SQUEUE|SACCT|SACCTMGR|SINFO|SCONTROL|SCANCEL)_"
)
KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}  # they identify the cluster and the user


def clean(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment without the options of SLURM's commands."""
    return {
        name: value for name, value in environment.items() if name in KEPT or not OPTION.match(name)
    }
