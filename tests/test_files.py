"""Files: whole or not at all, one process at a time, and errors that name them."""

import errno
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest

import small_runs as cases
from mri._files import alone, replacing
from mri.models.builders import _BUILDERS, build_model, register
from mri.models.files import load_model, save_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def registry():
    kept = dict(_BUILDERS)
    for builder in (cases.speck, cases.flat):
        register(builder)
    yield
    _BUILDERS.clear()
    _BUILDERS.update(kept)


def names(folder):
    return sorted(os.listdir(folder))


# --- whole or not at all ---


def write(path, content):
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def test_replacing_leaves_old_content_and_nothing_else_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write(path, b"old")
    write(path, b"new")
    assert path.read_bytes() == b"new"

    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no space left: '.*file\.txt'"):
        write(path, b"newer")
    assert names(tmp_path) == ["file.txt"]
    assert path.read_bytes() == b"new"


def test_until_it_is_whole_the_old_file_stands(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("newer")
        raise ZeroDivisionError
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file.txt"]


def test_the_next_write_removes_what_a_killed_one_left(tmp_path):
    """A table of logits is saved under no lock of a training, so it has to clean up by itself."""
    others = [".fold.cell.7.tmp.json", ".fold.7.tmp.parquet", ".fold.cell.parquet"]
    for name in [*others, ".fold.cell.7.tmp.parquet", ".fold.cell.parquet.write.lock"]:
        (tmp_path / name).touch()
    write(tmp_path / "fold.cell.parquet", b"new")
    assert names(tmp_path) == sorted([*others, "fold.cell.parquet"])


def test_a_text_without_a_number_is_kept(tmp_path):
    """Arrow's and HDF5's errors are such: a file name would take the place of the text."""
    with pytest.raises(OSError) as caught:
        with replacing(tmp_path / "a"):
            raise OSError("cannot compress")
    assert str(caught.value) == "cannot compress"
    assert caught.value.__notes__ == [f"{tmp_path / 'a'}: not written"]


def test_a_name_of_the_cause_is_not_replaced(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a") as temporary:
        temporary.write_text("")
        open(tmp_path / "elsewhere" / "b", "rb")
    assert caught.value.filename == str(tmp_path / "elsewhere" / "b")


# --- one at a time ---


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    stale = [".m.12.tmp.keras", ".m.7.tmp.json", "..m.state.9.tmp.npz", ".m.1.tmp.parquet"]
    others = [".m.x.12.tmp.keras", ".n.12.tmp.keras", ".m.state.npz", "m.12.tmp.keras", "m.json"]
    for name in stale + others:
        (tmp_path / name).touch()
    with alone(tmp_path / "m.keras"):
        assert set(names(tmp_path)) == {*others, ".m.lock"}
    assert set(names(tmp_path)) == set(others)


def test_the_second_waits_and_says_so(tmp_path):
    path, order = tmp_path / "m.keras", []
    held, go_on = threading.Event(), threading.Event()

    def first():
        with alone(path):
            held.set()
            go_on.wait(60)
            order.append("first ends")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait(60)
    threading.Timer(0.5, go_on.set).start()
    with pytest.warns(RuntimeWarning, match=r"m\.keras: another process works on it; waiting"):
        with alone(path):
            order.append("second begins")
    thread.join()
    assert order == ["first ends", "second begins"]
    assert names(tmp_path) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with alone(tmp_path / "other.keras"), alone(path):
            pass


def test_many_at_once_are_never_two(tmp_path):
    """Each adds one to a number in a file, unprotected but for the lock."""
    code = (
        "import sys, time, warnings; from pathlib import Path; from mri._files import alone\n"
        "warnings.simplefilter('ignore')\n"
        "for _ in range(20):\n"
        "    with alone(Path(sys.argv[1]) / 'm.keras'):\n"
        "        count = Path(sys.argv[1], 'count'); n = int(count.read_text())\n"
        "        time.sleep(0.002); count.write_text(str(n + 1))\n"
    )
    (tmp_path / "count").write_text("0")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    children = [subprocess.Popen(command, env=environment) for _ in range(4)]
    assert [child.wait(120) for child in children] == [0] * 4
    assert (tmp_path / "count").read_text() == "80"
    assert names(tmp_path) == ["count"]


@pytest.mark.slow
def test_two_trainings_of_one_name_train_once(tmp_path):
    """Both get the same network: the second waits for the first and returns what it has made."""
    log, results = tmp_path / "log", {}
    begun = threading.Event()

    class Log(cases.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            with log.open("a") as file:
                print(epoch, file=file)
            begun.set()
            time.sleep(0.2)

    def work(key):
        results[key] = cases.run(tmp_path / "models", callbacks=[Log()])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = threading.Thread(target=work, args=("first",))
        first.start()
        begun.wait(60)
        work("second")
        first.join()
    assert any("another process works on it" in str(one.message) for one in caught)
    assert log.read_text().split() == ["0", "1", "2", "3"]
    assert results["first"].card == results["second"].card
    assert names(tmp_path / "models") == ["m.json", "m.keras"]


# --- a disk that is full, a folder that is not to be written ---


@contextmanager
def no_file_over(size):
    """Let no file grow over so many bytes: what a full disk does, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path):
    """The run ends with an error that names file and remedy; with room again it goes on."""
    unbroken = cases.run(tmp_path / "whole")
    folder = tmp_path / "models"

    class Full(cases.keras.callbacks.Callback):
        limit = None

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.limit = no_file_over(1000)
                self.limit.__enter__()

    full = Full()
    with pytest.raises(OSError) as caught:
        try:
            cases.run(folder, callbacks=[full])
        finally:
            full.limit.__exit__(None, None, None)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(folder / ".m.state.npz")
    assert caught.value.__notes__ == [
        f"Kept in {folder / '.m.state.npz'}: 2 finished epochs. Repeat the same call to continue."
    ]
    assert names(folder) == [".m.state.npz"]
    seen = []

    class Log(cases.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(epoch)

    cases.assert_same_run(cases.run(folder, callbacks=[Log()]), unbroken)
    assert seen == [2, 3]


def test_a_full_disk_at_the_end_leaves_the_old_model(tmp_path):
    path = tmp_path / "m.keras"
    model = build_model("flat", input_shape=(32, 32, 1))
    save_model(model, path, {"n": 1})
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with pytest.raises(OSError), no_file_over(2000):
        save_model(model, path, {"n": 2})
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    # The card is too large, after the model itself had room.
    with pytest.raises(OSError, match="too large"), no_file_over(len(before["m.keras"]) + 1000):
        save_model(model, path, {"n": "2" * 10**6})
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    load_model(path)


@pytest.fixture
def full_disk(tmp_path):
    """A disk of 512 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_real_full_disk(full_disk):
    (full_disk / "ballast").write_bytes(bytes(496 * 1024))
    with pytest.raises(OSError, match="No space left on device") as caught:
        cases.run(full_disk / "models")
    assert caught.value.__notes__ == ["No epoch was finished, so nothing is kept."]
    assert names(full_disk / "models") == []
    (full_disk / "ballast").unlink()
    assert cases.run(full_disk / "models").path.is_file()


@contextmanager
def nobody():
    """Be a user who may not write everywhere, where root would be."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def read_only():
    """A folder that can be read and not written; those of pytest cannot be read by others."""
    with tempfile.TemporaryDirectory() as outer:
        Path(outer).chmod(0o755)
        place = Path(outer, "models")
        place.mkdir()
        yield place
        place.chmod(0o755)


def test_a_read_only_folder_is_noticed_before_training(read_only):
    read_only.chmod(0o555)
    begun = []

    class Log(cases.keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            begun.append(True)

    with nobody(), pytest.raises(PermissionError, match="models") as caught:
        cases.run(read_only, callbacks=[Log()])
    assert caught.value.__notes__ == [
        f"{read_only}: cannot be written, nothing was done; use another folder"
    ]
    assert not begun
    assert names(read_only) == []


def test_a_finished_run_is_read_from_a_read_only_folder(read_only):
    first = cases.run(read_only)
    cases.run(read_only)  # What Python imports for it may lie where the other user may not read.
    read_only.chmod(0o555)
    with nobody():
        again = cases.run(read_only)
    assert again.card == first.card


# --- interrupted, and clocks ---


@pytest.mark.slow
def test_an_interrupted_run_says_what_is_kept(tmp_path):
    class Interrupt(cases.keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.epoch == 2 and batch == 1:
                raise KeyboardInterrupt

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    with pytest.raises(KeyboardInterrupt) as caught:
        cases.run(tmp_path, callbacks=[Interrupt()])
    (note,) = caught.value.__notes__
    assert "2 finished epochs" in note
    assert "Repeat the same call to continue" in note
    assert names(tmp_path) == [".m.state.npz"]


@pytest.mark.slow
def test_a_clock_that_goes_back_changes_nothing(tmp_path, monkeypatch):
    clock = iter(range(10**9, 0, -1000))
    unbroken = cases.run(tmp_path / "steady")
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: float(next(clock)))
        result = cases.run(tmp_path / "back")
    assert result.card["seconds"] >= 0
    cases.assert_same_run(result, unbroken)


def test_a_file_that_another_process_writes_is_not_taken_for_a_left_one(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from mri._files import replacing\n"
        "with replacing(Path('net.parquet')) as temporary:\n"
        "    temporary.write_text('whole'); print('writes', flush=True); sys.stdin.readline()\n"
    )
    home = str(Path(__file__).parents[1])
    writer = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        text=True,
        env=os.environ | {"PYTHONPATH": home},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout.readline() == "writes\n"
    left = tmp_path / ".net.7.tmp.json"
    left.write_text("of a killed process")
    with alone(tmp_path / "net.keras"):
        assert not left.exists()
    writer.communicate("\n")
    assert writer.returncode == 0
    assert (tmp_path / "net.parquet").read_text() == "whole"
    assert sorted(of.name for of in tmp_path.iterdir()) == ["net.parquet"]
