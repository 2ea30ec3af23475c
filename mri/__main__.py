"""The commands: ``python -m mri --help``. Each only calls a function of a room and prints."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mri._arguments import require
from mri._text import as_options, for_line, for_terminal, names_in

if TYPE_CHECKING:
    from mri.data.scans import Scans
    from mri.subjects.splits import Split

Options = argparse.Namespace


def protocols() -> tuple[Scans, dict[str, Split], np.ndarray]:
    """Read the slices that are there, or phantoms, and divide them in both ways.

    Returns the scans, the splits 'subject' (fold 0 of 5) and 'image' (the two files as published),
    and the subject of each slice, int (n,).
    """
    from mri.data import find_data, read_scans, write_phantom
    from mri.subjects import image_split, recover_subjects, subject_split

    folder = find_data() or write_phantom("data/phantom")
    scans = read_scans(folder, split=("train", "test"))
    groups = recover_subjects(scans.images, scans.labels).groups
    by_image = image_split(scans.labels, np.flatnonzero(scans.splits == "test"))
    with warnings.catch_warnings():
        # Of the public set, two people are moderate: every page about it says so.
        warnings.filterwarnings("ignore", "fewer subjects than the")
        by_subject = subject_split(scans.labels, groups)
    return scans, {"subject": by_subject, "image": by_image}, groups


def download(options: Options) -> int:
    """Fetch the public slices and verify them."""
    from mri.data import download_slices

    for path in download_slices(options.folder):
        print(f"{path}: SHA-256 verified")
    return 0


def check(options: Options) -> int:
    """Say which slices a run will use, and what will stop it."""
    from mri.data import DataError, describe_data, problems

    found = list(problems())
    try:
        print(for_terminal(describe_data()))
    except DataError as error:
        found.append(str(error))
    for problem in found:
        print(for_line(problem), file=sys.stderr)
    return int(bool(found))


def audit(options: Options) -> int:
    """Measure data leakage between a train and a test part of any source.

    Exit status: 0 no leak found, 1 leak (or no answer at all), 3 undecided.
    """
    from mri._files import replacing
    from mri.data import read_scans
    from mri.data.formats import Columns
    from mri.data.sources import Slices
    from mri.subjects import audit, audit_html
    from mri.subjects.splits import PARTS

    for path in filter(None, (options.html, options.json)):
        require(not path.is_dir(), "--html and --json take the name of a file.", folder=str(path))
    columns = Columns(options.image, options.label)
    names = _class_names(options.classes)
    source = options.train
    if options.test is not None:
        source = {"train": options.train, "test": options.test}
    slices = Slices(source, columns, class_names=names)
    there = slices.splits
    sides = [side for side in PARTS if side in there]
    if len(there) > 1 and (sides[:1] != ["train"] or len(sides) < len(there)):
        raise ValueError(f"{options.train}: is divided into {there}, expected train and test")
    scans = read_scans(
        slices,
        split=sides if len(there) > 1 else None,
        size=tuple(options.size) if options.size else None,
        on_error=options.on_error,
        cache=options.cache,
    )
    progress = None if options.quiet else _show_progress
    answers = []
    for parts, what in _comparisons(scans, sides):
        answers.append((audit(*parts, progress=progress), parts, what))
        if answers[-1][0].status != "clean":
            break
    # Shown is the first that is not clean, or else that of the test part.
    found, parts, what = answers[-1 if answers[-1][0].status != "clean" else 0]
    print(for_terminal("\n\n".join([found.verdict + what, *found.shown("to_string")])))
    figures = {**found.to_dict(), "compared": what.strip()}
    told = {"html": "", "json": json.dumps(figures, indent=1)}
    if options.html:
        told["html"] = audit_html(found, parts[0], *parts[1:], compared=what)
    for kind, text in told.items():
        if path := getattr(options, kind):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            print(f"{path}: written")
    return {"leaky": 1, "undecided": 3}.get(found.status, 0)


def _class_names(told: str | None) -> list[str] | dict[int | str, str] | None:
    """Return names in label order, or by label where all are ``LABEL=NAME``."""
    names = names_in([told] if told else [])
    if not names or not all("=" in name for name in names):
        return names or None
    pairs = [name.split("=", 1) for name in names]
    found = {int(key) if key.isdecimal() else key: name for key, name in pairs}
    require(len(found) == len(pairs), "class_names must name each label once.", given=names)
    return found


def _comparisons(scans: Scans, sides: Sequence[str]) -> Iterator[tuple[list[Scans], str]]:
    """Yield what to compare, and a name for it: the test part with all others, and these too."""
    if len(sides) < 2:
        yield [scans], ""
    for i in range(len(sides) - 1, 0, -1):
        first, *more = (scans.part(side) for side in sides[:i])
        what = f" Compared: {sides[i]} with {' and '.join(sides[:i])}."
        yield [sum(more, first), scans.part(sides[i])], what


def _show_progress(what: str, share: float) -> None:
    """Say on one line of the terminal what is being done."""
    end = "\n" if share >= 1 else ""
    print(f"\r{what}: {share:4.0%}  ", end=end, file=sys.stderr, flush=True)


def train(options: Options) -> int:
    """Train one network."""
    from mri.training import RECIPES, recipe_of, train

    callbacks = []
    if options.tensorboard and not find_spec("tensorboard"):
        needed = "--tensorboard needs: .venv/bin/python -m pip install tensorboard"
        raise ModuleNotFoundError(needed)
    scans, splits, _ = protocols()
    split = splits[options.protocol]
    names = ("epochs", "batch_size", "learning_rate")
    given = {key: value for key in names if (value := getattr(options, key)) is not None}
    if options.recipe and options.recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {sorted(RECIPES)}. Received: {options.recipe!r}")
    recipe = RECIPES[options.recipe] if options.recipe else recipe_of(options.name)
    name = "_".join(filter(None, (options.name, options.recipe))) + f"-{split.protocol}"
    if options.tensorboard:
        from mri._keras import keras

        callbacks.append(keras.callbacks.TensorBoard(options.tensorboard / name))
    result = train(
        options.name,
        scans,
        split,
        name=name,
        recipe=replace(recipe, **given),
        seed=options.seed,
        verbose=2,
        replace=options.replace,
        callbacks=callbacks,
    )
    print(f"{result.path}: validation {result.card['validation']}, {result.card['seconds']} s")
    return 0


def folds(options: Options) -> int:
    """Train networks on all folds and keep every person's logits, or write the tables of all."""
    from mri.training import read_crossval, sweep, write_tables

    output = Path(options.output)
    if options.table:
        known = [path for path in (output, output.with_name("people.parquet")) if path.is_file()]
        if not known:
            raise FileNotFoundError(f"{output}: no logits kept; run: python -m mri people")
        found = read_crossval(*known)
        print(for_terminal(found.ranking().conclusion()))
        for path in write_tables(found, output.parent):
            print(f"{path}: written")
        return 0
    if not options.names:
        raise ValueError("Name the networks to train, or give --table.")
    scans, _, groups = protocols()
    numbers = {name: getattr(options, name) for name in ("folds", "seeds", "divisions")}
    found = sweep(options.names, scans, groups, output, **numbers)
    print(f"{len(scans)} {scans.origin}, subjects, test parts of all folds")
    print(f"{found.table().to_string()}\n{output}: logits of all")
    return 0


