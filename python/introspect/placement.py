"""Where the blocks of a model live: ``device_map`` of ``load_model``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from . import _C

DeviceMap = str | Sequence[torch.device | str] | Mapping[int, torch.device | str]

FOR_BLOCKS = 0.9  # of a device's free memory; the rest is for activations, caches and the allocator's holes


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
        if odd := [block for block in device_map if not isinstance(block, int) or isinstance(block, bool)]:
            raise _C.ConfigError(f"load_model: device_map goes by the numbers of blocks, got {odd[0]!r}")
        blocks = {block: as_device(where, "load_model: device_map") for block, where in device_map.items()}
        return given or torch.device("cpu"), blocks
    if isinstance(device_map, str) or not isinstance(device_map, Sequence):
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
