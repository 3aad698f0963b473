"""A run folder or one result as something to read: terminal, page, JSON, CSV and plots."""

from .folder import (
    as_dict,
    detection_verdict,
    drawings,
    figures,
    html,
    load_folder,
    show,
    show_one,
    summary,
    sweep_dict,
    sweep_verdict,
    table,
    write,
)

__all__ = [
    "as_dict",
    "detection_verdict",
    "drawings",
    "figures",
    "html",
    "load_folder",
    "show",
    "show_one",
    "summary",
    "sweep_dict",
    "sweep_verdict",
    "table",
    "write",
]
