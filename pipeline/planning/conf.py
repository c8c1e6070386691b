"""Find the configuration files: `conf/` of the checkout, or the copy in an installed wheel."""

from __future__ import annotations

from omegaconf import OmegaConf

from pipeline.records import rundir
from pipeline.records.provenance import PROJECT

INSTALLED = PROJECT / "pipeline" / "conf"  # where a wheel installs conf/
CONF = INSTALLED if INSTALLED.is_dir() else PROJECT / "conf"
OmegaConf.register_new_resolver("conf", lambda: str(rundir.shown(CONF)), replace=True)
