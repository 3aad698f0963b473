"""The model and the vectors of unit tests that make none of their own."""

import fenced
import pytest
import torch
from tiny_chat import random_vectors, write_tiny_chat

import introspect

if fenced.LIBRARY.exists():
    fenced.load()  # before the first backward pass of a process, which makes a thread for every device there is


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model that can chat, in float64."""
    return introspect.load_model(write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model"), dtype=torch.float64)


@pytest.fixture(scope="module")
def vectors():
    """Two concepts of that model."""
    return random_vectors()
