"""The fields of a setting: what was injected and what was asked. Rows, tables and stores have them alike.

The native module's ``setting_fields`` names the same (cpp/include/introspect/experiments/setting.h).
"""

from __future__ import annotations

KINDS: dict[str, type] = {
    "concept": str,
    "strength": float,
    "first_layer": int,
    "last_layer": int,
    "question": str,
    "kind": str,
    "question_kind": str,
    "null_index": int,
    "asked_in": str,
    "paraphrase": str,
    "place": int,
    "part_first": float,
    "part_last": float,
    "group": str,
}
OPTIONAL = ("asked_in", "paraphrase", "place", "part_first", "part_last", "group")
"""What rows hold from some version on, or where it says something."""
KEYS = tuple(name for name in KINDS if name not in OPTIONAL)
SETTING = (*KEYS, *OPTIONAL)
DEFAULTS = {"place": -1, "part_first": 0.0, "part_last": 1.0, "group": ""}
"""What says nothing, and is left out of a result's rows."""
NOTHING = "(none)"  # stands in tables where nothing is: an empty field would be a missing value to table readers
DOSE = ("dose_kl", "dose_sd", "dose_target")
"""What rows of vectors hold where their dose was measured: it says nothing of which row it is."""
