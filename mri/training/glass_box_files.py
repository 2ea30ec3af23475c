"""The glass box on disk: a plain Keras file, its template and a card that says what it takes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mri._arguments import integers, require
from mri._files import file_sha256
from mri.data.scans import Scans
from mri.data.tone_map import HEIGHTS, tone_map
from mri.models.files import ModelFileError, load_model, read_card, save_model
from mri.subjects.person import Person, people_tones, prepare_people, prepare_person
from mri.subjects.splits import Split, check_disjoint
from mri.subjects.template import Template, make_template, read_template
from mri.training.glass_box import PENALTY, GlassBox, fit_glass_box

if TYPE_CHECKING:
    from mri._keras import keras

INPUT = "person"
"""What a card names as its input where slices have to go through `prepare_person` first."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a glass box says of one person.

    Attributes
    ----------
    logits : ndarray of float32, shape (k,)
        In label order.
    severity : float
        About 0 (not demented) to 2 (mild).
    contributions : ndarray of float32, shape (8, r, c)
        What each place adds to the severity of the average person.
    person : Person
        What was asked about, on the template; its `warnings` say what is lacking.
    """

    logits: np.ndarray
    severity: float
    contributions: np.ndarray = field(repr=False)
    person: Person = field(repr=False)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is lacking; empty where nothing is."""
        return self.person.warnings


def train_people(
    scans: Scans, groups: np.ndarray, *, split: Split | None = None, registered: bool = True
) -> tuple[GlassBox, Template, np.ndarray, np.ndarray]:
    """Fit a glass box to people: template, weights and cut points.

    Parameters
    ----------
    scans : Scans
    groups : ndarray of int, shape (n,)
        Person of each slice.
    split : Split, optional
        Only people without a slice in `split.test` are looked at; by default everybody. The
        validation part is used too, since all choices are made by folds within.
    registered : bool
        Whether slices are moved onto the template.

    Returns
    -------
    box : GlassBox
    template : Template
    maps : ndarray of float32, shape (people, 8, r, c)
        Tone maps of the people fitted.
    labels : ndarray of int64, shape (people,)

    Raises
    ------
    ValueError
        If the people cannot be prepared, or are too few of some severity.
    DataLeakageError
        If a person has slices on two sides of the split.
    """
    groups = integers("groups", groups, len(scans))
    rows = np.arange(len(scans))
    if split is not None:
        check_disjoint(split, groups)
        rows = np.setdiff1d(rows, split.test)
    tones = list(people_tones(scans.images[rows], groups[rows]).values())
    labels = scans.labels[rows][np.unique(groups[rows], return_index=True)[1]]
    whole = [person.images for person in tones if len(person.images) == HEIGHTS]
    require(len(whole) > 0, f"Some person must have {HEIGHTS} slices.", people=len(tones))
    template = make_template(whole, registered=registered)
    maps = np.stack([tone_map(person.images) for person in prepare_people(tones, template)])
    return fit_glass_box(maps, labels, scans.class_names), template, maps, labels


def save_glass_box(
    path: str | os.PathLike[str],
    box: GlassBox,
    template: Template,
    *,
    scans: Scans,
    split: Split | None = None,
) -> dict[str, Any]:
    """Write ``<name>.keras``, its card ``<name>.json`` and ``<name>.npz``, the template.

    Parameters
    ----------
    path : path
        Ends in ``.keras``.
    box, template
        From `train_people`.
    scans, split
        What they were fitted to; without a split the card has no test rows.

    Returns
    -------
    dict
        The card as written: ``input`` is `INPUT`, ``template`` names the template's file and
        ``template_sha256`` its hash.
    """
    path = Path(path)
    require(path.suffix == ".keras", "path must end in .keras.", path=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".npz")
    template.save(beside)
    card: dict[str, Any] = {
        "builder": "glass_box",
        "input": INPUT,
        "template": beside.name,
        "template_sha256": file_sha256(beside),
        "registered": template.registered,
        "people": template.people,
        "class_names": list(scans.class_names),
        "synthetic": scans.synthetic,
        "data": scans.fingerprint(),
        "penalty": PENALTY,
        "cuts": box.ordinal.cuts.tolist(),
        "temperature": 1.0,
    }
    if split is not None:
        sides = {"slices": [len(split.train), len(split.validation), len(split.test)]}
        where = {"fold": split.fold, "folds": split.folds, "seed": split.seed}
        card["split"] = {"protocol": split.protocol, **sides, **where}
        card["test_rows"] = split.test.tolist()
    return save_model(box.model(), path, card)


def load_glass_box(path: str | os.PathLike[str]) -> tuple[keras.Model, Template]:
    """Load what `save_glass_box` has written.

    Raises
    ------
    ModelFileError
        If the model cannot be loaded, its card is of none that takes a person, or the template is
        not the one that the card was written with.
    """
    path = Path(path)
    card = read_card(path) or {}
    if card.get("input") != INPUT:
        raise ModelFileError(f"{path}: its card does not say that it takes a {INPUT}")
    beside = path.with_name(Path(str(card.get("template"))).name)
    if not beside.is_file() or file_sha256(beside) != card.get("template_sha256"):
        raise ModelFileError(f"{path}: its template {beside.name} is missing or another one")
    return load_model(path), read_template(beside)


def ask(model: keras.Model, template: Template, slices: np.ndarray) -> Answer:
    """Ask about a person: any number of slices, one is enough to get an answer with warnings.

    Parameters
    ----------
    model, template
        From `load_glass_box`.
    slices : ndarray of uint8 or float, shape (n, h, w)
        Of one person, in any order.

    Returns
    -------
    Answer

    Raises
    ------
    ValueError
        As `prepare_person` does.
    """
    from mri._keras import keras

    person = prepare_person(slices, template)
    wanted = ("last_conv", "severity", "logits")
    outputs = [model.get_layer(name).output for name in wanted]
    places, severity, logits = keras.Model(model.inputs, outputs).predict(
        person.channels[None], verbose=0
    )
    weights = model.get_layer("severity").get_weights()[0].reshape(places.shape[1:])
    return Answer(logits[0], float(severity[0, 0]), np.moveaxis(places[0] * weights, -1, 0), person)
