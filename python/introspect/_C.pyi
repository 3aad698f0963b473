"""
The native part of introspect: see the package's own modules for the public names.
"""

from __future__ import annotations

__all__: list[str] = ["ConfigError", "Error", "HookError", "IoError", "ShapeError", "built_with_torch"]

class Error(RuntimeError):
    pass

class ShapeError(Error):
    pass

class ConfigError(Error):
    pass

class IoError(Error):
    pass

class HookError(Error):
    pass

__version__: str = "0.1.0"
built_with_torch: str = "2.13.0"
