"""What goes wrong in the first hour is said in one line, before it does."""

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mri.__main__ import main
from mri.data import ready
from mri.data.decode import DataError
from mri.data.parquet import REMEDY
from mri.data.phantom import write_phantom
from mri.data.ready import describe_data, problems

FLAGS = "processor : 0\nflags\t: fpu sse4_2{avx}\nmodel name : x\n"


def on(monkeypatch, cpuinfo):
    def read_text(self, **options):
        if cpuinfo is None:
            raise FileNotFoundError(self)
        return cpuinfo

    monkeypatch.setattr(ready.Path, "read_text", read_text)


@pytest.mark.parametrize("cpuinfo", [None, FLAGS.format(avx=" avx avx2"), "Features\t: fp asimd\n"])
def test_nothing_is_said_where_nothing_is_wrong(monkeypatch, tmp_path, cpuinfo):
    on(monkeypatch, cpuinfo)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    assert list(problems(tmp_path)) == []


def test_each_obstacle_is_one_line(monkeypatch, tmp_path):
    on(monkeypatch, FLAGS.format(avx=""))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    avx, disk = problems(tmp_path)
    assert "no AVX" in avx
    assert disk == f"{tmp_path}: 5 MB of disk are free, 1 GB is needed"
    assert "\n" not in avx


def test_without_slices_it_says_what_is_used_and_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MRI_DATA", raising=False)
    told = describe_data()
    assert told.startswith("data: no such folder, so synthetic phantoms are used")
    assert told.endswith(REMEDY)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/README.md").touch()
    assert "no slices there" in describe_data()
    (tmp_path / "data/archive.zip").touch()
    assert "no train and test part among ['archive.zip']" in describe_data()
    write_phantom(tmp_path / "data", subjects=8, slices=2)
    (tmp_path / "data/train.parquet").unlink()
    with pytest.raises(DataError, match=r"test\.parquet is there, but no train file beside it"):
        describe_data()


def test_a_folder_that_is_given_never_becomes_phantoms(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"gone: no parquet file found"):
        describe_data(tmp_path / "gone")
    with pytest.raises(DataError, match=r"no slices in this folder, it is empty\. Expected train"):
        describe_data(tmp_path)
    (tmp_path / "notes.txt").touch()
    monkeypatch.setenv("MRI_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"in this folder, found \['notes\.txt'\]\. Expected"):
        describe_data()


def test_with_slices_it_counts_them(tmp_path, monkeypatch):
    folder = write_phantom(tmp_path / "data", subjects=8, slices=2)
    assert describe_data(folder) == f"{folder}: 16 synthetic phantom slices."
    (folder / "test.parquet").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"test\.parquet: not a readable parquet"):
        describe_data(folder)
    (folder / "test.parquet").unlink()
    with pytest.raises(DataError, match=r"train\.parquet is there, but no test file beside it"):
        describe_data(folder)


@pytest.mark.real_data
def test_real_slices_are_called_real(real_data):
    assert describe_data(real_data) == f"{real_data}: 6400 real slices."


@pytest.mark.parametrize("wrong", [(), ("the disk is full",)])
def test_the_command_line(monkeypatch, capsys, tmp_path, wrong):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRI_DATA", "")
    monkeypatch.setattr(ready, "problems", lambda: iter(wrong))
    assert main(["check"]) == len(wrong)
    out, err = capsys.readouterr()
    assert out.startswith("data: no such folder, so synthetic phantoms")
    assert err.splitlines() == list(wrong)


def test_a_damaged_data_set_stops_the_run_before_it_begins(monkeypatch, capsys, tmp_path):
    folder = write_phantom(tmp_path / "data", subjects=8, slices=2)
    (folder / "test.parquet").write_bytes(b"<html>not found</html>")
    monkeypatch.setenv("MRI_DATA", str(folder))
    assert main(["check"]) == 1
    assert "test.parquet: not a readable parquet" in capsys.readouterr().err


def test_a_bad_slice_stops_the_run_before_it_begins(monkeypatch, capsys, tmp_path):
    folder = write_phantom(tmp_path / "data", subjects=8, slices=2)
    table = pq.read_table(folder / "test.parquet")
    cells = [{"bytes": b"broken", "path": None}, *table["image"].to_pylist()[1:]]
    image = pa.array(cells, table.schema.field("image").type)
    pq.write_table(table.set_column(0, table.schema.field("image"), image), folder / "test.parquet")
    monkeypatch.setenv("MRI_DATA", str(folder))
    assert main(["check"]) == 1
    assert "test.parquet, row 0: not a JPEG or PNG image" in capsys.readouterr().err


ROOT = Path(__file__).resolve().parents[2]


def test_make_names_an_old_python_in_one_line(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("no make")
    old = tmp_path / "python"
    message = "Python 3.11 or newer is needed, this is 3.9"
    old.write_text(f"#!/bin/sh\necho '{message}' >&2\nexit 1\n")
    old.chmod(0o755)
    for name in ("Makefile", "requirements.txt", "pyproject.toml", "tests/requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(
        ["make", "lint", f"PYTHON={old}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "REQUIREMENTS")},
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / ".venv").exists()
