"""LoRA adapters of tiny models, made and saved by peft."""

from pathlib import Path

import peft
import torch
from tiny import tiny_transformers

import introspect


def random_peft(name: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float64, **options):
    """A peft model of ``tiny_transformers(name)`` whose LoRA matrices are random, their products of order one.

    The base model is saved in ``folder / "base"`` and the adapter in ``folder / "adapter"``.
    """
    base = tiny_transformers(name)
    base.save_pretrained(folder / "base")
    arguments = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "fan_in_fan_out": name.startswith("gpt2")}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{**arguments, **options})
    model = peft.get_peft_model(base.to(dtype), config)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                values = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
                parameter.copy_(values / parameter.shape[-1] ** 0.5)
    model.eval().save_pretrained(folder / "adapter", save_embedding_layers=False)
    return model


def adapter_of(folder: Path) -> introspect.Adapter:
    return introspect.Adapter.load(folder / "adapter")
