"""Pairs of prompts and tiny models for tests of patching and circuits."""

import torch
from tiny import write_tiny_transformers

import introspect

T = 10


def pair(rng, n=2, length=T):
    """Tokens that differ in some places."""
    clean = torch.randint(3, 101, (n, length), generator=rng)
    corrupted = clean.clone()
    corrupted[:, 2:5] = torch.randint(3, 101, (n, 3), generator=rng)
    return clean, corrupted


def alike(length):
    """Clean and corrupted tokens [2, length] that begin alike, so that some cells change nothing."""
    clean = torch.randint(3, 101, (2, length), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[:, 2:] = (corrupted[:, 2:] * 7 + 5) % 101
    return clean, corrupted


def load(name, folder, dtype=torch.float64, **overrides):
    return introspect.load_model(write_tiny_transformers(folder, name, **overrides), dtype=dtype)
