"""Model files: safetensors and GGUF as named tensors, Hugging Face folders, and writing that leaves nothing half-done.

``open_tensors(path)`` opens any of them; nothing in a model file is ever executed. ``read_torch_zip(path)`` reads what
torch.save wrote of tensors and plain values, and ``read_npz(path)`` what numpy.savez wrote of numbers; neither executes
anything.
"""

from ._C import (
    GgufFile,
    GgufWriter,
    HfFolder,
    SafetensorsFile,
    TensorSource,
    open_tensors,
    read_npz,
    read_torch_zip,
    save_safetensors,
    save_torch_zip,
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
    "read_npz",
    "read_torch_zip",
    "save_safetensors",
    "save_torch_zip",
    "sha256_hex",
    "write_atomically",
]
