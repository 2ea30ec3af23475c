"""What a run is: a network, its data and its recipe. Equal runs have equal results."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from mri._keras import keras
from mri.data.scans import Scans
from mri.models.builders import build_model
from mri.subjects.splits import Split, split_facts
from mri.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Run:
    """All that determines the result; the `dtype` of the recipe is resolved, not 'auto'."""

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
    """Return how a run differs from the finished one of that card; empty if there is none."""
    if card.get("signature") in (None, run.signature):
        return {}
    kept, now = (
        pd.json_normalize(dict(of), sep="_").to_dict("records")[0] for of in (card, run.identity)
    )
    return {
        key: f"{str(kept.get(key))[:16]} before, now {str(value)[:16]}"
        for key, value in now.items()
        if kept.get(key) != value
    }
