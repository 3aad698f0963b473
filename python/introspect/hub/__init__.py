"""Models by name: short names, hub repositories and files, fetched and checked; works without torch."""

from .sources import DEFAULT_MODEL, models_folder, pull, resolve

__all__ = ["DEFAULT_MODEL", "models_folder", "pull", "resolve"]
