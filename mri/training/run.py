"""What a run is: a network, what it is trained on and how; two that agree have one result."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from mri._keras import keras
from mri.data.scans import Scans
from mri.models.builders import build_model
from mri.subjects.splits import Split, split_facts
from mri.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Run:
    """A network, what it is trained on and how: all that determines the result.

    Attributes
    ----------
    builder : str
        One of `mri.list_models`.
    scans : Scans
    split : Split
    recipe : Recipe
        With a `dtype` other than 'auto'.
    seed : int
    """

    builder: str
    scans: Scans
    split: Split
    recipe: Recipe
    seed: int = 0

    def build(self) -> keras.Model:
        """Return the network with the initial weights of the seed."""
        keras.utils.set_random_seed(self.seed)
        return build_model(
            self.builder,
            input_shape=(*self.scans.images.shape[1:], 1),
            classes=len(self.scans.class_names),
            augment=self.recipe.augment,
            dtype=self.recipe.dtype,
        )

    @cached_property
    def model(self) -> keras.Model:
        """The network that is trained; built once."""
        return self.build()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that determines the result, JSON-ready."""
        # A builder may be edited between two runs; Keras numbers layers on from one to the next.
        network = re.sub(r'_\d+(?=")', "", self.model.to_json())
        return {
            "builder": self.builder,
            "network_sha256": hashlib.sha256(network.encode()).hexdigest(),
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "data": self.scans.fingerprint(),
            "split": split_facts(self.split),
        }

    @cached_property
    def signature(self) -> str:
        """SHA-256 of the identity: equal where the results are."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return max(1, len(self.split.train) // self.recipe.batch_size)


def differences(card: Mapping[str, Any], run: Run) -> dict[str, str]:
    """Return what a finished run of that name has otherwise, empty where there is none."""
    if card.get("signature") in (None, run.signature):
        return {}
    kept, now = ({k: _flat(of.get(k)) for k in run.identity} for of in (card, run.identity))
    pairs = {
        f"{key}{'.' * bool(field)}{field}": (kept[key].get(field), value)
        for key, fields in now.items()
        for field, value in fields.items()
    }
    return {
        key.replace(".", "_"): f"{str(was)[:16]} before, now {str(value)[:16]}"
        for key, (was, value) in pairs.items()
        if was != value
    }


def _flat(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {"": value}
