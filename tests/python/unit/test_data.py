"""Where the data that comes with the library is found: by the same rules in Python and in C++."""

import subprocess
import sys
from pathlib import Path

import pytest

import introspect
from introspect import data


def other_share(tmp_path):
    """A folder of data with one list of words of our own, and what else it must hold."""
    for file in data.share_folder().iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "words.json").unlink()
    (tmp_path / "words.json").write_text('{"mine": ["cat", "dog"]}')
    return tmp_path


def test_a_variable_names_the_folder_for_python_and_cpp(tmp_path, monkeypatch):
    monkeypatch.setenv("INTROSPECT_SHARE", str(other_share(tmp_path)))
    assert introspect.load_words("mine") == ["cat", "dog"]
    with pytest.raises(ValueError, match="mine"):
        introspect.load_words("concepts")
    (tmp_path / "protocols").unlink()
    (tmp_path / "protocols").mkdir()
    with pytest.raises(introspect.IoError, match="no_info"):  # native: it is not in this folder
        introspect.load_protocol("no_info")


def test_a_folder_without_the_data_is_an_error_in_both(tmp_path, monkeypatch):
    monkeypatch.setenv("INTROSPECT_SHARE", str(tmp_path))
    for call in (introspect.load_words, lambda: introspect.load_protocol("no_info")):
        with pytest.raises(introspect.IoError, match=str(tmp_path)):
            call()


def test_a_name_is_the_shipped_protocol_and_a_path_a_file(tmp_path, monkeypatch):
    shipped, other = introspect.load_protocol("no_info"), introspect.load_protocol("with_info")
    for file in ("no_info", "no_info.json", "mine"):
        (tmp_path / file).write_text(other.to_json())
    monkeypatch.chdir(tmp_path)
    for load in (introspect.load_protocol, introspect.Protocol.load):
        assert load("no_info").to_json() == load(Path("no_info")).to_json() == shipped.to_json()
        for path in ("no_info.json", "./no_info", tmp_path / "no_info", "mine"):
            assert load(path).hash == other.hash


def test_the_data_is_found_without_torch_and_the_compiled_library():
    code = "import sys; from introspect import data; data.load_words(); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
