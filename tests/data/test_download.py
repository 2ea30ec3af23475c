"""`download` against a stand-in for the hub on the loopback interface."""

import hashlib
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mri.__main__ import main
from mri.data import download as hub
from mri.data.decode import DataError
from mri.data.download import download_slices as download
from mri.data.parquet import HUB_FILES, HUB_REPOSITORY, HUB_REVISION, REMEDY

pytest.importorskip("huggingface_hub")

COMMIT = HUB_REVISION
CONTENT = {name: name.encode() * 1000 for name in HUB_FILES}


class Hub:
    """The part of the hub that `download` meets: history, tree and files of one revision."""

    def __init__(self, folder):
        self.files = {f"{folder}{name}": content for name, content in CONTENT.items()}
        self.sha256 = {path: hashlib.sha256(c).hexdigest() for path, c in self.files.items()}
        self.fetched, self.ranges = [], []
        self.cut = None  # Bytes after which the connection breaks.

    def answer(self, path, query):
        """Return (body, headers) or None."""
        api = f"/api/datasets/{HUB_REPOSITORY}"
        if path == f"{api}/tree/{COMMIT}":
            entries = [{"type": "directory", "path": "data", "oid": "1" * 40}]
            entries += [{"type": "file", "path": "README.md", "size": 7, "oid": "2" * 40}]
            deep = "recursive=true" in query.lower()
            for name, content in self.files.items() if deep else ():
                lfs = {"oid": self.sha256[name], "size": len(content), "pointerSize": 130}
                entry = {"type": "file", "path": name, "size": len(content), "oid": "3" * 40}
                entries.append({**entry, "lfs": lfs})
            return json.dumps(entries).encode(), {}
        name = path.removeprefix(f"/datasets/{HUB_REPOSITORY}/resolve/{COMMIT}/")
        if name in self.files:
            headers = {"ETag": f'"{self.sha256[name]}"', "X-Repo-Commit": COMMIT}
            return self.files[name], headers
        return None


