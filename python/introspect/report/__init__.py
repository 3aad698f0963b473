"""A run folder or one result as something to read: terminal, page, JSON, CSV and plots."""

from .folder import *  # noqa: F403
from .folder import __all__ as __all__