def people(options: Options) -> int:
    """Judge all people by what is no network, make the glass box and draw its pictures."""
    from mri.plots.glass_box import glass_box_pictures
    from mri.training import judge_people, save_glass_box, train_people

    scans, splits, groups = protocols()
    output = options.output
    judge_people(scans, groups, output, divisions=options.divisions)
    print(f"{output}: written")
    split, home = splits["subject"], output.parent
    fitted = train_people(scans, groups, split=split)
    path = home / "zoo/glass_box-subject.keras"
    save_glass_box(path, fitted, scans=scans, split=split)
    print(f"{path}: written")
    for picture in glass_box_pictures(path, scans, groups, home):
        print(f"{picture}: written")
    return 0


def zoo(options: Options) -> int:
    """Train every network under both protocols, or print the table of those trained."""
    if options.table:
        from mri.evaluation import reported_table

        print(reported_table(options.output))
        return 0
    from mri.training import train_zoo
    from mri.training.recipe import chosen_entries

    chosen_entries(options.names)  # Before the slices are read.
    named = {"names": options.names, "seeds": options.seeds, "folder": options.output}
    for line in train_zoo(*protocols(), **named):
        print(for_terminal(line), flush=True)
    return 0


def heatmaps(options: Options) -> int:
    """Check the heatmaps of model files, a row of Markdown each."""
    from mri.gradcam import heatmap_table, layer_table

    if options.layers:
        lines = layer_table()
    else:
        require(options.files, "Name at least one model file, or --layers.", files=options.files)
        scans, _, groups = protocols()
        wanted = {"methods": options.methods, "slices": options.slices, "seed": options.seed}
        lines = heatmap_table(options.files, scans, groups, **wanted)
    for line in lines:
        print(for_terminal(line), flush=True)
    return 0


