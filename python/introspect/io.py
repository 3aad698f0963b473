"""Model files: safetensors and GGUF as named tensors, Hugging Face folders, and writing that leaves nothing half-done.

``open_tensors(path)`` opens any of them; nothing in a model file is ever executed.
"""

from ._C import (
    GgufFile,
    GgufWriter,
    HfFolder,
    SafetensorsFile,
    TensorSource,
    open_tensors,
    save_safetensors,
    sha256_hex,
    write_atomically,
)

__all__ = [
    "GgufFile",
    "GgufWriter",
    "HfFolder",
    "SafetensorsFile",
    "TensorSource",
    "open_tensors",
    "save_safetensors",
    "sha256_hex",
    "write_atomically",
]
