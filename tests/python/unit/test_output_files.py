"""Files that are written: names that stay in their folder, whole contents, errors that say which file."""

import subprocess
import sys

import pandas as pd
import pytest

from introspect.output_files import check_file_name
from introspect.tables import write_table


@pytest.mark.parametrize("name", ["no_info", "my protocol, 2", "ünïcode", "v1.2", "思考"])
def test_names_that_stay_in_their_folder_are_taken(name, tmp_path):
    (tmp_path / f"{check_file_name(name, 'x')}.json").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.json"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "../up",
        "/etc/passwd",
        "a/b",
        "a\\b",
        ".hidden",
        "a\0b",
        "a\nb",
        "x" * 300,
        "report",
        "Overview",
        3,
    ],
)
def test_other_names_are_refused_with_the_place(name):
    with pytest.raises(ValueError, match="the protocol's name becomes a file name"):
        check_file_name(name, "the protocol's name")


FULL = """
import resource, signal, sys
import introspect
import pandas
from introspect.output_files import write_text
from introspect.tables import write_table
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a write past it fails, as on a full disk
for write in (lambda: write_text(sys.argv[1], "x" * 5000),
              lambda: write_table(pandas.DataFrame({"a": range(5000)}), sys.argv[1])):
    try:
        write()
    except introspect.IoError as error:
        print(str(error).split(": ")[0])
"""


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "x.csv"
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(path)] * 2, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_texts_that_a_spreadsheet_would_run_get_an_apostrophe(tmp_path):
    frame = pd.DataFrame(
        {
            "question": ["=1+1", "+2", "-3", "@sum(a)", "\t=1", "plain", None],
            "shift": [-1.5, 2, 0, 0, 0, 0, 0],
            "=header": range(7),
            "mixed": [-1, "-1", 1.5, None, True, "=x", ""],
        }
    )
    write_table(frame, tmp_path / "x.csv")
    back = pd.read_csv(tmp_path / "x.csv", keep_default_na=False)
    assert list(back.question) == ["'=1+1", "'+2", "'-3", "'@sum(a)", "'\t=1", "plain", ""]
    assert list(map(float, back["shift"])) == [-1.5, 2, 0, 0, 0, 0, 0]
    assert "'=header" in back.columns
    assert list(back.mixed) == ["-1", "'-1", "1.5", "", "True", "'=x", "'"]
