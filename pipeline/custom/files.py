"""Find the files of a target: its module, and the user's modules that it imports.

The files are parsed and not imported: a launch imports no torch, and packages that the code needs
may be missing here. (`modulefinder` of the standard library ignores folders without `__init__.py`.)
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from pipeline.display.errors import UserError
from pipeline.records.snapshot import Files

OURS = ("dyrep", "pipeline", "slurm")


def find(key: str, target: str) -> Files:
    """Return the user's files of `package.module:function`; none for an installed package.

    Args:
        key: name of the setting, for messages.
        target: its value.

    Raises:
        UserError: there is no such module, or a file is not valid Python.
    """
    module = target.partition(":")[0]
    top = module.partition(".")[0]
    if top in OURS or top in sys.stdlib_module_names:
        whose = "this project" if top in OURS else "Python itself"
        raise UserError(f"{key}={target}: {top} is a module of {whose}; give yours another name")
    if any(_module(root, module) for root in _roots()):
        return _with_imports(module)
    theirs = any(_module(root, top) for root in _roots())
    if theirs or not _is_installed(top):
        raise UserError(f"{key}={target}: {_missing(module)}")
    return {}


def release(target: str) -> str:
    """Return `name==version` of the installed package that holds a target."""
    top = target.partition(":")[0].partition(".")[0]
    names = importlib.metadata.packages_distributions().get(top, [top])
    try:
        return f"{names[0]}=={importlib.metadata.version(names[0])}"
    except importlib.metadata.PackageNotFoundError:
        return f"{top}==unknown"


def installed(path: Path) -> bool:
    """Whether a file or folder belongs to Python or to an installed package."""
    return any(path.is_relative_to(folder) for folder in _installed())


def _installed() -> list[Path]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    names = [sysconfig.get_paths()[kind] for kind in kinds]
    names += [*site.getsitepackages(), site.getusersitepackages()]
    # environment modules and `pip install --target` use other folders, which are on PYTHONPATH
    names += [name for name in sys.path if name and any(Path(name).glob("*.dist-info"))]
    return [Path(name).resolve() for name in names]


def _roots() -> list[Path]:
    """Return the folders searched for the user's modules: the current one, then PYTHONPATH."""
    found = dict.fromkeys([Path.cwd(), *(Path(name) for name in sys.path if name)])
    return [path for path in found if path.is_dir() and not installed(path.resolve())]


def _is_installed(top: str) -> bool:
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin:
        return spec is not None
    # a folder without __init__.py: any folder of the current directory may be found as one
    return any(installed(Path(root).resolve()) for root in spec.submodule_search_locations or ())


def _missing(module: str) -> str:
    if module.endswith(".py"):
        return f"a module is named without its ending: {module.removesuffix('.py')}"
    return (
        f"there is no module {module} in {Path.cwd()}, on PYTHONPATH or installed; launch from the "
        f"folder with {module.replace('.', '/')}.py, or put it on PYTHONPATH"
    )


def _module(root: Path, module: str) -> Path | None:
    """Return the file of a module in a folder; a package has priority, as in Python."""
    base = root.joinpath(*module.split("."))
    candidates = (base / "__init__.py", base.with_name(f"{base.name}.py"))
    return next((path for path in candidates if path.is_file()), None)


def _with_imports(module: str) -> Files:
    """Return the files of a module and of all modules of the user that it imports, by name."""
    roots, found, seen, waiting = _roots(), Files(), set[str](), [module]
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        if name in seen or parts[0] in OURS or parts[0] in sys.stdlib_module_names:
            continue
        seen.add(name)
        waiting += (
            [".".join(parts[:-1])] if parts[1:] else []
        )  # importing a module executes its packages, too
        root = next((root for root in roots if _module(root, name)), None)
        path = _module(root, name) if root else None
        if root and path:
            found[str(path.relative_to(root))] = path
            waiting += _imports(path, parts if path.name == "__init__.py" else parts[:-1])
    return found


def _imports(path: Path, package: list[str]) -> Iterator[str]:
    """Yield the names that a file imports; some may be functions and not modules."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path} line {line}" if line else str(path)
        raise UserError(f"{where} is not Python: {getattr(error, 'msg', error)}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = [*above, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)
