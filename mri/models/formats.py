"""What a file is that was meant as a model, by its content, and how to make a model file of it."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from mri._files import read_regular

_MAX_TEXT = 2**22

_SAVE = "save it with model.save('….keras')"
_AGAIN = f"load it where it was made, with the Keras or TensorFlow that made it, and {_SAVE}"
_REBUILD = f"build its network in Keras, give it these weights, and {_SAVE}"
_CONVERT = f"build the same network in Keras, copy the weights layer by layer, and {_SAVE}"

_PICKLE = "a pickle, which may run code and is never opened", _CONVERT
_PYTORCH = "a PyTorch model, which may run code and is never opened", _CONVERT
_ONNX = "an ONNX model", _CONVERT
# What stands at which place of a file, which format that is, and the way out.
_MAGIC = {
    (4, b"TFL3"): ("a TensorFlow Lite model, whose weights are made for inference", _AGAIN),
    (0, b"\x93NUMPY"): ("a NumPy array", _REBUILD),
    (0, b"GGUF"): ("a GGUF file", _CONVERT),
    **{(0, bytes([0x80, version])): _PICKLE for version in (2, 3, 4, 5)},
}
_ENDINGS = {
    ".onnx": _ONNX,
    ".pb": ("a TensorFlow graph", _AGAIN),
    ".pt": _PYTORCH,
    ".pth": _PYTORCH,
    ".ckpt": ("a checkpoint of weights only", _REBUILD),
    ".index": ("a part of a TensorFlow checkpoint, weights only", _REBUILD),
    ".safetensors": ("weights only", _REBUILD),
}
_TEXT = (".md", ".txt", ".csv", ".tsv", ".png", ".jpg", ".jpeg", ".svg", ".gif", ".pdf", ".html",
         ".py", ".ipynb", ".yaml", ".yml", ".log", ".parquet", ".json", ".toml")  # fmt: skip


def may_be_model(path: Path) -> bool:
    """Whether an entry of a folder of models has to be accounted for: not text or a picture."""
    if path.suffix == ".npz" and path.with_suffix(".json").exists():
        return False  # The template of a model of a person.
    if path.suffix != ".json":
        return path.suffix not in _TEXT
    if path.with_suffix(".keras").exists() or path.with_suffix(".parquet").exists():
        return False
    try:
        return "class_name" in json.loads(read_regular(path, _MAX_TEXT).decode("utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def recognised(path: str | os.PathLike[str]) -> str:
    """Return what a file or folder is that is no Keras 3 archive, and the way out; '' if unknown.

    Nothing is loaded: the first bytes, names of members and short texts are looked at.
    """
    path = Path(path)
    if path.is_dir():
        found = named(_of_folder, path)
    else:  # A pipe that nobody writes to would be waited for.
        found = named(_of_file, path) if path.is_file() else ""
    return found or named(_ENDINGS.get, path.suffix)


def named(look: Callable[[Any], tuple[str, str] | None], at: Any) -> str:
    """Return in words what `look` finds, '' where it finds nothing or the file is damaged."""
    try:
        found = look(at)
    except Exception:  # Of a damaged file almost any kind.
        return ""
    return "it is {}: {}".format(*found) if found else ""


def _of_folder(path: Path) -> tuple[str, str]:
    names = {entry.name for entry in path.iterdir()}
    if names & {"saved_model.pb", "saved_model.pbtxt"}:
        return "a TensorFlow SavedModel", _AGAIN
    if "config.json" in names:
        return "an unpacked Keras archive", "pack its files into one .keras file (zip) again"
    return "a folder", "models are looked for in models/ and models/zoo/ only, put files there"


def _of_file(path: Path) -> tuple[str, str] | None:
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            with zipfile.ZipFile(file) as archive:
                whole = "config.json" in archive.namelist() and path.suffix != ".keras"
                renamed = ("a Keras model", "let its name end in .keras") if whole else None
                return of_archive(archive) or renamed
        return of_start(file)


def of_start(file: IO[bytes]) -> tuple[str, str] | None:
    """Return what a file is that is no archive, and the way out."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(64)
    if not head:
        return "empty", "copy it again"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _of_hdf5(file)
    for (at, magic), found in _MAGIC.items():
        if head.startswith(magic, at):
            return found
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 0 < length < size:
        return "a safetensors file, weights only", _REBUILD
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b":", b"B"):
        return _ONNX
    if head.lstrip()[:1] == b"{" and size <= _MAX_TEXT:
        file.seek(0)
        if "class_name" in json.loads(file.read(_MAX_TEXT)):
            return "a network without its weights", f"give it its weights, and {_SAVE}"
    return None


def of_archive(archive: zipfile.ZipFile) -> tuple[str, str] | None:
    """Return what an archive is that is none of Keras 3, and the way out."""
    names = archive.namelist()
    if "data.pkl" in {name.rpartition("/")[2] for name in names}:
        return _PYTORCH
    if names and all(name.endswith(".npy") for name in names):
        return "NumPy arrays, weights only", _REBUILD
    inside = [name for name in names if name.endswith((".keras", "/config.json"))]
    if "config.json" not in names and inside:
        return "an archive around a model", f"unpack it; its model is at {inside[0]:.80}"
    if "metadata.json" in names and archive.getinfo("metadata.json").file_size < 2**16:
        version = str(json.loads(archive.read("metadata.json")).get("keras_version", ""))
        if version.startswith("2."):
            return f"a file of Keras {version}", (
                f"in Keras 2 save its weights, build the network in Keras 3, load them, and {_SAVE}"
            )
    return None


def _of_hdf5(file: IO[bytes]) -> tuple[str, str]:
    import h5py

    try:
        with h5py.File(file, "r") as opened:
            if "model_config" in opened.attrs:
                return "a whole model in Keras' older HDF5 format", _AGAIN
            weights = bool({"layers", "_layer_checkpoint_dependencies", "vars"} & set(opened)) or (
                "layer_names" in opened.attrs
            )
    except OSError:
        return "a damaged HDF5 file", "copy it again"
    return ("weights only, in HDF5", _REBUILD) if weights else ("an HDF5 file", _AGAIN)
