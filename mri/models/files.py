"""A model on disk and its card: written whole or not at all, inspected before it is loaded."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from mri._arguments import require
from mri._files import file_sha256, read_regular, replacing
from mri._text import for_markdown
from mri.models.cards import ModelFileError as ModelFileError
from mri.models.cards import problem_of
from mri.models.cards import read_card as read_card
from mri.models.graph import check_graph

if TYPE_CHECKING:
    from mri._keras import keras
    from mri.data.scans import Scans


_MEMBERS = {"config.json", "metadata.json", "model.weights.h5"}
_MAX_FILE = 2**31
_MAX_CONFIG = 4 * 2**20
# A file may name anything that Keras can find: only parts of networks are let through, and of
# these not the ones that run code or read other files on loading.
_KINDS = {"activations", "constraints", "dtype_policies", "initializers", "layers", "losses",
          "metrics", "models", "ops", "optimizers", "quantizers", "regularizers"}  # fmt: skip
_REFUSED = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "StringLookup",
            "IntegerLookup", "IndexLookup", "TextVectorization", "STFTSpectrogram", "__lambda__",
            "__typespec__"}  # fmt: skip
# An output of a layer may hold so many times the numbers of a slice: 1024 channels at full size.
_MAX_GROWTH = 1024


_DESCRIBED = {"split", "recipe", "versions", "validation", "builder", "synthetic", "data",
              "parameters", "seed", "best_epoch", "seconds", "sha256", "temperature"}  # fmt: skip


def save_model(model: Any, path: str | os.PathLike[str], card: Mapping[str, Any]) -> dict[str, Any]:
    """Save a Keras model as ``<name>.keras`` with its card ``<name>.json`` beside it.

    Parameters
    ----------
    model : keras.Model
    path : path
        Ends in ``.keras``; its folder is made if need be.
    card : mapping
        JSON-ready facts about the model.

    Returns
    -------
    dict
        The card as written, with the SHA-256 of the model file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Both are on the disk before either is renamed; a kill between the two renamings leaves a hash
    # that does not fit, which `load_model` reports.
    with replacing(path.with_suffix(".json")) as temporary_card, replacing(path) as temporary:
        model.save(temporary)
        # A card that was read from a file carries the hash of that file.
        card = {"sha256": "", **card} | {"sha256": file_sha256(temporary)}
        temporary_card.write_text(json.dumps(card, indent=1), encoding="utf-8")
    return card


def describe(card: Mapping[str, Any]) -> str:
    """Render a card that `mri.train` has written as a model card in Markdown.

    The headings are those of Mitchell et al. 2019 (doi:10.1145/3287560.3287596).

    Raises
    ------
    ValueError
        If the card lacks what `mri.train` writes, naming it.

    Examples
    --------
    >>> print(describe(read_card("models/zoo/tissue-subject.keras")).splitlines()[0])
    ### Model card: tissue, subject-level split
    """
    missing = sorted(_DESCRIBED.difference(card))
    require(not missing, "Expected a card that mri.train has written.", missing=missing)
    problem = problem_of(dict(card))
    require(problem is None, "Expected a card that mri.train has written.", problem=problem)
    split, recipe, versions = card["split"], card["recipe"], card["versions"]
    leaky = split["protocol"] != "subject"
    parts = zip(("train", "validation", "test"), split["slices"], strict=True)
    slices = ", ".join(f"{side} {count}" for side, count in parts)
    builder, plain = for_markdown(card["builder"]), for_markdown
    fold = "" if leaky else f", fold {split['fold']} of {split['folds']}"
    figures = "; ".join(
        f"{plain(k.replace('_', ' '))} {v:.3f}" for k, v in card["validation"].items()
    )
    recommended = ", ".join(f"{plain(key)} {plain(value)}" for key, value in recipe.items())
    return "\n\n".join(
        [
            f"### Model card: {builder}, {split['protocol']}-level split",
            "**Intended use.** Teaching and method comparison. **Not a diagnostic device.**",
            f"**Data.** {'Synthetic phantoms' if card['synthetic'] else 'Slices of OASIS-1'}, "
            f"fingerprint `{card['data'][:16]}`; {slices} slices{fold}.",
            f"**Training.** {card['parameters']} weights; {recommended}; seed {card['seed']}; "
            f"epoch {card['best_epoch'] + 1} of {recipe['epochs']} kept; {card['seconds']} s. "
            + ", ".join(f"{plain(key)} {plain(value)}" for key, value in versions.items())
            + f". File SHA-256 `{card['sha256'][:16]}`.",
            f"**Figures.** On the validation part, by which the epoch was chosen: {figures}; "
            f"temperature {card['temperature']:.2f}. "
            "Test figures are in the notebooks, with intervals.",
            "**Caveats.** Image-level split: the figures measure recognition of people."
            if leaky
            else "**Caveats.** Few people per class; "
            "age and brain volume are confounded with the diagnosis.",
        ]
    )