@pytest.fixture(params=["data/", ""], ids=["in a folder", "at the top"])
def served(request, tmp_path, monkeypatch):  # `tmp_path` is made before `use` takes its place.
    state = Hub(request.param)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, query = self.path.partition("?")
            body, headers = state.answer(path, query) or (b"", None)
            begin = int(re.search(r"\d+", self.headers.get("Range") or "0")[0])
            total, body = len(body), body[begin:]
            self.send_response(404 if headers is None else 206 if begin else 200)
            if begin:
                headers |= {"Content-Range": f"bytes {begin}-{total - 1}/{total}"}
            for key, value in {"Content-Length": len(body), **(headers or {})}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                if "/resolve/" in path:
                    state.fetched.append(Path(path).name)
                    state.ranges.append(begin)
                    if state.cut is not None:
                        self.wfile.write(body[: state.cut])
                        state.cut, self.close_connection = None, True
                        return
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    use(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def use(monkeypatch, endpoint):
    """Send `huggingface_hub` there, past proxy, cache and token, its retries without a pause."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "does-not-exist")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    # Files are renamed into place, so they must not be fetched to another file system.
    monkeypatch.setattr("tempfile.tempdir", "does-not-exist")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def listing(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".download")


def test_download(served, tmp_path):
    paths = download(tmp_path / "new" / "data")
    assert [path.name for path in paths] == list(HUB_FILES)
    assert [path.read_bytes() for path in paths] == list(CONTENT.values())
    assert listing(tmp_path / "new" / "data") == sorted(HUB_FILES), "and nothing else is left"
    assert sorted(served.fetched) == sorted(HUB_FILES)


def test_a_second_call_fetches_only_what_is_missing_or_differs(served, tmp_path):
    first, second = download(tmp_path)
    served.fetched.clear()
    assert download(tmp_path) == [first, second]
    assert served.fetched == []
    second.unlink()
    download(tmp_path)
    assert served.fetched == [second.name]
    first.write_bytes(b"changed by hand")
    download(tmp_path)
    assert served.fetched == [second.name, first.name]
    assert first.read_bytes() == CONTENT[first.name]


def test_a_wrong_sha256_is_refused_and_nothing_is_left_of_it(served, tmp_path):
    path = next(path for path in served.files if path.endswith(HUB_FILES[1]))
    old = b"an older file of the user"
    (tmp_path / HUB_FILES[1]).write_bytes(old)
    served.files[path] = served.files[path][::-1]
    found = hashlib.sha256(served.files[path]).hexdigest()
    message = (
        f"{tmp_path / HUB_FILES[1]}: SHA-256 {found}, but the hub records {served.sha256[path]}; "
        "the download was removed, run it again"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        download(tmp_path)
    assert listing(tmp_path) == sorted(HUB_FILES)
    assert (tmp_path / HUB_FILES[0]).read_bytes() == CONTENT[HUB_FILES[0]]
    assert (tmp_path / HUB_FILES[1]).read_bytes() == old
    # What was fetched before stays, so that the next call takes up from there.
    served.files[path] = CONTENT[HUB_FILES[1]]
    served.fetched.clear()
    download(tmp_path)
    assert served.fetched == [HUB_FILES[1]]


def test_a_broken_connection_is_taken_up_where_it_was(served, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    served.cut = 10_000
    assert [path.read_bytes() for path in download(tmp_path)] == list(CONTENT.values())
    assert served.ranges == [0, 10_000, 0]
    assert listing(tmp_path) == sorted(HUB_FILES)


def test_what_a_killed_download_left_is_removed_and_whole_files_stay(served, tmp_path):
    second = download(tmp_path)[1]
    served.fetched.clear()
    second.unlink()
    (tmp_path / ".download/data").mkdir(parents=True)
    (tmp_path / ".download/data/half").write_bytes(b"half a file")
    download(tmp_path)
    assert served.fetched == [HUB_FILES[1]]
    assert listing(tmp_path) == sorted(HUB_FILES)


def test_the_whole_hash_of_the_revision_is_pinned_and_asked_for(served, tmp_path, monkeypatch):
    assert re.fullmatch("daac24f[0-9a-f]{33}", HUB_REVISION)
    monkeypatch.setattr(served, "answer", lambda path, query: None)
    with pytest.raises(DataError, match=f"(?s)download failed .*404.*{HUB_REVISION}.*Put train-"):
        download(tmp_path)


def test_a_file_that_is_not_in_the_revision(served, tmp_path):
    served.files.popitem()
    with pytest.raises(DataError, match=re.escape(f"KeyError: '{HUB_FILES[1]}'")):
        download(tmp_path)


def test_a_file_that_the_hub_lists_but_does_not_give(served, tmp_path, monkeypatch):
    answer = served.answer
    monkeypatch.setattr(served, "answer", lambda *url: HUB_FILES[1] not in url[0] and answer(*url))
    with pytest.raises(DataError, match=r"^download failed \(LocalEntryNotFoundError"):
        download(tmp_path)
    assert listing(tmp_path) == [HUB_FILES[0]]


def test_without_a_network_it_says_which_files_to_put_where(tmp_path, monkeypatch):
    use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"^download failed \(") as error:
        download(tmp_path)
    for part in (*HUB_FILES, HUB_REPOSITORY, "MRI_DATA", "python -m mri download"):
        assert part in str(error.value)
    assert str(error.value).endswith(REMEDY)
    assert listing(tmp_path) == []


def test_without_the_package_it_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=f"huggingface_hub.*{re.escape(REMEDY)}"):
        download(tmp_path)


def test_the_command_line_prints_what_it_fetched(served, tmp_path, capsys):
    assert main(["download", "--folder", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{tmp_path / name}: SHA-256 verified" for name in HUB_FILES]


def test_the_command_line_fails_with_the_remedy(monkeypatch, capsys):
    def fail(folder):
        raise DataError(f"nothing for {folder}")

    monkeypatch.setattr(hub, "download_slices", fail)
    assert main(["download"]) == 1
    assert capsys.readouterr() == ("", "nothing for data\n")


@pytest.mark.parametrize("arguments", [[], ["upload"], ["download", "--no"]])
def test_the_command_line_refuses_what_it_does_not_know(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: python -m mri" in capsys.readouterr().err


@pytest.mark.slow
def test_the_module_runs_as_the_remedy_says():
    command = [sys.executable, "-W", "error", "-m", "mri", "download", "--help"]
    done = subprocess.run(
        command, cwd=Path(hub.__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m mri download")
    assert done.stderr == ""
