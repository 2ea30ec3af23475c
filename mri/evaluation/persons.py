"""Models of a person: the card says so, and the person is prepared before the model is asked.

The Keras file takes the 32 slices of a head, in order and on common gray values. To bring them
there takes all slices of the person (`mri.subjects.person.prepare_person`) and a template, which
lies beside the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mri._files import file_sha256
from mri.data.scans import Scans
from mri.data.tone_map import HEIGHTS, SLAB, STEP
from mri.models.files import ModelFile, ModelFileError
from mri.models.own import is_own
from mri.subjects.person import Person, prepare_person
from mri.subjects.template import Template, read_template

if TYPE_CHECKING:
    from mri._keras import keras

INPUT = "person"
"""What a card names as its ``input`` where slices have to go through `prepare_person` first."""

_LAYERS = "last_conv", "severity", "logits"


def takes_person(file: ModelFile) -> bool:
    """Whether the card of a model says that it takes a whole person, not a slice."""
    return (file.card or {}).get("input") == INPUT


@dataclass(frozen=True, eq=False)
class Answer:
    """What a glass box says of one person.

    Attributes
    ----------
    logits : ndarray of float32, shape (k,)
        In label order.
    severity, intercept : float
        Of this person and of the average one: about 0 (not demented) to 2 (mild).
    contributions : ndarray of float32, shape (8, r, c)
        What each place adds: with `intercept` they sum to `severity`.
    person : Person
        What was asked about, on the template; its `warnings` say what is lacking.
    """

    logits: np.ndarray
    severity: float
    intercept: float
    contributions: np.ndarray = field(repr=False)
    person: Person = field(repr=False)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is lacking; empty where nothing is."""
        return self.person.warnings


class PersonModel:
    """A model file that takes a person, with its template."""

    def __init__(self, file: ModelFile) -> None:
        if not takes_person(file):
            raise ModelFileError(f"{file.path}: its card does not say that it takes a {INPUT}")
        self.file, beside = file, file.path.with_suffix(".npz")
        wanted = (file.card or {}).get("template_sha256")
        if not beside.is_file() or file_sha256(beside) != wanted:
            raise ModelFileError(
                f"{file.path}: its template {beside.name} is missing or another one; put the one "
                "of its card there, or make both again: python -m mri people"
            )
        self.template: Template = read_template(beside)

    @cached_property
    def model(self) -> keras.Model:
        """The Keras model, from prepared slices as channels to logits."""
        model, path = self.file.load(bare=True), self.file.path
        expected = (None, *self.template.mean.shape[1:], len(self.template.mean))
        if model.input_shape != expected or len(model.output_shape) != 2:
            raise ModelFileError(
                f"{path}: goes from {model.input_shape} to {model.output_shape}, expected "
                f"{expected} to (None, classes), as its template is"
            )
        # A stranger's network runs in a process of its own, but this one runs here.
        if not (is_own(self.file) or _is_glass_box(model)):
            raise ModelFileError(
                f"{path}: its card says that it takes a {INPUT}, but its layers are not those of "
                "mri.models.glass_box; only a glass box may"
            )
        return model

    def ask(self, slices: np.ndarray) -> Answer:
        """Ask about a person: any number of slices (n, h, w); of few the answer's warnings say so.

        Parameters
        ----------
        slices : ndarray of uint8 or float, shape (n, h, w)
            Of one person, in any order.
        """
        from mri._keras import keras

        person = prepare_person(slices, self.template)
        outputs = [self.model.get_layer(name).output for name in _LAYERS]
        parts = keras.Model(self.model.inputs, outputs)
        places, severity, logits = parts.predict(person.channels[None], verbose=0)
        weights, bias = self.model.get_layer("severity").get_weights()
        added = np.moveaxis(places[0] * weights.reshape(places.shape[1:]), -1, 0)
        return Answer(logits[0], float(severity[0, 0]), float(bias[0]), added, person)

    def logits(self, scans: Scans, groups: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return logits, float32 (m, k), of rows (m,): each slice gets the answer of its person.

        `groups` (n,) says whose each slice is. All slices of a person are looked at, also those
        that are not among the rows.
        """
        numbers, which = np.unique(groups[rows], return_inverse=True)
        prepared = [prepare_person(scans.images[groups == who], self.template) for who in numbers]
        channels = np.stack([person.channels for person in prepared])
        return self.model.predict(channels, batch_size=16, verbose=0)[which]


def _is_glass_box(model: keras.Model) -> bool:
    """Whether a model has the layers of a glass box of its sizes, in their order."""
    from mri.models.glass_box import glass_box

    (_, rows, columns, _), scores = model.input_shape, np.zeros(model.output_shape[-1])
    places = np.zeros((HEIGHTS // SLAB, rows // STEP, columns // STEP))
    made = glass_box(places, places, 0.0, slopes=scores, offsets=scores)

    def forms(of: keras.Model) -> list[tuple[object, ...]]:
        return [(type(v), v.name in _LAYERS and v.name, v.output.shape) for v in of.layers]

    return forms(model) == forms(made)
