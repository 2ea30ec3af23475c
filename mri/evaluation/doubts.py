"""Signs in a model's answers that it was fed other images, or its classes in another order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import softmax
from sklearn.metrics import confusion_matrix

_RARE = 0.1  # share of the slices below which a class may well never be answered
_SURE = 0.999
_ROUNDED = 0.03  # of a sum of probabilities in few digits
_MANY = 10  # Fewer rows may lie between 0 and 1 by chance.
# Of accuracy, by which another order has to be better than this one, and than chance.
_MARGIN, _ABOVE_CHANCE = 0.15, 0.1


def doubts(
    labels: np.ndarray,
    logits: np.ndarray,
    class_names: Sequence[str],
    *,
    values_known: bool = False,
    order_known: bool = False,
) -> list[str]:
    """Return what makes one doubt that a model was understood; costs nothing but its answers.

    Parameters
    ----------
    labels : int (n,)
    logits : float (n, k), finite
    class_names : sequence of str, in label order
    values_known, order_known : whether somebody has said which values it takes, and its classes
    """
    n, k = logits.shape
    answers, shares = logits.argmax(1), np.bincount(labels, minlength=k) / n
    right, given = float((answers == labels).mean()), np.unique(answers)
    sure = float((softmax(logits.astype(np.float64), axis=1).max(1) > _SURE).mean())
    asks = f"does it expect other values{' than were declared' * values_known}, such as 0 to 1?"
    found = []
    if len(given) == 1 or np.delete(shares, given).max(initial=0) >= _RARE:
        found.append(f"answers only {len(given)} of {k} classes: {asks}")
    if sure > 0.9 and right < 0.8:
        found.append(f"is saturated (sure of {sure:.0%}, right on {right:.0%}): {asks}")
    # Which answer stands for which class, so that as many as possible are right.
    counts = confusion_matrix(answers, labels, labels=range(k))
    _, stands_for = linear_sum_assignment(counts, maximize=True)
    best = counts[np.arange(k), stands_for].sum() / n
    # What answers as frequent as these reach in their best order without knowing anything.
    chance = np.sort(shares) @ np.sort(counts.sum(1)) / n
    likely = best > chance + max(_ABOVE_CHANCE, 2 / np.sqrt(n))
    if not order_known and likely and best > right + _MARGIN:
        order = ", ".join(class_names[i] for i in stands_for)
        found.append(f"in the order {order} it would be right on {best:.0%}, here on {right:.0%}")
    return found


@contextmanager
def known_logits() -> Iterator[None]:
    """Silence `warn_of_shares` where the package itself has made the logits."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "these logits are")
        yield


def warn_of_shares(logits: np.ndarray) -> None:
    """Warn the caller's caller of logits (n, k) that may be probabilities."""
    sums, most = logits.sum(1), logits.max()
    shares = any((abs(sums / whole - 1) < _ROUNDED).all() for whole in (1, 100))
    if logits.min() >= 0 and most > 0 and (shares or (most <= 1 and len(logits) >= _MANY)):
        warnings.warn(
            f"these logits are {'shares of 1 or 100' if shares else 'all from 0 to 1'}: if they "
            "are probabilities, give their logarithms, np.log(p.clip(1e-7))",
            stacklevel=3,
        )