def card(options: Options) -> int:
    """Write beside a model file what it expects of slices, and show what changes by it."""
    from mri.models import declare
    from mri.models.files import find_model

    told = {"channels": options.channels, "range": options.range}
    for name in ("size", "scale", "offset", "mean", "std"):
        values = getattr(options, name)
        told[name] = values[0] if values and len(values) == 1 else values
    told["class_names"] = [*filter(None, names_in(options.classes or []))] or None
    print(declare(options.file, write=not options.dry_run, **told))
    if not options.dry_run:
        print(for_line(f"Written: {find_model(options.file).with_suffix('.json')}"))
    return 0


def predict(options: Options) -> int:
    """Ask a model about one slice, or the slices of a person, and draw where it looked."""
    from mri.data import find_data, row_place, write_phantom
    from mri.models.files import find_model
    from mri.predict import predict_slice

    files, row = options.files, options.row
    require(not options.output.is_file(), "--output takes a folder.", file=str(options.output))
    if not files:
        folder = find_data() or write_phantom("data/phantom")
        file, row = row_place(folder, split="test", row=row)
        files = [file]
    told = {name: getattr(options, name) for name in ("model", "plane", "image", "label")}
    told |= {"check": not options.unchecked, "class_names": _class_names(options.classes)}
    found = predict_slice(files, row=row, **told)
    # Before the picture: a full disk loses no answer.
    print(found, flush=True)
    place = found.slice.place.removeprefix(str(Path(files[0]).parent))
    stem = re.sub(r"\W+", "-", place, flags=re.ASCII).strip("-")[-60:]
    # Slices and models of the same name lie in other folders.
    places = *map(os.path.realpath, files), place, os.path.realpath(find_model(options.model))
    mark = hashlib.sha256(repr(places).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    name = re.sub(r"\W+", "-", found.model, flags=re.ASCII)[:60]
    picture = options.output / f"{stem}-{name}-{mark}.png"
    options.output.mkdir(parents=True, exist_ok=True)
    found.draw().savefig(picture, dpi=150)
    print(for_line(f"Picture: {picture}"))
    return 0


def report(options: Options) -> int:
    """Make pages for a browser of the notebooks and the model cards."""
    from mri.report import write_report

    pages = write_report()
    print(f"Open {pages[0]} in a browser; {len(pages)} pages, each one file.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mri", description="Explainable Alzheimer's MRI classification."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function: Callable[[Options], int]) -> argparse.ArgumentParser:
        text = str(function.__doc__)
        added = commands.add_parser(function.__name__, help=text.rstrip("."), description=text)
        added.set_defaults(function=function)
        return added

    command(download).add_argument("--folder", default="data", help="by default data/")
    command(check)
    _add_audit(command(audit))
    of = command(train)
    of.add_argument("name", metavar="NAME", help="one of mri.list_models()")
    of.add_argument("--recipe", help="one of mri.training.RECIPES; by default that of its name")
    of.add_argument("--protocol", choices=("subject", "image"), default="subject")
    of.add_argument("--epochs", type=int)
    of.add_argument("--batch-size", type=int)
    of.add_argument("--learning-rate", type=float)
    of.add_argument("--seed", type=int, default=0)
    of.add_argument("--replace", action="store_true", help="lose another run of that name")
    of.add_argument("--tensorboard", metavar="DIR", type=Path, help="write the curves there")
    of = command(folds)
    of.add_argument("names", metavar="NAME", nargs="*")
    of.add_argument("--seeds", type=int, default=1)
    of.add_argument("--folds", type=int, default=5)
    of.add_argument("--divisions", type=int, default=1, help="of the people, by other seeds")
    of.add_argument("--output", default="models/crossval.parquet")
    of.add_argument("--table", action="store_true", help="train nothing, write the tables")
    of = command(people)
    of.add_argument("--divisions", type=int, default=10)
    of.add_argument("--output", type=Path, default=Path("models/people.parquet"))
    of = command(zoo)
    of.add_argument("names", metavar="NAME", nargs="*", help="by default all")
    of.add_argument("--seeds", type=int, default=1)
    of.add_argument("--output", default="models/zoo")
    of.add_argument("--table", action="store_true", help="train nothing, print the table")
    of = command(heatmaps)
    of.add_argument("files", metavar="FILE.keras", nargs="*")
    of.add_argument("--layers", action="store_true", help="name the layer of each network instead")
    of.add_argument("--methods", nargs="+", default=["grad-cam", "hirescam"])
    of.add_argument("--slices", type=int, default=64)
    of.add_argument("--seed", type=int, default=0)
    _add_card(command(card))
    _add_predict(command(predict))
    command(report)
    return parser


def _add_card(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE.keras", help="or the name of a file of models/")
    add("--size", type=int, nargs="+", help="rows and columns, or one for both")
    add("--channels", type=int, help="1, or 3 for gray repeated to RGB")
    add("--range", type=float, nargs=2, help="what 0 and 255 become, such as 0 1")
    add("--scale", type=float, nargs="+", help="of gray values 0 to 255")
    add("--offset", type=float, nargs="+", help="added after --scale")
    add("--mean", type=float, nargs="+", help="of gray values 0 to 1, as ImageNet's")
    add("--std", type=float, nargs="+", help="by which they are divided")
    add("--classes", nargs="+", help="names in the order of the model's scores")
    add("--dry-run", action="store_true", help="show it, write nothing")


def _add_audit(parser: argparse.ArgumentParser) -> None:
    add, source = parser.add_argument, "parquet, CSV, class folders, a folder of save_to_disk"
    add("train", metavar="TRAIN", help=f"the train part, or both: {source}")
    add("test", metavar="TEST", nargs="?", help="the test part")
    add("--html", type=Path, metavar="FILE", help="write a page with the twins")
    add("--json", type=Path, metavar="FILE", help="write the figures")
    _add_columns(add)
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="of mixed sizes")
    add("--on-error", choices=("raise", "skip"), default="raise", help="bad rows")
    add("--cache", metavar="FILE", help="keep the pixels there, not in memory")
    add("--quiet", action="store_true", help="show no progress")


def _add_columns(add: Callable[..., argparse.Action]) -> None:
    add("--image", default="image", help="name of the column of slices, by default image")
    add("--label", default="label", help="name of the column of labels, by default label")
    add("--classes", metavar="NAME,NAME", help="names of the labels in order, or 0=NAME,1=NAME")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    from mri.predict import DEFAULT_MODEL

    add = parser.add_argument
    files = (
        "JPEG, PNG, parquet, CSV, NIfTI, Analyze (nibabel), DICOM or a folder of one series "
        "(pydicom); by default the test part of the slices that are there, or of phantoms; "
        "several are slices of one person, for a model of people such as glass_box"
    )
    add("files", metavar="FILE", nargs="*", help=files)
    add("--model", default=DEFAULT_MODEL, help=f"by default {DEFAULT_MODEL}")
    add("--row", type=int, default=0, help="of a table such as parquet, from 0")
    add("--plane", type=int, help="of a volume or series, from 0 at its lowest")
    _add_columns(add)
    add("--output", type=Path, default=Path("runs"), help="folder of the picture")
    add("--unchecked", action="store_true", help="take what looks like no slice")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 1 where it found or met a problem."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows fewer characters shows their numbers, rather than no answer.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    spelt = as_options if "label" in options else str  # The other commands lack these options.

    def told(message: Warning | str, *_: object, **__: object) -> None:
        print(f"Warning: {for_line(spelt(str(message)))}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = told  # One line, without the place in the code.
            return int(options.function(options))
    except (ValueError, ModuleNotFoundError, OSError, RuntimeError) as error:
        # A note says what is kept, and what to do.
        said = "; ".join([str(error), *getattr(error, "__notes__", ())])
        print(for_line(spelt(said)), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
