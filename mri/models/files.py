"""A model on disk and its card: written whole or not at all, inspected before it is loaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from mri._arguments import require
from mri._files import file_sha256, read_regular, replacing
from mri.models.archive import check_growth, check_weights, inspect_archive, write_plain
from mri.models.cards import CARD_VERSION, ModelFileError, read_card, rows_to_test
from mri.models.child import CHILD, Arrays, Facts
from mri.models.formats import recognised
from mri.models.graph import check_graph
from mri.models.inputs import FIELDS, SLICE, VALUES, adapt, declared, expected_of, only_declares
from mri.models.own import is_own

if TYPE_CHECKING:
    from mri._keras import keras
    from mri.data.scans import Scans
    from mri.models.inputs import Expects

__all__ = ["ModelFile", "ModelFileError", "declare", "find_model", "load_model", "read_card",
           "save_model"]  # fmt: skip

FOLDERS = ("models", "models/zoo")
"""Where models are looked for by name."""

_MAX_FILE = 2**31
_TRUSTED: set[str] = set()  # SHA-256 of what `save_model` has written, and what was tried out.


def save_model(model: Any, path: str | os.PathLike[str], card: Mapping[str, Any]) -> dict[str, Any]:
    """Save a Keras model as ``<name>.keras`` with its card ``<name>.json`` beside it.

    The folder of `path` is made if need be; `card` holds JSON-ready facts. Returns the card as
    written, with the SHA-256 of the model file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Both are on the disk before either is renamed; a kill between the two renamings leaves a hash
    # that does not fit, which `load_model` reports.
    with replacing(path.with_suffix(".json")) as temporary_card, replacing(path) as temporary:
        model.save(temporary)
        # A card that was read from a file carries the hash of that file.
        own = {"sha256": file_sha256(temporary), "card_version": CARD_VERSION}
        card = {**own, **card, **own}
        temporary_card.write_text(json.dumps(card, indent=1), encoding="utf-8")
    _TRUSTED.add(card["sha256"])
    return card


