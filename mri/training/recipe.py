"""How networks are trained: the options of a run, and the recipe of every network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mri._arguments import require
from mri._keras import tf
from mri.models.builders import DTYPES, list_models

_ABOVE = math.ulp(0.0)  # The least number above 0.


def _number(value: Any, low: float = 1, high: float = math.inf, *, kind: type = int) -> bool:
    known = isinstance(value, int | kind) and not isinstance(value, bool)
    return known and math.isfinite(value) and low <= value <= high


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the defaults are the recommended run.

    Attributes
    ----------
    epochs : int
        Passes over the training part. The learning rate reaches zero at the end of the last.
    batch_size : int
    learning_rate : float
        Peak of the AdamW schedule: a linear warm-up over the first tenth of the steps, then a
        cosine decay (Loshchilov & Hutter, https://doi.org/10.48550/arXiv.1711.05101).
    weight_decay : float
    label_smoothing : float
        Share of the target spread evenly over the classes.
    balance : {'none', 'weights', 'sampling'}
        Leave the classes as they are, weight the loss by the inverse class frequency, or draw
        every class equally often (with replacement).
    hardest : float
        Share of each batch that the gradient uses, largest losses first: online hard example
        mining (Shrivastava et al. 2016, https://doi.org/10.1109/CVPR.2016.89).
    augment : bool
        See `mri.models.augmentation`.
    monitor : {'last', 'val_balanced_accuracy', 'val_loss'}
        Which epoch is kept: the last or the best on the validation part. A subject-wise validation
        part holds 20 people, and the best epoch on so few is chosen by chance.
    patience : int or None
        Stop after this many epochs without a better one; needs a `monitor` other than 'last'.
    dtype : str
        Layer policy; 'auto' chooses mixed_bfloat16 if the hardware supports it.

    Examples
    --------
    >>> Recipe(epochs=3, balance="weights").learning_rate
    0.001
    >>> Recipe(epochs=0)
    Traceback (most recent call last):
    ValueError: epochs must be a positive integer. Received: epochs=0
    """

    epochs: int = 15
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 4e-3
    label_smoothing: float = 0.0
    balance: str = "none"
    hardest: float = 1.0
    augment: bool = False
    monitor: str = "last"
    patience: int | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Reject values that would otherwise fail in the middle of a run."""
        balances = "none", "weights", "sampling"
        monitors = "last", "val_balanced_accuracy", "val_loss"
        dtypes, real = ("auto", *DTYPES), partial(_number, kind=float)
        for name, expected, valid in (
            ("epochs", "a positive integer", _number(self.epochs)),
            ("batch_size", "a positive integer", _number(self.batch_size)),
            ("patience", "a positive integer", self.patience is None or _number(self.patience)),
            ("learning_rate", "positive", real(self.learning_rate, _ABOVE)),
            ("weight_decay", "at least 0", real(self.weight_decay, 0)),
            ("label_smoothing", "in [0, 1)", real(self.label_smoothing, 0, 1 - 1e-9)),
            ("hardest", "in (0, 1]", real(self.hardest, _ABOVE, 1)),
            ("augment", "True or False", isinstance(self.augment, bool)),
            ("balance", f"one of {balances}", self.balance in balances),
            ("monitor", f"one of {monitors}", self.monitor in monitors),
            ("dtype", f"one of {dtypes}", self.dtype in dtypes),
        ):
            require(valid, f"{name} must be {expected}.", **{name: getattr(self, name)})
        idle = self.patience is not None and self.monitor == "last"
        expected = "patience needs a monitor that can improve, such as 'val_loss'."
        require(not idle, expected, patience=self.patience, monitor=self.monitor)


PLAIN = Recipe(epochs=10)
MINING = Recipe(epochs=20, learning_rate=3e-4, hardest=0.2)
RECIPES = {
    "default": Recipe(),
    "baseline": PLAIN,
    **dict.fromkeys(("baseline_dropout_light", "baseline_deep", "baseline_deep_plain"), PLAIN),
    **dict.fromkeys(("small_5x5", "three_block_5x5"), PLAIN),
    # As many epochs as the original authors gave these two.
    "baseline_dropout": replace(PLAIN, epochs=50),
    "baseline_dropout_reduced": replace(PLAIN, epochs=32),
    # With a decaying rate, few epochs are enough.
    "keras_like": Recipe(epochs=6),
    # These three take hours on two cores. From random weights the deeper ones need more epochs.
    "dual_path": PLAIN,
    "resnet50": Recipe(epochs=15, learning_rate=5e-4),
    # Depthwise convolutions are faster in float32.
    "efficientnet_b3": Recipe(epochs=30, dtype="float32"),
    "fast": Recipe(epochs=8),
    # Sixteen numbers a slice: it costs little to train until nothing changes any more.
    "tissue": Recipe(epochs=40, learning_rate=1e-2, weight_decay=0.0, balance="weights"),
    "weighted_sampling": Recipe(epochs=10, balance="sampling"),
    # With a rate of 1e-3, one run in two never got more than a quarter right. It saw only what it
    # got most wrong, and learnt to give the same answer for every slice. A step of fewer slices
    # (three from a batch of sixteen) needs a smaller rate.
    "hard_mining_16": replace(MINING, batch_size=16, learning_rate=7.5e-5),
    "hard_mining_32": replace(MINING, learning_rate=1.5e-4),
    "hard_mining_64": replace(MINING, batch_size=64),
}
"""Recipes by name; a network of `mri.models` uses the recipe of the same name."""


def recipe_of(builder: str) -> Recipe:
    """Return the recipe that `train` uses for a builder by default."""
    return RECIPES.get(builder, RECIPES["default"])


def native_dtype() -> str:
    """Return the fastest policy of this machine: 'mixed_bfloat16' or 'float32'."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability")
        return "mixed_bfloat16" if capability and capability >= (8, 0) else "float32"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "float32"
    return "mixed_bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def entries() -> dict[str, tuple[str, Recipe]]:
    """Return builder and recipe by name: all networks, and the baseline with other recipes."""
    found = {name: (name, recipe_of(name)) for name in list_models()}
    others = set(RECIPES) - set(found) - {"default"}
    return found | {f"baseline_{name}": ("baseline", RECIPES[name]) for name in sorted(others)}


def chosen_entries(names: Sequence[str]) -> dict[str, tuple[str, Recipe]]:
    """Return the `entries` of the given names, all without names; ValueError if one is unknown."""
    zoo = entries()
    unknown = sorted(set(names) - set(zoo))
    require(not unknown, f"No network of that name. There are {', '.join(zoo)}.", names=unknown)
    return {name: zoo[name] for name in names or zoo}
