"""Fill a folder with wheels for a machine with a GPU and no network.

    python -m benchmarks.gpu_campaign.wheels .wheels --python 3.12

The wheels have the versions that are installed here, and are for Linux on x86-64. A package that is
distributed only as source is built here, if it is plain Python. On the machine, from the folder of
the project:

    python3 -m pip install --no-index --no-deps --target /tmp/site .wheels/*.whl
    PYTHONPATH=/tmp/site python3 -m benchmarks.gpu OUT

The machine must have torch, torchvision, timm, numpy, scipy, pillow, scikit-learn, safetensors,
PyYAML, rich, cloudpickle and pytest; name those that it lacks on this command line.
"""

import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

NAMES = (
    "hydra-core", "omegaconf", "antlr4-python3-runtime", "pydantic", "pydantic-core",
    "annotated-types", "typing-inspection", "submitit",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("names", nargs="*", metavar="NAME", help="packages to carry beside these")
    parser.add_argument("--python", default="3.12", help="of the machine")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    failed = [
        name
        for name in dict.fromkeys([*NAMES, *options.names])
        if not fetched(f"{name}=={version(name)}", options.folder, options.python)
    ]
    for name in failed:
        print(f"{name}: there is no wheel for Python {options.python}", file=sys.stderr)
    return 1 if failed else 0


def fetched(package: str, folder: Path, python: str) -> bool:
    """Put the wheel of a package into the folder; return whether that succeeded."""
    pip = [sys.executable, "-m", "pip", "--quiet"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    ready = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]
    downloaded = subprocess.run(
        [*pip, "download", "--no-deps", *ready, "--dest", str(folder), package], capture_output=True
    )
    if downloaded.returncode == 0:
        return True
    built = subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), package])
    name = package.partition("==")[0].replace("-", "_")
    return built.returncode == 0 and any(folder.glob(f"{name}-*-none-any.whl"))


if __name__ == "__main__":
    sys.exit(main())
