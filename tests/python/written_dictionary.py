"""What the makers of small dictionary files share: sizes, weights, activations, and what a maker returns."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

D, F, OUT, K = 6, 16, 5, 3


@dataclass
class Written:
    path: Path
    run: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    hook: str = ""
    hook_out: str = ""
    model: str = ""
    options: dict = field(default_factory=dict)


def draw(seed: int = 0, d_out: int = D):
    """W_enc [D, F], b_enc, W_dec [F, d_out], b_dec, all of them unlike one another."""
    rng = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    return normal(D, F), normal(F) * 0.3, normal(F, d_out), normal(d_out)


def threshold(seed: int = 1) -> torch.Tensor:
    return torch.rand(F, generator=torch.Generator().manual_seed(seed)) * 1.5


def jump(p: torch.Tensor, th: torch.Tensor | float) -> torch.Tensor:
    return torch.relu(p) * (p > th)


def top(p: torch.Tensor, k: int = K) -> torch.Tensor:
    kept = p.topk(k, dim=-1)
    return torch.zeros_like(p).scatter(-1, kept.indices, kept.values)


def describe(folder: Path, name: str, content: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
