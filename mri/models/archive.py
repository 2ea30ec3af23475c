"""Look into a model file of unknown origin before it is loaded, so that nothing in it can run."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mri.models.cards import ModelFileError
from mri.models.formats import named, of_archive, of_start

_MEMBERS = ["config.json", "metadata.json", "model.weights.h5"]
_MAX_CONFIG = 4 * 2**20
_MAX_PACKED = 20  # Float weights hardly compress: what unpacks to more is a bomb.
# A file may name anything that Keras can find: only parts of networks are let through, and of
# these not the ones that run code or read other files on loading.
_KINDS = {"activations", "constraints", "dtype_policies", "initializers", "layers", "losses",
          "metrics", "models", "ops", "optimizers", "quantizers", "random",
          "regularizers"}  # fmt: skip
_REFUSED = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "StringLookup",
            "IntegerLookup", "IndexLookup", "TextVectorization", "STFTSpectrogram", "__lambda__",
            "__typespec__"}  # fmt: skip
# Keras' own, of its ConvNeXt.
_ALLOWED = {"keras.applications.convnext.LayerScale"}
# An output of a layer may hold so many times the numbers of a slice: 1024 channels at full size.
_MAX_GROWTH = 1024


def inspect_archive(path: Path, content: bytes) -> None:
    """Raise `ModelFileError`, naming `path`, unless its content is an archive without code."""
    known = ""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = sorted(archive.namelist())
            if known := named(of_archive, archive):
                raise ModelFileError(f"{path}: not a whole Keras archive ({known})")
            if members != _MEMBERS:
                raise ModelFileError(f"{path}: expected {_MEMBERS}, found {members}")
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            whole, most = sum(sizes.values()), _MAX_PACKED * len(content) + _MAX_CONFIG
            if sizes["config.json"] > _MAX_CONFIG or whole > most:
                raise ModelFileError(f"{path}: unpacks from {len(content)} to {whole} bytes")
            names = list(_names(_without_compile(json.loads(archive.read("config.json")))))
    except ModelFileError:
        raise
    except Exception as error:
        known = known or named(of_start, io.BytesIO(content))
        raise ModelFileError(f"{path}: not a whole Keras archive ({known or error})") from error
    for name in names:
        plain = name.replace("keras.src.", "keras.")
        root, *inner, last = plain.split(".")
        carries_code = last in _REFUSED or root != "keras" or (inner and inner[0] not in _KINDS)
        if carries_code and plain not in _ALLOWED:
            raise ModelFileError(
                f"{path}: holds {name}, which may run code on loading; only Keras' own layers "
                "without code are loaded"
            )


def write_plain(content: bytes, copy: Path) -> None:
    """Write an archive that was inspected without what its models were compiled with.

    Keras compiles a model inside another even if it is told not to.
    """
    copy.write_bytes(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        config = json.loads(archive.read("config.json"))
        plain = _without_compile(config)
        if {**config, "compile_config": 0} == {**plain, "compile_config": 0}:
            return
        with zipfile.ZipFile(copy, "w") as into:
            for name in _MEMBERS:
                changed = name == "config.json"
                into.writestr(name, json.dumps(plain) if changed else archive.read(name))


def check_weights(path: Path, shown: Path) -> None:
    """Raise `ModelFileError`, naming the file `shown`, if its weights claim more than it holds.

    Keras reads whatever a data set declares before it compares the two.
    """
    import h5py

    claimed, packed = 0, path.stat().st_size

    def visit(name: str, entry: h5py.Group | h5py.Dataset) -> None:
        nonlocal claimed
        # Each is visited once, but would be read once a link.
        if h5py.h5o.get_info(entry.id).rc != 1:
            raise ModelFileError(f"{shown}: its weights {name} have more than one name")
        claimed += entry.nbytes if isinstance(entry, h5py.Dataset) else 0

    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as member:
        with h5py.File(io.BytesIO(member.read()), "r") as weights:
            weights.visititems(visit)
    if claimed > _MAX_PACKED * packed + _MAX_CONFIG:
        raise ModelFileError(f"{shown}: its weights claim {claimed} bytes, the file has {packed}")


def check_growth(path: Path, shown: Path) -> None:
    """Raise `ModelFileError` if a layer's output is far larger than a slice.

    Keras builds whatever a configuration declares, so it is asked before memory is taken.
    """
    # Keras keeps what it has yet to initialise by thread: in one of its own it is forgotten.
    with ThreadPoolExecutor(1) as thread:
        growth = thread.submit(_growth, path).result()
    if growth > _MAX_GROWTH:
        raise ModelFileError(
            f"{shown}: a layer gives {growth:.0f} times the numbers of a slice, the limit is "
            f"{_MAX_GROWTH}"
        )


def _growth(path: Path) -> float:
    """Load a model without room for its weights; return its largest output by its input."""
    from mri._keras import keras

    # Shapes are inferred and compared with the weights of the file; nothing is initialised.
    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    outputs, parts = [], [model]
    for part in parts:
        parts += getattr(part, "operations", getattr(part, "layers", []))
        outputs += [x for node in getattr(part, "_inbound_nodes", []) for x in node.output_tensors]
    largest = max(map(_numbers, outputs), default=0)
    return largest / max(sum(map(_numbers, getattr(model, "inputs", None) or [])), 1)


def _numbers(x: Any) -> int:
    return math.prod(filter(None, x.shape))


def _without_compile(config: Any) -> Any:
    """Return a configuration without what its models were compiled with: it is never read."""
    if isinstance(config, dict):
        return {k: _without_compile(v) for k, v in config.items() if k != "compile_config"}
    return [_without_compile(v) for v in config] if isinstance(config, list) else config


def _names(config: Any) -> Iterator[str]:
    """Yield the dotted name of every object that the configuration asks for."""
    inner = config if isinstance(config, list) else []
    if isinstance(config, dict):
        inner = list(config.values())
        if "class_name" in config:
            name, module = config["class_name"], config.get("module") or "keras"
            if name == "function":
                # Those of 'builtins' Keras takes from its own activations, losses and the like.
                name, module = config.get("config"), "keras" if module == "builtins" else module
            yield f"{module}.{name}"
            if config.get("registered_name") and config.get("module") is None:
                yield f"unknown.{config['registered_name']}"
    for value in inner:
        yield from _names(value)
