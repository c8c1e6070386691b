"""Where the configuration files are: `conf/` of the checkout, or its copy in a wheel."""

from __future__ import annotations

from omegaconf import OmegaConf

from pipeline.records import rundir
from pipeline.records.provenance import PROJECT

INSTALLED = PROJECT / "pipeline" / "conf"  # where a wheel puts it
CONF = INSTALLED if INSTALLED.is_dir() else PROJECT / "conf"
OmegaConf.register_new_resolver("conf", lambda: str(rundir.shown(CONF)), replace=True)
