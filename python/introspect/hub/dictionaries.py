"""Dictionaries from the hub: SAELens's names of releases, and folders of repositories, fetched and checked once."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..data import sae_releases
from .download import HubFile, Unavailable, hub_files
from .sources import _error, _get_hub_file, _is_path, _locked, is_missing_path, models_folder

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
# Of a folder: what any of the formats reads. States of training and statistics beside them are left where they are.
_WANTED = re.compile(
    r"cfg\.json|config\.json|config\.yaml|hyperparams\.json|activation_scaler\.json|sae_weights\.safetensors|"
    r"sae\.safetensors|params(_layer_\d+)?\.(npz|safetensors)|ae\.pt|checkpoints/final\.safetensors|"
    r"W_(enc|dec)_\d+\.safetensors|layer_\d+\.safetensors"
)
_BESIDE = ("config.yaml", "config.json", "cfg.json")  # of a single file


@dataclass(frozen=True)
class Published:
    """Where a dictionary is published, and what its files do not say.

    Attributes:
        repo: on the hub.
        path: of its folder or file within the repository; empty for the repository itself.
        known: fields of an origin.
    """

    repo: str
    path: str
    known: dict[str, object] = field(default_factory=dict)


def find_release(release: str, sae_id: str) -> Published:
    """What a release of SAELens's list and an id in it stand for, or a repository and a path in it.

    Raises:
        ConfigError: neither, or an id that the release does not have.
    """
    table = sae_releases()
    tried = []
    for rule in table["rules"]:
        if not (named := re.fullmatch(rule["release"], release)):
            continue
        tried.append(rule["id"])
        if not (found := re.fullmatch(rule["id"], sae_id)):
            continue
        words = {**named.groupdict(), **found.groupdict()}
        words |= {key: names.get(words[key], words[key]) for key, names in rule.get("words", {}).items()}
        if "{canonical}" in rule["path"]:
            try:
                words["canonical"] = table["canonical"][release][words["width"]][words["layer"]]
            except KeyError:
                raise _error("ConfigError", f"from_pretrained: {release} has no {sae_id}") from None
        known = {k: rule[k] for k in ("model_name", "hook_name", "centers_writing_weights") if k in rule}
        return Published(rule["repo"].format(**words), rule["path"].format(**words), known)
    if tried:
        raise _error(
            "ConfigError", f"from_pretrained: {release} has ids of the form {' or '.join(tried)}, got {sae_id!r}"
        )
    if not _REPO.fullmatch(release) or _is_path(release):
        raise _error(
            "ConfigError",
            f"from_pretrained: {release!r} is no file or folder here, and neither a release that is known "
            "(sae_releases.json) nor a repository 'owner/name'",
        )
    if not sae_id and is_missing_path(release) and not _folder(release).is_dir():
        raise _error(
            "IoError",
            f"from_pretrained: there is no file or folder {release} (a repository of that name is read with sae_id, or "
            "from another folder)",
        )
    if PurePosixPath(sae_id).is_absolute() or ".." in PurePosixPath(sae_id).parts:
        raise _error("ConfigError", f"from_pretrained: sae_id must be a path within {release}, got {sae_id!r}")
    return Published(release, sae_id.strip("/"))


def pull_dictionary(published: Published) -> Path:
    """The local folder or file of a dictionary, fetched and checked first if it is not here.

    Files keep their places: <models>/dictionaries/<owner>--<name>/<path>.

    Raises:
        IoError: the hub did not deliver, or the disk has no room.
    """
    folder = _folder(published.repo)
    done = folder / ".introspect" / (published.path.replace("/", "--") + ".json")
    target = folder / published.path
    if _is_complete(folder, done):
        return target
    return _locked(lambda: target if _is_complete(folder, done) else _fetch(published, folder, done, target))


def _folder(repo: str) -> Path:
    return models_folder() / "dictionaries" / repo.replace("/", "--")


def _fetch(published: Published, folder: Path, done: Path, target: Path) -> Path:
    from .._C import write_atomically  # here, because it loads torch

    names = []
    for file in _wanted(published, hub_files(published.repo, "main")):
        if PurePosixPath(file.name).is_absolute() or ".." in PurePosixPath(file.name).parts:
            raise Unavailable(f"{published.repo} names a file outside of itself: {file.name}")
        local = folder / file.name
        local.parent.mkdir(parents=True, exist_ok=True)
        if not local.exists():
            _get_hub_file(published.repo, "main", file, local)
        names.append(file.name)
    done.parent.mkdir(exist_ok=True)
    write_atomically(done, json.dumps(names).encode())
    return target


def _wanted(published: Published, files: list[HubFile]) -> list[HubFile]:
    path = published.path
    for file in files:
        if file.name == path:
            return [file, *_beside(file, files)]
    inside = [f for f in files if not path or f.name.startswith(path + "/")]
    start = len(path) + 1 if path else 0
    wanted = [f for f in inside if _WANTED.fullmatch(f.name[start:])]
    if not any(f.name.endswith((".safetensors", ".npz", ".pt", ".pth")) for f in wanted):
        raise Unavailable(f"{published.repo} holds no dictionary at {path or 'its top'}")
    above = str(PurePosixPath(path).parent / "config.json").removeprefix("./")
    return [*wanted, *(f for f in files if path and f.name == above)]


def _beside(file: HubFile, files: list[HubFile]) -> list[HubFile]:
    """What describes a single file: a description of its folder, or one of its own name."""
    place = PurePosixPath(file.name)
    names = {str(place.parent / name) for name in (*_BESIDE, place.stem + "_cfg.json")}
    return [other for other in files if other.name in names]


def _is_complete(folder: Path, done: Path) -> bool:
    try:
        names = json.loads(done.read_text())
    except (OSError, ValueError, RecursionError):
        return False  # as if it were not there: what is missing is fetched
    return isinstance(names, list) and all(isinstance(name, str) and (folder / name).is_file() for name in names)
