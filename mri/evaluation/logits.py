"""What a model file says of its test part, kept beside it, so that it is run once.

``<name>.parquet`` holds rows, labels, subjects and logits, no pixels: with its card it is enough to
measure and rank a model whose file, or whose slices, are elsewhere.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mri._files import read_regular, replacing
from mri.data.decode import DataError
from mri.data.footer import FooterError, check_pages, read_groups
from mri.data.labels import places_of
from mri.data.parquet import MAX_NAME
from mri.data.scans import Scans
from mri.evaluation.doubts import doubts
from mri.evaluation.persons import INPUT, PersonModel, takes_person
from mri.models.cards import TABLE_SCHEMA, problem_of
from mri.models.child import Run, run_here
from mri.models.files import ModelFile, ModelFileError
from mri.models.inputs import READ_AS, VALUES

if TYPE_CHECKING:
    from mri._keras import keras
    from mri.models.scores import Scorer

_KEY = b"mri_logits"
_UNREADABLE = (OSError, pa.ArrowException, ValueError, LookupError, TypeError, RecursionError)
_MAX_TABLE, _MOST_CELLS = 2**30, 4_000_000

_MOST_APART = 0.05  # Of the largest logit; rounding in bfloat16 stays far below it.
RANDOM = "answers the same slices otherwise each time, or by the others of a batch"
_TWICE = "makes gray values small twice, by its card and by itself: does it take 0 to 255?"

VERSION = 3
"""Of how a model is read; 1 took whatever it gave for logits, as those of `build_model` are."""


@dataclass(frozen=True, eq=False)
class LogitsTable:
    """Logits of slices with what they are of, as kept in a parquet file; no pixels.

    `frame` has the columns row (in the scans), subject, label and one `logit_<class>` a class; in a
    cross-validation also model, fold, seed and part. `about` has JSON-ready facts, `class_names`
    among them.
    """

    frame: pd.DataFrame
    about: dict[str, Any]

    @property
    def rows(self) -> np.ndarray:
        """Row numbers, int64 (n,)."""
        return self.frame["row"].to_numpy(np.int64)

    @property
    def labels(self) -> np.ndarray:
        """Labels, int64 (n,)."""
        return self.frame["label"].to_numpy(np.int64)

    @property
    def subjects(self) -> np.ndarray:
        """Who each slice is from, int64 (n,)."""
        return self.frame["subject"].to_numpy(np.int64)

    @property
    def logits(self) -> np.ndarray:
        """Logits, float32 (n, k)."""
        return self.frame[[f"logit_{name}" for name in self.about["class_names"]]].to_numpy()

    def named(self, names: Sequence[str]) -> LogitsTable | None:
        """Return the same with its classes in another order or spelling; None for other classes."""
        own = self.about["class_names"]
        if list(names) == own:
            return self
        at = places_of(names, own) or []
        if sorted(at) != list(range(len(names))):
            return None
        columns = {f"logit_{of}": f"logit_{names[i]}" for of, i in zip(own, at, strict=True)}
        frame = self.frame.assign(label=np.array(at)[self.labels]).rename(columns=columns)
        return LogitsTable(frame, self.about | {"class_names": list(names)})

    def save(self, path: Path) -> None:
        """Write the table whole or not at all."""
        logits = [name for name in self.frame if str(name).startswith("logit_")]
        whole = dict.fromkeys(("row", "label", "subject"), np.int64)
        frame = self.frame.astype(dict.fromkeys(logits, np.float32) | whole)
        table = pa.Table.from_pandas(frame, preserve_index=False)
        table = table.replace_schema_metadata({_KEY: json.dumps(self.about)})
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LogitsTable:
        """Read what `save` has written.

        Raises
        ------
        DataError
            If the file is absent, damaged or not such a table.
        """
        try:
            table = _read_table(Path(path))
            about = json.loads(table.schema.metadata[_KEY])
            if problem := problem_of(about, TABLE_SCHEMA) or _problem(table, about):
                raise ValueError(problem)
            found = cls(table.to_pandas(ignore_metadata=True), about)
            keys = ["model", "division", "fold", "seed", "part", "row"]
            keys = [key for key in keys if key in found.frame]
            if found.frame.duplicated(keys).any():
                raise ValueError("rows that stand there twice")
        except _UNREADABLE as error:
            raise DataError(f"{path}: not a table of logits ({error})") from error
        return found


def _read_table(path: Path) -> pa.Table:
    """Read a parquet file of numbers and short texts that is no larger than it may be."""
    content = pa.BufferReader(read_regular(path, _MAX_TABLE))
    groups = read_groups(content)
    rows = sum(group.rows for group in groups)
    width = max((len(group.chunks) for group in groups), default=0)
    if rows * width > _MOST_CELLS + content.size():
        raise FooterError(f"{rows} rows in {content.size()} bytes")
    content.seek(0)
    opened = pq.ParquetFile(content, page_checksum_verification=True)
    columns = map(opened.schema.column, range(len(opened.schema)))
    leaves = {i: of.physical_type == "BYTE_ARRAY" for i, of in enumerate(columns)}
    if check_pages(content, groups, leaves) > 4 * MAX_NAME:
        raise FooterError(f"texts of more than {MAX_NAME} characters")
    return opened.read(use_threads=False)


def _problem(table: pa.Table, about: dict[str, Any]) -> str | None:
    """Return what is wrong with the columns of a table of logits, None where nothing is."""
    logits = [f"logit_{name}" for name in about["class_names"]]
    names = table.column_names
    if len(set(names)) < len(names) or not table.num_rows:
        return f"columns {names!s:.200}, {table.num_rows} rows"
    if lacking := [name for name in ("row", "subject", "label", *logits) if name not in names]:
        return f"no column {lacking[0]!r:.80}"
    for name, column in zip(names, table.columns, strict=True):
        kind, fits = column.type, True
        if name in ("row", "subject", "label", "division", "fold", "seed"):
            fits = pa.types.is_integer(kind) and not pa.types.is_uint64(kind)
        elif name in logits:
            fits = pa.types.is_floating(kind)
        elif name in ("model", "part"):
            fits = "string" in str(kind)
        if not fits or column.null_count:
            return f"column {name!r:.80} of {kind} with {column.null_count} nulls"
        if name in logits and not pc.all(pc.is_finite(column)).as_py():
            return f"column {name!r:.80} holds what is no finite number"
    if pc.min(table["row"]).as_py() < 0:
        return f"row {pc.min(table['row'])}"
    low, high = pc.min_max(table["label"]).as_py().values()
    return None if 0 <= low <= high < len(logits) else f"labels outside the {len(logits)} classes"


def logits_frame(
    scans: Scans, groups: np.ndarray, rows: np.ndarray, logits: np.ndarray
) -> pd.DataFrame:
    """Return the columns row, subject, label and `logit_<class>` of the given rows (m,).

    `groups` (n,) has the subject of each slice of `scans`; logits are (m, k).
    """
    columns = {"row": rows, "subject": groups[rows], "label": scans.labels[rows]}
    return pd.DataFrame(
        columns | {f"logit_{name}": logits[:, c] for c, name in enumerate(scans.class_names)}
    )


def keep_logits(
    file: ModelFile,
    scans: Scans | None,
    groups: np.ndarray | None,
    fingerprint: str | None = None,
    run: Run = run_here,
) -> LogitsTable:
    """Run a model on its test part and keep the logits beside it, as ``<name>.parquet``.

    `groups` (n,) has the subject of each slice, `fingerprint` is that of `scans` where it is known,
    and `run` says where the model runs: `run_here`, or `CHILD.run` for one of a stranger. The
    logits are not divided by the temperature. `about` has version, sha256 of the file, data
    (fingerprint), class_names, origin, parameters, bytes, milliseconds per call of batches of 1 and
    64, what the model ends in (a key of `mri.models.READ_AS`), what its card declares of its
    inputs, and doubts whether it was understood.

    Raises
    ------
    ModelFileError
        If the file is not safe, does not fit the slices, takes more than it may, or nothing is left
        to measure it on.

    Warns
    -----
    UserWarning
        If the folder cannot be written; the result is whole all the same.
    """
    path = file.path
    file.inspect()
    if scans is None or groups is None:
        raise ModelFileError(f"{path}: no logits kept, and no slices to run it on")
    fingerprint = fingerprint or scans.fingerprint()
    test = file.held_out(scans, fingerprint)
    facts, logits = run_rows(file, scans, groups, test, run, timed=True)
    about = {
        "version": VERSION,
        "sha256": file.sha256,
        "data": fingerprint,
        "class_names": list(scans.class_names),
        "origin": scans.origin,
        "bytes": path.stat().st_size,
        **facts,
        "expects": _expected(file),
    }
    if problem := problem_of(about, TABLE_SCHEMA):
        raise ModelFileError(f"{path}: cannot be kept ({problem})")
    if not file.trained_here:
        told = (about["expects"] or {}).keys()
        about["doubts"] += doubts(
            scans.labels[test],
            logits,
            scans.class_names,
            values_known=bool(told & VALUES),
            order_known="class_names" in told,
        )
    kept = LogitsTable(logits_frame(scans, groups, test, logits), about)
    try:
        kept.save(path.with_suffix(".parquet"))
    except OSError as error:
        warnings.warn(f"{path}: logits not kept, so it will run again ({error})", stacklevel=2)
    return kept


def run_rows(
    file: ModelFile,
    scans: Scans,
    groups: np.ndarray,
    rows: np.ndarray,
    run: Run = run_here,
    *,
    timed: bool = False,
) -> tuple[dict[str, Any], np.ndarray]:
    """Return facts of a model, and the logits of the given rows as they are kept: float (m, k)."""
    names = scans.class_names
    if takes_person(file):  # It runs here, for it can only be a glass box.
        of = PersonModel(file)
        facts = {"parameters": of.model.count_params(), "doubts": [], "output": INPUT}
        if timed:
            # A person has 32 slices or so, and is judged as a whole: 64 slices are two.
            person = _milliseconds(partial(of.logits, scans, groups, rows[:1]))
            facts["milliseconds"] = [person, 2 * person]
        logits = of.logits(scans, groups, rows)
    else:
        with file.handed(scans.images.shape[1:], names) as handed:
            told = {"handed": handed, "class_names": list(names), "timed": timed}
            facts, arrays = run(answers, file.path, told, {"images": scans.images[rows]})
        logits = arrays["logits"]
    if logits.shape != (len(rows), len(names)) or not np.isfinite(logits).all():
        raise ModelFileError(f"{file.path}: gives logits that are not finite")
    return facts, logits


def answers(
    told: dict[str, Any], arrays: dict[str, np.ndarray]
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Yield after the first slices, and again with what a model says of all; see `Answers`."""
    from mri.models.files import load_handed
    from mri.models.scores import TWICE, scale_of

    images, path = arrays["images"], told["handed"]["shown"]
    model = load_handed(**told["handed"])
    scorer = fitting_scorer(path, model, images.shape, told["class_names"])
    few = min(64, 1 + len(images) // 2)
    first = scorer(images[:few])
    yield {}, {}
    logits = scorer(images)
    declared = bool(VALUES & told["handed"]["expects"].keys())
    small_twice = declared and 0 < scale_of(model, (*images.shape[:3], 1)) < TWICE
    signs = {RANDOM: differs(first, logits[:few]), _TWICE: small_twice}
    facts = {"parameters": model.count_params()}
    facts["doubts"] = [sign for sign, found in signs.items() if found]
    if told["timed"]:
        of = [partial(scorer, images[:n], batch_size=n) for n in (1, 64)]
        facts["milliseconds"] = [_milliseconds(call) for call in of]
    yield facts | {"output": scorer.kind}, {"logits": logits}


def differs(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two answers (n, k) for the same slices are two, whatever the rounding."""
    return bool(np.abs(first - second).max() > _MOST_APART * max(1.0, np.abs(second).max()))


def find_logits(file: ModelFile, fingerprint: str | None = None) -> LogitsTable | None:
    """Return the logits kept of this very file and these test rows, None where there are none.

    The model file may be absent: then its card says what it was. `fingerprint` is that of the
    slices at hand; a model without a card is measured anew on others.

    Raises
    ------
    ModelFileError
        If the file is not safe or not what its card says, or the card is damaged.
    """
    card, there = file.card or {}, os.path.lexists(file.path)
    if there:
        file.inspect()
    path = file.path.with_suffix(".parquet")
    if not path.exists() or not (card or there):
        return None
    try:
        kept = LogitsTable.read(path)
        about, version = kept.about, kept.about.get("version", 1)
        # Networks made here give logits, which every version has read as such.
        same = version == VERSION or (version < VERSION and {"builder", "recipe"} <= card.keys())
        same &= about["sha256"] == file.sha256 and about.get("expects") == _expected(file)
        same &= about.get("output", "logits") in READ_AS
        if file.trained_here:
            same &= card["test_rows"] == kept.rows.tolist()
            same &= all(about[key] == card[key] for key in ("data", "class_names"))
        else:
            same &= fingerprint in (None, about["data"])
        if not (same or there):
            raise LookupError("these are not the logits that its card names")
    except (DataError, LookupError) as error:
        if there:
            return None  # They are made anew.
        absent = f"and no {file.path.name} to make it anew"
        raise ModelFileError(f"{path}: no use of it ({error}), {absent}") from error
    return kept if same else None


def _milliseconds(call: Callable[[], Any]) -> float:
    """Return the median time of a call, after one that compiles."""
    call()
    times: list[float] = []
    while len(times) < 5 or (len(times) < 30 and sum(times) < 0.3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(1000 * float(np.median(times)), 2)


def _expected(file: ModelFile) -> dict[str, Any] | None:
    return file.expects.declared() if file.expects else None


def fitting_scorer(
    path: str, model: keras.Model, shape: tuple[int, ...], names: Sequence[str]
) -> Scorer:
    """Return the model as a function of slices (n, h, w); say what it lacks if it does not fit."""
    from mri.models.scores import Scorer

    try:
        scorer = Scorer(model, like=(*shape, 1))
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from error
    expected, takes = (None, *shape[1:], 1), scorer.input.shape
    if not all(of in (None, side) for of, side in zip(takes[1:], expected[1:], strict=True)):
        _, height, width, channels = takes
        raise ModelFileError(
            f"{path}: takes {takes}, the slices are {expected}; if it is to see them in that form, "
            f"say so: python -m mri card {path} --size {height or 128} {width or 128} "
            f"--channels {channels or 1} --range LOW HIGH"
        )
    if scorer.classes != len(names):
        raise ModelFileError(f"{path}: gives {scorer.gives}, the data have classes {tuple(names)}")
    return scorer