class ModelFile:
    """A model file and its card, each read once however often it is asked.

    Parameters
    ----------
    path : path
        Of the ``.keras`` file, which may be absent where a card is enough.

    Examples
    --------
    >>> file = ModelFile("models/zoo/tissue-subject.keras")
    >>> file.card["builder"], file.load().count_params()
    ('tissue', 70)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @cached_property
    def card(self) -> dict[str, Any] | None:
        """The card beside the file, None where there is none; see `read_card`."""
        return read_card(self.path)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file; of an absent one, that which its card names."""
        if self.path.is_file():
            return hashlib.sha256(self._read()).hexdigest()
        return str((self.card or {}).get("sha256", ""))

    def _read(self) -> bytes:
        try:
            return read_regular(self.path, _MAX_FILE)
        except OSError as error:
            raise ModelFileError(f"{self.path}: cannot be read ({error})") from error

    def _content(self) -> bytes:
        """Return the bytes of the file, which are the same whenever they are asked for."""
        content = self._read()
        digest = hashlib.sha256(content).hexdigest()
        if self.__dict__.setdefault("sha256", digest) != digest:
            raise ModelFileError(f"{self.path}: was changed while it was read; read it again")
        return content

    @contextmanager
    def _private(self) -> Iterator[Path]:
        """Give a copy that nobody else can change: what was inspected is what Keras loads."""
        self.inspect()
        with TemporaryDirectory() as folder:
            copy = Path(folder, "model.keras")
            copy.write_bytes(self._content())
            yield copy

    @cached_property
    def _inspected(self) -> bool:
        _check_name(self.path)
        _inspect_archive(self.path, self._content())
        if self.card is not None and self.card.get("sha256") != self.sha256:
            raise ModelFileError(
                f"{self.path}: SHA-256 {self.sha256} is not {self.card.get('sha256')} of its card; "
                "train the model again, or remove the card if the file was replaced on purpose"
            )
        return True

    def inspect(self) -> None:
        """Raise `ModelFileError` unless it is a plain Keras archive that agrees with its card."""
        _ = self._inspected

    def load(self) -> keras.Model:
        """Return the model, not compiled; see `load_model`."""
        from mri._keras import keras

        with self._private() as copy:
            try:
                _check_weights(self.path, copy)
                _check_growth(self.path, copy)
                model = keras.saving.load_model(copy, compile=False, safe_mode=True)
                if isinstance(model, keras.Model) and model.built:
                    check_graph(self.path, model)
            except ModelFileError:
                raise
            except Exception as error:
                raise ModelFileError(f"{self.path}: Keras cannot load it ({error})") from error
        if not isinstance(model, keras.Model):
            raise ModelFileError(f"{self.path}: holds a {type(model).__name__}, not a model")
        return model

    def load_into(self, model: keras.Model) -> None:
        """Give `model` the weights of the file, which must be of that very network.

        Raises
        ------
        ModelFileError
            As for `load_model`, or if the weights are of another network.
        """
        with self._private() as copy:
            try:
                _check_weights(self.path, copy)
                model.load_weights(copy)
            except ModelFileError:
                raise
            except Exception as error:
                raise ModelFileError(f"{self.path}: Keras cannot load it ({error})") from error

    def held_out(self, scans: Scans, fingerprint: str | None = None) -> np.ndarray:
        """Return the test rows of the card, int (m,); without a card, all rows.

        Parameters
        ----------
        scans : Scans
        fingerprint : str, optional
            Of `scans`, where it is known already.

        Raises
        ------
        ModelFileError
            If the card does not say, or is of other slices than these.
        """
        if self.card is None:
            return np.arange(len(scans))
        try:
            return _test_rows(self.card, scans, fingerprint or scans.fingerprint())
        except ModelFileError as error:
            raise ModelFileError(f"{self.path}: {error}") from None


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """Load a ``.keras`` file after looking into it, without running any code that it brings.

    Parameters
    ----------
    path : path

    Returns
    -------
    keras.Model
        Not compiled.

    Raises
    ------
    ModelFileError
        If the file is missing, not a Keras 3 archive, damaged, has unexpected members or layers
        that carry code, declares more weights than it holds, or differs from its card.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from mri.models import build_model
    >>> with TemporaryDirectory() as folder:
    ...     card = save_model(build_model("tissue"), Path(folder, "mine.keras"), {"who": "me"})
    ...     load_model(Path(folder, "mine.keras")).count_params()
    70
    """
    return ModelFile(path).load()


