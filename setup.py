"""The packages that are installed: conf/ comes along as `pipeline.conf`; see pyproject.toml."""

from setuptools import find_packages, setup

NAMES = ("dyrep", "pipeline", "slurm")

setup(
    packages=[
        *find_packages(include=[pattern for name in NAMES for pattern in (name, f"{name}.*")]),
        "pipeline.conf",
    ],
    package_dir={"pipeline.conf": "conf"},
)
