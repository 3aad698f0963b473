"""The command line. Nothing here loads torch before the arguments are understood."""

from .app import main

__all__ = ["main"]