def _test_rows(card: dict[str, Any], scans: Scans, fingerprint: str) -> np.ndarray:
    missing = {"class_names", "data", "split", "temperature", "test_rows"}.difference(card)
    if missing:
        raise ModelFileError(f"its card lacks {sorted(missing)}; train the model again")
    if tuple(card["class_names"]) != scans.class_names:
        raise ModelFileError(f"classes {card['class_names']}, the data have {scans.class_names}")
    if card["data"] != fingerprint:
        raise ModelFileError(
            f"trained on other slices (fingerprint {card['data'][:12]}, these are "
            f"{fingerprint[:12]}); which of these it has seen cannot be told"
        )
    if not card["test_rows"]:
        raise ModelFileError("its card names no test rows, so nothing is left to measure")
    rows = np.array(card["test_rows"])
    known = np.intersect1d(rows, np.arange(len(scans)))
    if rows.ndim != 1 or rows.dtype.kind != "i" or len(known) < len(rows):
        raise ModelFileError(
            f"the test rows of its card are not distinct rows of these {len(scans)} slices; train "
            "the model again"
        )
    return rows


def _check_name(path: Path) -> None:
    if path.suffix != ".keras":
        raise ModelFileError(f"{path}: expected a .keras file; save it with model.save('….keras')")
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")


def _inspect_archive(path: Path, content: bytes) -> None:
    """Raise `ModelFileError` unless `content` is a Keras archive without code or bombs."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = sorted(archive.namelist())
            if members != sorted(_MEMBERS):
                raise ModelFileError(f"{path}: expected {sorted(_MEMBERS)}, found {members}")
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            whole, packed = sum(sizes.values()), len(content)
            # Float weights hardly compress: far more than the file itself is a bomb.
            if sizes["config.json"] > _MAX_CONFIG or whole > 20 * packed + _MAX_CONFIG:
                raise ModelFileError(f"{path}: unpacks from {packed} to {whole} bytes")
            names = list(_names(json.loads(archive.read("config.json"))))
    except ModelFileError:
        raise
    except Exception as error:
        raise ModelFileError(f"{path}: not a whole Keras archive ({error})") from error
    for name in names:
        root, *inner, last = name.replace("keras.src.", "keras.").split(".")
        if last in _REFUSED or root != "keras" or (inner and inner[0] not in _KINDS):
            raise ModelFileError(
                f"{path}: holds {name}, which may run code on loading; only Keras' own layers "
                "without code are loaded"
            )


def _check_weights(path: Path, copy: Path) -> None:
    """Raise `ModelFileError` if the weights claim more than the file holds.

    Keras reads whatever a data set declares before it compares the two.
    """
    import h5py

    claimed, packed = 0, copy.stat().st_size

    def visit(name: str, entry: h5py.Group | h5py.Dataset) -> None:
        nonlocal claimed
        # Each is visited once, but would be read once a link.
        if h5py.h5o.get_info(entry.id).rc != 1:
            raise ModelFileError(f"{path}: its weights {name} have more than one name")
        claimed += entry.nbytes if isinstance(entry, h5py.Dataset) else 0

    with zipfile.ZipFile(copy) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content, "r") as weights:
        weights.visititems(visit)
    if claimed > 20 * packed + _MAX_CONFIG:
        raise ModelFileError(f"{path}: its weights claim {claimed} bytes, the file has {packed}")


def _check_growth(path: Path, copy: Path) -> None:
    """Raise `ModelFileError` if a layer's output is far larger than a slice.

    Keras builds whatever a configuration declares, so it is asked before memory is taken.
    """
    # Keras keeps what it has yet to initialise by thread: in one of its own it is forgotten.
    with ThreadPoolExecutor(1) as thread:
        growth = thread.submit(_growth, copy).result()
    if growth > _MAX_GROWTH:
        raise ModelFileError(
            f"{path}: a layer gives {growth:.0f} times the numbers of a slice, the limit is "
            f"{_MAX_GROWTH}"
        )


def _growth(path: Path) -> float:
    """Load a model without room for its weights; return its largest output by its input."""
    from mri._keras import keras

    # Shapes are inferred and compared with the weights of the file; nothing is initialised.
    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    sizes, parts = [0], [model]
    for part in parts:
        parts += getattr(part, "operations", getattr(part, "layers", []))
        nodes = getattr(part, "_inbound_nodes", [])
        sizes += [math.prod(filter(None, x.shape)) for node in nodes for x in node.output_tensors]
    taken = sum(math.prod(filter(None, x.shape)) for x in getattr(model, "inputs", None) or [])
    return max(sizes) / max(taken, 1)


def _names(config: Any) -> Iterator[str]:
    """Yield the dotted name of every object that the configuration asks for."""
    if isinstance(config, dict):
        if "class_name" in config:
            name, module = config["class_name"], config.get("module") or "keras"
            if name == "function":
                # Those of 'builtins' Keras takes from its own activations, losses and the like.
                name, module = config.get("config"), "keras" if module == "builtins" else module
            yield f"{module}.{name}"
            if config.get("registered_name") and config.get("module") is None:
                yield f"unknown.{config['registered_name']}"
        for value in config.values():
            yield from _names(value)
    elif isinstance(config, list):
        for value in config:
            yield from _names(value)
