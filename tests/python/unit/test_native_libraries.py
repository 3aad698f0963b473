"""The built libraries: what they show to the process, and what loading them leaves alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import introspect
from introspect import _C

TORCH = Path(torch.__file__).parent / "lib"
OURS = ("libintrospect.so", "libintrospect_sentencepiece.so")
LINKER = {"__bss_start", "_edata", "_end"}  # that ld gives to every library: nothing refers to them

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files with nm and readelf")


def loaded(name: str) -> Path:
    """A library of introspect's that lies beside the extension module or in its lib/."""
    folder = Path(_C.__file__).parent
    (path,) = [path for path in (folder / name, folder / "lib" / name) if path.exists()]
    return path


def symbols(path: Path, kinds: str) -> set[str]:
    """Names that a library defines for others, of the kinds of nm's letters."""
    out = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    return {name.split("@")[0] for _, kind, name in map(str.split, out.splitlines()) if kind in kinds} - LINKER


def needed(path: Path) -> list[str]:
    out = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", out)


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


OUT_OF_MEMORY = """
import sys, torch
import introspect
from introspect import _C
{before}
try:
    torch.empty(2**50)
except RuntimeError as error:
    print("raised", str(error)[:20])
"""


def test_out_of_memory_is_an_error_and_not_the_end(tmp_path):
    done = run(OUT_OF_MEMORY.format(before=""))
    assert (done.returncode, done.stdout[:6]) == (0, "raised"), done.stderr


def test_out_of_memory_is_an_error_after_sentencepiece_ran(stories15m):
    before = f"assert introspect.Tokenizer.load({str(stories15m)!r}).encode('once upon a time')"
    done = run(OUT_OF_MEMORY.format(before=before))
    assert (done.returncode, done.stdout[:6]) == (0, "raised"), done.stderr


def test_torch_s_own_variables_are_left_alone(stories15m):
    # libsentencepiece's FLAGS_minloglevel is an object of 32 bytes, libc10's an int with other variables after it.
    done = run(f"""
import ctypes, torch
c10 = ctypes.CDLL({str(TORCH / "libc10.so")!r})
def look():
    return bytes((ctypes.c_char * 32).in_dll(c10, "FLAGS_minloglevel"))
before = look()
import introspect
introspect.Tokenizer.load({str(stories15m)!r}).encode("once")
assert "sentencepiece" in open("/proc/self/maps").read()
assert look() == before, (before, look())
""")
    assert done.returncode == 0, done.stderr


def test_libintrospect_shows_nothing_but_its_own_names():
    names = sorted(symbols(loaded("libintrospect.so"), "TBDRGS"))
    assert names
    demangled = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    strangers = [name for name in demangled.splitlines() if "introspect::" not in name]
    assert not strangers


def test_the_sentencepiece_module_shows_one_function():
    assert symbols(loaded("libintrospect_sentencepiece.so"), "TBDRGSVWu") == {"introspect_sentencepiece"}


def test_no_library_we_bring_shares_a_strong_name_with_torch():
    # What libintrospect links is in the same lookup scope as torch; what its module for sentencepiece links is not.
    brought = [loaded("libintrospect.so"), Path(_C.__file__)]
    system = {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
    for name in {name for path in list(brought) for name in needed(path)} - system:
        if (TORCH / name).exists() or name in OURS:
            continue
        listed = subprocess.run(["ldd", loaded("libintrospect.so")], capture_output=True, text=True, check=True).stdout
        brought.append(Path(re.search(rf"{re.escape(name)} => (\S+)", listed)[1]))
    assert not any("sentencepiece" in path.name for path in brought if path.name not in OURS)
    torch_names = set().union(*(symbols(path, "TBDRGSVWu") for path in TORCH.glob("lib*.so*")))
    for path in brought:
        if TORCH not in path.parents:
            assert not symbols(path, "TBDRGS") & torch_names, path
    assert introspect.Tokenizer is not None
