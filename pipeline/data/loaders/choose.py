"""Choose the loader for a spec: the requested one, or the most suitable."""

from importlib import import_module
from importlib.util import find_spec

from torch import Tensor

from pipeline.data.loaders.base import DIGEST, Loader, LoaderSpec
from pipeline.display.errors import UserError

IN_MEMORY = 2 * 2**30  # bytes; a split with more bytes of pixels is not held in memory
CLASSES = {"memory": "MemoryLoader", "dali": "DaliLoader", "torch": "TorchLoader"}


def kinds() -> list[str]:
    """Return the names of the loaders that are installed, best first."""
    dali = find_spec("nvidia") and find_spec("nvidia.dali")
    return [name for name in CLASSES if name != "dali" or dali]


def named(name: str) -> type[Loader]:
    """Return the loader in `pipeline.data.loaders.NAME`; its import may take seconds."""
    found: type[Loader] = getattr(import_module(f"pipeline.data.loaders.{name}"), CLASSES[name])
    return found


def choose(name: str, spec: LoaderSpec) -> tuple[type[Loader], str]:
    """Return the loader for a spec, and the reason.

    Args:
        name: the value of `data.loader`.
        spec: what to load.

    Raises:
        UserError: the requested loader cannot load what the spec asks for, or is not installed.
    """
    there = kinds()
    if name != "auto":
        if name not in there:
            raise UserError(
                f"data.loader={name} is not installed: `pip install nvidia-dali-cuda130`, or use "
                "data.loader=torch"
            )
        reason = named(name).cannot(spec)
        if reason:
            able = [other for other in there if not named(other).cannot(spec)]
            raise UserError(f"data.loader={name} {reason}; use data.loader={' or '.join(able)}")
        return named(name), "as asked for"
    size = sum(split.pixels for split in spec.manifest.splits.values()) * spec.channels
    reasons: list[str] = []
    for other in there:
        kind = named(other)
        reason = kind.cannot(spec)
        if other == "memory" and size > IN_MEMORY:
            reason = f"would need {size / 2**30:.1f} GiB"
        if reason is None:
            return kind, "; ".join(reasons) or f"{size / 2**20:.0f} MiB of pixels fit in"
        reasons.append(f"{other} {reason}")
    raise UserError(f"no loader can do it: {'; '.join(reasons)}")


def make(name: str, spec: LoaderSpec, state: Tensor | None = None) -> Loader:
    """Return a loader for a spec: `name`, or a suitable one if `name` is `auto`.

    With `auto` a saved state is continued by the loader that wrote it.
    """
    kind, _ = choose(_of(state, spec) or name if name == "auto" else name, spec)
    return kind(spec, state)


def _of(state: Tensor | None, spec: LoaderSpec) -> str | None:
    """Return the name of the loader that wrote a state, if there is one."""
    own = None if state is None else bytes(state[:DIGEST].tolist())
    return next((name for name in kinds() if spec.digest(name) == own), None)
