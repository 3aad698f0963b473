"""Labels of features in a JSON file beside the dictionary, for people to edit: {"features": {"12": "a label"}}."""

from __future__ import annotations

import json
from pathlib import Path

from .._json import parse_json
from ..output_files import write_text
from .fields import Refused

NAME = "labels.json"
MOST_BYTES = 64 << 20
MOST_LABEL = 2_000  # characters


class Labels:
    """The file is read again when it has changed, and each label is on disk before the page is told so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._labels: dict[int, str] = {}

    def all(self) -> dict[int, str]:
        if not self.path.is_file():
            self._labels, self._stamp = {}, None
            return self._labels
        stat = self.path.stat()
        if (stamp := (stat.st_mtime_ns, stat.st_size)) != self._stamp:
            if stat.st_size > MOST_BYTES:
                raise Refused(f"{self.path.name}: labels may have {MOST_BYTES >> 20} MiB, and this file has more", 413)
            data = parse_json(self.path.read_text(encoding="utf-8"), self.path.name, Refused)
            listed = data.get("features") if isinstance(data, dict) else None
            if not isinstance(listed, dict):
                raise Refused(f'{self.path.name}: must be {{"features": {{"12": "a label"}}}}')
            self._labels = {
                int(key): str(value)[:MOST_LABEL]
                for key, value in listed.items()
                if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 16
            }
            self._stamp = stamp
        return self._labels

    def set(self, feature: int, label: str) -> None:
        """An empty label takes the old one away."""
        labels = dict(self.all())
        if label.strip():
            labels[feature] = label.strip()[:MOST_LABEL]
        else:
            labels.pop(feature, None)
        ordered = {str(key): labels[key] for key in sorted(labels)}
        write_text(self.path, json.dumps({"features": ordered}, indent=1, ensure_ascii=False) + "\n")

    def find(self, words: str, most: int) -> list[tuple[int, str]]:
        """Features whose label holds every word, in any case."""
        wanted = words.lower().split()
        found = ((key, label) for key, label in sorted(self.all().items()))
        return [(k, label) for k, label in found if all(word in label.lower() for word in wanted)][:most]
