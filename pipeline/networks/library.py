"""Find weights that timm or torchvision publishes, if they are on this disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import torch

from pipeline.display.errors import UserError, nearest
from pipeline.networks import architectures

KEY = "model.pretrained"
HUB = re.compile(r"(hf[-_]hub:)?(timm/)?")  # before names of timm's weights on the hub
DEFAULT = "default"  # the default weights of the library
FILES = ("model.safetensors", "pytorch_model.bin")  # in a repository of the Hugging Face hub


def cached(family: str, name: str, word: str) -> Path:
    """Return the file of weights that a library has downloaded earlier; nothing is downloaded.

    Args:
        family: `timm` or `torchvision`.
        name: name of the network in the library.
        word: name of the weights: a tag of timm, a member of torchvision's enumeration, `default`.

    Raises:
        UserError: the library has no such weights, or they are not on this disk; the message says
            how to fetch them.
    """
    finders: dict[str, Callable[[str, str], Path]] = {"timm": _timm, "torchvision": _torchvision}
    return finders[family](name, word)


def _torchvision(name: str, word: str) -> Path:
    from torchvision import models  # the import takes four seconds

    architectures.check_name(name, models.list_models(module=models), "torchvision")
    members = models.get_model_weights(name)
    names = [weights.name for weights in members]
    chosen = members[_chosen(word, names, members.DEFAULT.name, name, members.__name__)]
    file = _hub(chosen.url)
    if not file.is_file():
        fetch = f"import torchvision as t; t.models.get_model('{name}', weights='{chosen.name}')"
        raise _absent(word, [file], fetch)
    return file


def _timm(name: str, word: str) -> Path:
    import timm

    architectures.check_name(name, timm.list_models(), "timm")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    usual = timm.get_pretrained_cfg(name)
    tag = _chosen(HUB.sub("", word, count=1), tags, usual.tag if usual else "", name, name)
    published = timm.get_pretrained_cfg(f"{name}.{tag}")
    files = _of_hub(published.hf_hub_id, published.hf_hub_filename)
    if published.url:
        files.append(_hub(published.url))
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise _absent(
            word, files, f"import timm; timm.create_model('{name}.{tag}', pretrained=True)"
        )
    return found


def _chosen(word: str, known: list[str], usual: str, name: str, prefix: str) -> str:
    """Return which of the `known` weights a word means, with or without `prefix` and a dot."""
    if word.lower() == DEFAULT and usual in known:
        return usual
    whose, _, word = word.rpartition(".")  # resnet18.a1_in1k, ResNet18_Weights.IMAGENET1K_V1
    if whose not in ("", prefix):
        raise UserError(
            f"{KEY}={whose}.{word} is of another network than model.name={name}; choose that one, "
            f"or weights of {prefix}"
        )
    written = {each.lower(): each for each in known}
    if word.lower() not in written:
        cure = nearest(word, [DEFAULT, *known]) if known else "there are none, give a file"
        raise UserError(
            f"{KEY}={word} is not a file, a run, or weights that are published for {name}; {cure}"
        )
    return written[word.lower()]


def _hub(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def _of_hub(repository: str | None, file: str | None) -> list[Path]:
    """Return the cached files of a repository, the preferred one first; else its cache folder."""
    if not repository:
        return []
    from huggingface_hub import constants, try_to_load_from_cache

    names = [file] if file else FILES
    found = [try_to_load_from_cache(repository, name) for name in names]
    there = [Path(path) for path in found if isinstance(path, str)]
    return there or [Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"]


def _absent(word: str, files: list[Path], fetch: str) -> UserError:
    paths = " and not ".join(str(file) for file in files)
    return UserError(
        f"{KEY}={word} is not on this disk (not {paths}), and nothing is downloaded; fetch it "
        f'where there is a network: python -c "{fetch}"; or give a file'
    )