class ModelFile:
    """A model file and its card, each read once however often it is asked.

    The file itself may be absent where a card is enough.

    Examples
    --------
    >>> file = ModelFile("models/zoo/tissue-subject.keras")
    >>> file.card["builder"], file.load().count_params()
    ('tissue', 70)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._held: bytes | None = None
        self._inspected = False

    @cached_property
    def card(self) -> dict[str, Any] | None:
        """The card beside the file, None where there is none; see `read_card`."""
        return read_card(self.path)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file; of an absent one, that which its card names."""
        if self.path.is_file():
            return hashlib.sha256(self._content()).hexdigest()
        return str((self.card or {}).get("sha256", ""))

    def _content(self) -> bytes:
        """Return the bytes of the file, which are the same whenever they are asked for."""
        if self._held is not None:
            return self._held
        try:
            content = read_regular(self.path, _MAX_FILE)
        except OSError as error:
            raise ModelFileError(f"{self.path}: cannot be read ({error})") from error
        digest = hashlib.sha256(content).hexdigest()
        if self.__dict__.setdefault("sha256", digest) != digest:
            raise ModelFileError(f"{self.path}: was changed while it was read; read it again")
        return content

    @cached_property
    def expects(self) -> Expects | None:
        """What its card declares of the slices and classes that it takes, None where nothing is."""
        try:
            return declared(self.card or {})
        except ValueError as error:
            raise ModelFileError(f"{self.path.with_suffix('.json')}: {error}") from error

    @property
    def trained_here(self) -> bool:
        """Whether its card says how it was trained, not only what it expects."""
        return self.card is not None and not only_declares(self.card)

    def inspect(self) -> None:
        """Raise `ModelFileError` unless it is a plain Keras archive that agrees with its card."""
        if self._inspected:
            return
        card, known = self.card, recognised(self.path) if self.path.exists() else ""
        if self.path.suffix != ".keras":
            way = known or "save it with model.save('….keras')"
            raise ModelFileError(f"{self.path}: expected a .keras file; {way}")
        if not self.path.is_file():
            what = "no regular file" if self.path.exists() else "no such model file"
            what = (
                "a link to nothing" if self.path.is_symlink() and not self.path.exists() else what
            )
            raise ModelFileError(f"{self.path}: {what}{known and f'; {known}'}")
        content = self._content()
        inspect_archive(self.path, content)
        if card is not None and self.trained_here and "sha256" not in card:
            raise ModelFileError(
                f"{self.path}: its card has {sorted(card)!s:.200}, but no sha256. Expected what "
                f"mri.train writes, or only what the model expects: {list(FIELDS)}"
            )
        if card is not None and card.get("sha256", self.sha256) != self.sha256:
            raise ModelFileError(
                f"{self.path}: SHA-256 {self.sha256} is not {card.get('sha256')} of its card; "
                "train the model again, or remove the card if the file was replaced on purpose"
            )
        self._held, self._inspected = content, True

    def release(self) -> None:
        """Forget the bytes that `inspect` has read and `load` would take."""
        self._held = None

    @contextmanager
    def _private(self) -> Iterator[Path]:
        """Give a copy that nobody else can change: what was inspected is what Keras loads."""
        self.inspect()
        with TemporaryDirectory() as folder:
            copy = Path(folder, "model.keras")
            write_plain(self._content(), copy)
            self.release()
            yield copy

    @contextmanager
    def handed(
        self,
        slices: tuple[int, int] = SLICE,
        order: Sequence[str] | None = None,
        *,
        bare: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Give what `load_handed` needs in any process: JSON-ready, with a private copy.

        The arguments are those of `load`.
        """
        expects = self.expects.declared() if self.expects and not bare else {}
        told = {"slices": list(slices), "order": order and list(order), "expects": expects}
        with self._private() as copy:
            yield {"copy": str(copy), "shown": str(self.path), **told}

    def load(
        self,
        slices: tuple[int, int] = SLICE,
        order: Sequence[str] | None = None,
        *,
        bare: bool = False,
    ) -> keras.Model:
        """Return the model, not compiled, that takes slices as its card says; see `load_model`.

        Parameters
        ----------
        slices : tuple of int
            Rows and columns of the slices.
        order : sequence of str, optional
            Class names in the order wanted, where the card names the model's own; by default those
            of the data set.
        bare : bool
            Whether to leave the model as it is in the file, whatever its card declares.
        """
        with self.handed(slices, order, bare=bare) as told:
            # What a card declares changes what is run.
            tried = f"{self.sha256} {told | {'copy': ''}}"
            if not ({self.sha256, tried} & _TRUSTED or is_own(self)):
                CHILD.run(try_out, self.path, told, {})
                _TRUSTED.add(tried)
            return load_handed(**told)

    def load_into(self, model: keras.Model) -> None:
        """Give `model` the weights of the file, which must be of that very network.

        Raises
        ------
        ModelFileError
            As for `load_model`, or if the weights are of another network.
        """
        with self._private() as copy, _named(self.path):
            check_weights(copy, self.path)
            model.load_weights(copy)

    def held_out(self, scans: Scans, fingerprint: str | None = None) -> np.ndarray:
        """Return the test rows of the card, int (m,); of a model of unknown training, all rows.

        `fingerprint` is that of `scans`, where it is known already.

        Raises
        ------
        ModelFileError
            If the card does not say, or is of other slices than these.
        """
        if self.card is None or not self.trained_here:
            return np.arange(len(scans))
        try:
            return rows_to_test(self.card, scans, fingerprint or scans.fingerprint())
        except ModelFileError as error:
            raise ModelFileError(f"{self.path}: {error}") from None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in whatever Keras raises."""
    try:
        yield
    except ModelFileError:
        raise
    except Exception as error:
        raise ModelFileError(f"{path}: Keras cannot load it ({error})") from error


def load_handed(
    copy: str,
    shown: str,
    slices: Sequence[int],
    order: Sequence[str] | None,
    expects: Mapping[str, Any],
) -> keras.Model:
    """Return the model of what `ModelFile.handed` gives; messages name the file `shown`."""
    from mri._keras import keras

    path = Path(shown)
    with _named(path):
        check_weights(Path(copy), path)
        check_growth(Path(copy), path)
        model = keras.saving.load_model(copy, compile=False, safe_mode=True)
        if not isinstance(model, keras.Model):
            raise ModelFileError(f"{path}: holds a {type(model).__name__}, not a model")
        if not model.built:
            raise ModelFileError(
                f"{path}: holds no weights, its network was saved before it was built; call it "
                "once on images, train it, and save it again"
            )
        check_graph(path, model)
    try:
        rows, columns = slices
        return adapt(model, slices=(rows, columns), order=order, **expects) if expects else model
    except ValueError as error:
        raise ModelFileError(f"{path.with_suffix('.json')}: {error}") from error


def try_out(told: Facts, arrays: Arrays) -> Iterator[tuple[Facts, Arrays]]:
    """Load a model, run it on one blank slice and back, and yield nothing, twice; see `Answers`."""
    from mri._keras import tf

    model = load_handed(**told)
    shapes = [(of.shape[0] or 1, *(n or SLICE[0] for n in of.shape[1:])) for of in model.inputs]
    # What takes no such slice takes nothing of this process either.
    with suppress(ValueError, TypeError, tf.errors.InvalidArgumentError):
        blank = [tf.zeros(s, of.dtype) for s, of in zip(shapes, model.inputs, strict=True)]
        with tf.GradientTape() as tape:
            tape.watch([of for of in blank if of.dtype.is_floating])
            scores = model(blank[0] if len(blank) == 1 else blank, training=False)
        tape.gradient(scores, blank)
    yield {}, {}
    yield {}, {}


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """Load a ``.keras`` file after looking into it, without running any code that it brings.

    A stranger's file is first run on one blank slice, forwards and backwards, in a process of
    limited memory and time (`mri.models.child`). Trusted without that are files that
    `save_model` has written in this process, and those that come with this version
    (`mri.models.own`). No other card makes a file trusted: whoever writes a file can write its
    card too.

    Parameters
    ----------
    path : path or str
        Or the name of a file of ``models/`` or ``models/zoo/``, without ending.

    Returns
    -------
    keras.Model
        Not compiled. Where the card beside it declares what the model expects, it takes slices as
        the data set has them; see `mri.models.adapt`.

    Raises
    ------
    ModelFileError
        If the file is missing, not a Keras 3 archive, damaged, has unexpected members or layers
        that carry code, declares more weights than it holds, differs from its card, or takes more
        memory or time than the limits allow.

    Examples
    --------
    >>> load_model("tissue-subject").count_params()
    70
    """
    return ModelFile(find_model(path)).load()


def declare(path: str | os.PathLike[str], *, write: bool = True, **expects: Any) -> str:
    """Write beside a model file what it expects of slices; return what changes, a line a change.

    Parameters
    ----------
    path : path or name
        As for `load_model`. What its card says already stays, where it is not said anew.
    write : bool
        Whether to write the card, or only to say what would change.
    **expects
        See `adapt`.

    Raises
    ------
    ModelFileError
        If the file is not safe, or not one that can be used so.

    Examples
    --------
    >>> print(declare("tissue-subject", range=(0, 255), write=False))
    range: not declared, becomes [0, 255]
    takes: (None, 128, 128, 1); a gray value of 0 reaches it as 0, one of 255 as 255
    """
    file = ModelFile(find_model(path))
    model, before = file.load(bare=True), file.expects.declared() if file.expects else {}
    given = {name: value for name, value in expects.items() if value is not None}
    # Of the three ways to say which values it takes, the one named last counts.
    lost = VALUES if VALUES & given.keys() else set()
    told = {name: value for name, value in before.items() if name not in lost} | given
    try:
        after = expected_of(told)
        adapt(model, **told)
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{file.path}: {error}") from error
    now = after.declared()
    lines = [
        f"{name}: {before.get(name, 'not declared')}, becomes {now.get(name, 'not declared')}"
        for name in FIELDS
        if before.get(name) != now.get(name)
    ]
    from mri.models.scores import SMALL, image_input, scale_of

    scale, offset = after.values
    low, high = (", ".join(f"{of:.4g}" for of in v * scale + offset) for v in (0, 255))
    takes = image_input(model).shape
    lines.append(f"takes: {takes}; a gray value of 0 reaches it as {low}, one of 255 as {high}")
    if scale.max() < SMALL and 0 < scale_of(model) < SMALL:
        lines.append("careful: the model makes gray values small itself; does it take 0 to 255?")
    if write:
        card = {"sha256": file.sha256, **now}
        if file.trained_here:
            card = {**(file.card or {}), "expects": now}
        with replacing(file.path.with_suffix(".json")) as temporary:
            text = json.dumps({"card_version": CARD_VERSION, **card}, indent=1)
            temporary.write_text(text, encoding="utf-8")
    return "\n".join(lines)


def find_model(name: str | os.PathLike[str], folders: Sequence[str] = FOLDERS) -> Path:
    """Return the ``.keras`` file of that name, or path, looked for in `folders` in turn.

    Raises
    ------
    ModelFileError
        If there is none; the message lists those there are.
    """
    fits = isinstance(name, str | os.PathLike)
    require(fits, "A model must be named: a name, or the path of a .keras file.", model=name)
    if not os.fspath(name):
        raise ModelFileError("the name of the model is empty; give a name or a .keras file")
    path = Path(name)
    if not path.name:
        raise ModelFileError(f"{name}: a folder; give the name of a model or a .keras file")
    if len(path.parts) != 1 or path.is_file():
        whole = path.with_name(f"{path.name}.keras")
        return whole if whole.is_file() and not path.is_file() else path
    name = path.name.removesuffix(".keras")
    # The folders of the repository, wherever the command is run from.
    homes = [home / folder for home in (Path(), Path(__file__).parents[2]) for folder in folders]
    for home in homes:
        for stem in (name, f"{name}-subject"):
            if (path := home / f"{stem}.keras").is_file():
                return path
    known = sorted({path.stem for home in homes for path in home.glob("[!.]*.keras")})
    raise ModelFileError(f"no model {name!r} in {' or '.join(folders)}; there are {known}")
