"""Where the blocks of a model live: ``device_map`` of ``load_model``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from . import _C

DeviceMap = str | Sequence[torch.device | str] | Mapping[int, torch.device | str]

FOR_BLOCKS = 0.9  # of a device's free memory; the rest is for activations, caches and the allocator's holes
FOR_MODEL = 0.85  # of the host's free memory; a larger model's blocks stay in their files
VALUES_OF_BYTE = 3.2  # at most, in any encoding
DENSE = 8 << 30  # bytes from which quantised matrices stay as they are stored, as models::LoadOptions has it


def as_device(given: torch.device | str, who: str) -> torch.device:
    """A torch.device; ConfigError for a name that torch does not know."""
    try:
        return torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise _C.ConfigError(
            f"{who} must name a device of torch's, such as 'cpu' or 'cuda:1', got {given!r}"
        ) from error


def place(
    device_map: DeviceMap | None,
    device: torch.device | str | None,
    path: str | os.PathLike,
    dtype: torch.dtype,
) -> tuple[torch.device, dict[int, torch.device]]:
    """The device of everything but the blocks, and the blocks that live elsewhere.

    Args:
        device_map: as ``load_model`` takes it.
        device: of what is no block; None: the first device of the map, and the CPU without one.
        path: the model's folder or file.
        dtype: of the weights, for "auto".

    Raises:
        ConfigError: a map of another kind, a device that torch does not know, a block that is not there.
    """
    given = None if device is None else as_device(device, "load_model: device=")
    if device_map is None:
        return given or torch.device("cpu"), {}
    if isinstance(device_map, Mapping):
        blocks = {block: as_device(where, "load_model: device_map") for block, where in device_map.items()}
        return given or torch.device("cpu"), blocks
    if isinstance(device_map, str):
        if device_map != "auto":
            raise _C.ConfigError(
                "load_model: device_map must be 'auto', a list of devices or {block: device}, got "
                f"{device_map!r}; device= takes one device for everything"
            )
        return _by_memory(_C.read_config(os.fspath(path)), dtype, given)
    devices = [as_device(where, "load_model: device_map") for where in device_map]
    if not devices:
        raise _C.ConfigError("load_model: device_map must name at least one device, got an empty list")
    n_layers = _C.read_config(os.fspath(path)).n_layers
    return given or devices[0], dict(enumerate(even_shares(n_layers, devices)))


def even_shares(n_layers: int, devices: Sequence[torch.device]) -> list[torch.device]:
    """The device of each block: neighbours together, as many on one as on another, the first taking the odd ones."""
    each, odd = divmod(n_layers, len(devices))
    return [where for i, where in enumerate(devices) for _ in range(each + (i < odd))]


def fill(n_layers: int, block_bytes: int, room: Sequence[tuple[torch.device, int | None]]) -> list[torch.device]:
    """The device of each block: each device as full as it may be, in order, and what is left on the CPU.

    Args:
        room: devices and the bytes that blocks may take there; None: no bound is known.
    """
    out: list[torch.device] = []
    for where, free in room:
        left = n_layers - len(out)
        out += [where] * (left if free is None else min(left, max(0, free) // max(1, block_bytes)))
    return out + [torch.device("cpu")] * (n_layers - len(out))


def bytes_of(cfg: _C.Config, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of what is no block, and of one block: of their matrices, beside which norms and biases are nothing."""
    attention = cfg.d_model * cfg.d_head * 2 * (cfg.n_heads + cfg.n_key_value_heads)
    mlp = cfg.d_model * cfg.d_mlp * (3 if cfg.gated_mlp else 2) * max(1, cfg.num_experts)
    outside = cfg.d_vocab * cfg.d_model * (1 if cfg.tie_word_embeddings else 2)
    return outside * dtype.itemsize, (attention + mlp) * dtype.itemsize


def fits(path: str | os.PathLike, dtype: torch.dtype, weights: str | None) -> bool:
    """True if the host's free memory holds a model with room to work in, or nobody knows how much there is.

    Args:
        path: the model's folder or file.
        weights: as ``load_model`` takes it.
    """
    free = free_host_bytes()
    path = Path(path)
    stored = sum(file.stat().st_size for file in ([path] if path.is_file() else path.glob("*.safetensors")))
    if free is None or VALUES_OF_BYTE * dtype.itemsize * stored <= FOR_MODEL * free:  # without a look into the file
        return True
    cfg = _C.read_config(os.fspath(path))
    outside, block = bytes_of(cfg, dtype)
    size = outside + cfg.n_layers * block
    is_packed = stored < 1.5 * size / dtype.itemsize  # bytes a value: of Q8_0 1.06, of 16 bits 2, which become dense
    if path.is_file() and is_packed and (weights == "as stored" or (weights is None and size >= DENSE)):
        size = min(size, stored)
    return size <= FOR_MODEL * free


def free_host_bytes() -> int | None:
    """Memory that the host has for programs; None where it does not tell."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def accelerators() -> list[torch.device]:
    """Every device of the accelerator that this machine has; none: an empty list."""
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator()
    return [] if kind is None else [torch.device(kind.type, i) for i in range(torch.accelerator.device_count())]


def free_bytes(device: torch.device) -> int | None:
    """Memory that a device has free; None where its module of torch does not tell."""
    tell = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if tell is None else int(tell(device)[0])


def _by_memory(
    cfg: _C.Config, dtype: torch.dtype, given: torch.device | None
) -> tuple[torch.device, dict[int, torch.device]]:
    devices = accelerators()
    if not devices:
        return given or torch.device("cpu"), {}
    outside, block = bytes_of(cfg, dtype)
    home = given or devices[0]
    room: list[tuple[torch.device, int | None]] = []
    for device in devices:
        free = free_bytes(device)
        is_home = home.type == device.type and (home.index or 0) == device.index
        room.append((device, None if free is None else int(free * FOR_BLOCKS) - (outside if is_home else 0)))
    return home, dict(enumerate(fill(cfg.n_layers, block, room)))
