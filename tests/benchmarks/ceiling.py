"""A try at the ceiling: other models of whole people. All choices are made by people to train on.

Answers are kept in runs/ceiling/, and a killed run continues there. Prints a Markdown table:

    MRI_DATA=data .venv/bin/python tests/benchmarks/ceiling.py [--divisions 10] [NAME ...]
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from scipy.optimize import minimize
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from mri.__main__ import protocols
from mri.data.tone_map import ANCHORS, band
from mri.evaluation.metrics import Sample, demented_odds
from mri.evaluation.significance import auc_difference, share_difference, shares_of
from mri.subjects.person import person_tones
from mri.training.crossval import folds_of
from mri.training.ordinal import fit_ordinal, severity_of
from mri.training.people_table import figures_of

HOME = Path("runs/ceiling")
PENALTIES = np.array([1.0, 3.0, 10.0, 30.0, 100.0])


def blurred(maps: np.ndarray, sigma: float, step: int) -> np.ndarray:
    found = [cv2.GaussianBlur(x, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT) for x in maps]
    return np.stack(found)[:, ::step, ::step]


def slabs(maps: np.ndarray, height: int) -> np.ndarray:
    return maps.reshape(-1, height, *maps.shape[1:]).mean(1)


def described(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return all that the trials look at, of one person's slices from `person_tones`."""
    gray, head = band(images).astype(np.float32), images > ANCHORS[0] / 2
    fluid = (head & (images < sum(ANCHORS[:2]) / 2)).astype(np.float32)
    white = (images > sum(ANCHORS[1:]) / 2).astype(np.float32)
    tone = blurred(slabs(gray, 4), 4, 4)
    counts = np.histogram(images[head], np.linspace(ANCHORS[0] / 2, 280, 65))[0]
    places = list(product(np.array_split(np.arange(128), 3), repeat=2))
    eighths = slabs(gray, 8), slabs(fluid, 8)
    regions = [m[:, a][..., b].mean((1, 2)) for m in eighths for a, b in places]
    return {
        "tone": tone,
        "fluid": blurred(slabs(fluid, 4), 4, 4),
        "histogram": np.sqrt(counts / counts.sum()),
        "volumes": np.stack([m.sum((1, 2)) / head.sum() for m in (gray, fluid, white)]),
        "asymmetry": np.abs(tone - tone[..., ::-1]),
        "regions": np.stack(regions),
        "tone 2": blurred(slabs(gray, 4), 2, 4),
        "tone 8": blurred(slabs(gray, 8), 8, 8),
        "tone 16": blurred(slabs(gray, 8), 16, 16),
        "slices": cv2.resize(np.moveaxis(gray, 0, -1), (32, 32), interpolation=cv2.INTER_AREA),
    }


def sixteenths(images: np.ndarray) -> np.ndarray:
    """Return the sixteen numbers that `tissue` reads of each slice."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    z = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
    tone = np.exp(-np.square((z - 0.65) / 0.25))
    return tone.reshape(-1, 4, 32, 4, 32).mean((2, 4)).reshape(len(images), 16)


def features() -> dict[str, np.ndarray]:
    path = HOME / "features.npz"
    if not path.is_file():
        scans, _, groups = protocols()
        numbers, first = np.unique(groups, return_index=True)
        with ThreadPoolExecutor() as threads:
            tones = threads.map(lambda n: person_tones(scans.images[groups == n]).images, numbers)
            people = [described(images) for images in tones]
        found = {f"x {name}": np.stack([p[name] for p in people]) for name in people[0]}
        found |= {
            "x sixteenths": np.stack([sixteenths(scans.images[groups == n]) for n in numbers])
        }
        HOME.mkdir(parents=True, exist_ok=True)
        about = {"names": scans.class_names, "labels": scans.labels[first]}
        np.savez(path, **found, **about, slice_labels=scans.labels, groups=groups)
    with np.load(path) as file:
        return dict(file)


class People:
    """Features of all people; every method gets the people to train on and answers for all."""

    def __init__(self) -> None:
        of = features()
        self.x = {key[2:]: of[key] for key in of if key.startswith("x ")}
        self.labels, self.names = of["labels"], tuple(map(str, of["names"]))
        self.slice_labels, self.groups = of["slice_labels"], of["groups"]
        self.severity = severity_of(self.labels, self.names)
        self.known: dict[str, np.ndarray] = {}

    def kernel(self, x: np.ndarray, train: np.ndarray, *, scaled: bool = False) -> np.ndarray:
        """Return products of features centred on the training people, their mean square 1."""
        x = x.reshape(len(x), -1).astype(float)
        return self.centred(self.products(x / (x[train].std(0) + 1e-9) if scaled else x), train)

    def products(self, x: np.ndarray) -> np.ndarray:
        x = x.reshape(len(x), -1).astype(float)
        return (x - x.mean(0)) @ (x - x.mean(0)).T

    def centred(self, products: np.ndarray, train: np.ndarray) -> np.ndarray:
        means = products[train].mean(0)
        kernel = products - means - means[:, None] + means[train].mean()
        return kernel / kernel[train, train].mean()

    def ridge(self, kernel: np.ndarray, train: np.ndarray, penalties: np.ndarray) -> np.ndarray:
        """Return everybody's score for each penalty, (penalties, n)."""
        inside = kernel[np.ix_(train, train)]
        means = inside.mean(0)
        values, vectors = np.linalg.eigh(inside - means - means[:, None] + means.mean())
        scale = max(values.sum(), 1e-12) / len(train)
        y = self.severity[train]
        turned = (vectors.T @ (y - y.mean())) / (values + penalties[:, None] * scale)
        dual = turned @ vectors.T
        across = kernel[:, train] - means
        return y.mean() + dual @ across.T - (dual @ across[train].mean(0))[:, None]

    def summed(
        self, kernels: list[np.ndarray], train: np.ndarray, seed: int, penalties=PENALTIES
    ) -> np.ndarray:
        """Return logits of a ridge on a sum of kernels; weights and penalty by inner folds."""
        steps = range(4) if len(kernels) > 1 else [3]
        best = np.inf, None, None, None
        y, folds = self.severity, StratifiedKFold(5, shuffle=True, random_state=seed)
        parts = [(train[a], train[b]) for a, b in folds.split(train, y[train])]
        for weights in product(steps, repeat=len(kernels)):
            if sum(weights) != 3:
                continue
            kernel = sum(w / 3 * k for w, k in zip(weights, kernels, strict=True) if w)
            inner = np.empty((len(penalties), len(y)))
            for inside, rest in parts:
                inner[:, rest] = self.ridge(kernel, inside, penalties)[:, rest]
            # A ridge of few people shrinks its answers: their correlation is what is compared.
            scores = [-np.corrcoef(s[train], y[train])[0, 1] for s in inner]
            i = int(np.argmin(scores))
            if scores[i] < best[0]:
                best = scores[i], kernel, penalties[i], inner[i]
        _, kernel, penalty, inner = best
        return self.cut(self.ridge(kernel, train, np.array([penalty]))[0], inner, train)

    def cut(self, scores: np.ndarray, inner: np.ndarray, train: np.ndarray) -> np.ndarray:
        return fit_ordinal(inner[train], self.labels[train], self.names).logits(scores)

    def kernels(self, names: str, train: np.ndarray) -> list[np.ndarray]:
        """Return a kernel a name, those of few unlike numbers of standardised features."""
        found = []
        for name in names.split(", "):
            if name in ("volumes", "regions", "histogram"):
                found.append(self.kernel(self.x[name], train, scaled=True))
                continue
            if name not in self.known:
                self.known[name] = self.products(self.x[name])
            found.append(self.centred(self.known[name], train))
        return found


def sums(names: str, penalties=PENALTIES):
    """Return a trial: a ridge on a sum of the kernels named."""
    return lambda p, train, seed: p.summed(p.kernels(names, train), train, seed, penalties)


def tissue(p: People, train: np.ndarray, seed: int) -> np.ndarray:
    """`tissue`, fitted to convergence: logistic regression of slices, balanced weights."""
    x = p.x["sixteenths"].astype(float)
    n, slices, width = x.shape
    scaler = StandardScaler().fit(x[train].reshape(-1, width))
    labels = np.repeat(p.labels[train], slices)
    fit = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=5000)
    fit.fit(scaler.transform(x[train].reshape(-1, width)), labels)
    logits = fit.decision_function(scaler.transform(x.reshape(-1, width)))
    found = np.full((n, 4), -30.0)
    found[:, fit.classes_] = logits.reshape(n, slices, -1).mean(1)
    return found


def gaussian_process(p: People, train: np.ndarray, seed: int) -> np.ndarray:
    """Weights of the kernels and noise by marginal likelihood; leave-one-out answers are cut."""
    kernels = np.stack(p.kernels("tone, histogram, volumes", train))
    inside, y = kernels[:, train][:, :, train], p.severity[train] - p.severity[train].mean()

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        *weights, noise = np.exp(logs)
        k = np.tensordot(weights, inside, 1) + noise * np.eye(len(y))
        inverse = np.linalg.inv(k)
        a = inverse @ y
        terms = *zip(weights, inside, strict=True), (noise, np.eye(len(y)))
        gradient = [w * (np.sum(inverse * x) - a @ x @ a) / 2 for w, x in terms]
        return 0.5 * (y @ a + np.linalg.slogdet(k)[1]), np.array(gradient)

    start, bounds = np.log([0.1, 0.1, 0.1, 0.4]), [(-9, 3)] * 4
    *weights, noise = np.exp(minimize(loss, start, jac=True, bounds=bounds).x)
    kernel = np.tensordot(weights, kernels, 1)
    inverse = np.linalg.inv(kernel[np.ix_(train, train)] + noise * np.eye(len(y)))
    inner = np.zeros(len(p.labels))
    inner[train] = y - inverse @ y / np.diag(inverse)
    return p.cut(kernel[:, train] @ inverse @ y, inner, train)


def ordinal(p: People, train: np.ndarray, seed: int) -> np.ndarray:
    """Two logistic regressions, of any dementia and of more than very mild, on the tone kernel."""
    kernel = p.kernels("tone", train)[0]
    values, vectors = np.linalg.eigh(kernel[np.ix_(train, train)])
    keep = values > 1e-6 * values.max()
    x = kernel[:, train] @ vectors[:, keep] / np.sqrt(values[keep])

    def scores(inside: np.ndarray, c: float) -> np.ndarray:
        logits = 0
        for cut in (0, 1):
            fit = LogisticRegression(C=c, class_weight="balanced", max_iter=2000)
            fit.fit(x[inside], p.severity[inside] > cut)
            logits = logits + fit.decision_function(x)
        return logits / 2

    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    found = {}
    for c in (0.003, 0.01, 0.03, 0.1, 0.3):
        inner = np.zeros(len(x))
        for a, b in folds.split(train, p.severity[train]):
            inner[train[b]] = scores(train[a], c)[train[b]]
        found[c] = np.corrcoef(inner[train], p.severity[train])[0, 1], inner
    c = max(found, key=lambda c: found[c][0])
    return p.cut(scores(train, c), found[c][1], train)


def components(p: People, train: np.ndarray, seed: int) -> np.ndarray:
    """Principal components of single slices of the training people, whitened, height by height."""
    slices = np.moveaxis(p.x["slices"], -1, 1).reshape(len(p.labels), 32, -1)
    fit = PCA(40, whiten=True, svd_solver="randomized", random_state=seed)
    fit.fit(slices[train].reshape(-1, slices.shape[2]))
    x = fit.transform(slices.reshape(-1, slices.shape[2])).reshape(len(slices), -1)
    return p.summed([p.kernel(x, train)], train, seed)


def network(p: People, train: np.ndarray, seed: int) -> np.ndarray:
    """A small CNN on the tone map, mirrored and shifted at random; its last epoch is kept."""
    from mri._keras import keras

    maps = np.moveaxis(p.x["tone"], 1, -1)
    layers = keras.layers

    def scores(inside: np.ndarray) -> np.ndarray:
        keras.utils.set_random_seed(seed)
        mean, spread = maps[inside].mean(0), maps[inside].std()
        model = keras.Sequential([
            keras.Input(maps.shape[1:]), layers.RandomFlip("horizontal"),
            layers.RandomTranslation(0.06, 0.06, fill_mode="nearest"), layers.GaussianNoise(0.2),
            layers.Conv2D(16, 3, strides=2, activation="relu"), layers.Dropout(0.2),
            layers.Conv2D(32, 3, strides=2, activation="relu"), layers.Dropout(0.4),
            layers.AveragePooling2D(2), layers.Flatten(), layers.Dense(1),
        ])  # fmt: skip
        model.compile(keras.optimizers.AdamW(2e-3, weight_decay=0.05), "mse")
        x, y = (maps - mean) / spread, p.severity.astype(np.float32)
        model.fit(x[inside], y[inside], batch_size=16, epochs=60, verbose=0)
        return model.predict(x, verbose=0)[:, 0]

    inner = np.zeros(len(maps))
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    for a, b in folds.split(train, p.severity[train]):
        inner[train[b]] = scores(train[a])[train[b]]
    return p.cut(scores(train), inner, train)


TRIALS = {
    "tissue, converged": tissue,
    "glass box (tone, penalty 10)": sums("tone", np.array([10.0])),
    "tone, nested penalty": sums("tone"),
    "tone + histogram + volumes, nested weights": sums("tone, histogram, volumes"),
    "Gaussian process on the same three": gaussian_process,
    "ordinal logistic on tone": ordinal,
    "tone + asymmetry": sums("tone, asymmetry"),
    "tone + fluid maps": sums("tone, fluid"),
    "3 × 3 × 4 regions, gray and fluid": sums("regions"),
    "tone blurred by 8 pixels, 8 slices": sums("tone 8"),
    "tone at 2, 4, 8 and 16 pixels, nested weights": sums("tone 2, tone, tone 8, tone 16"),
    "whitened components of slices": components,
    "small CNN on tone maps": network,
}


def answers(name: str, division: int, people: People, folds: list[np.ndarray]) -> np.ndarray:
    """Return everybody's logits (n, 4) from models fitted without them; kept on the disk."""
    stem = "".join(c if c.isalnum() else "_" for c in name)
    path = HOME / f"{stem}-{division}.npy"
    if not path.is_file():
        found = np.empty((len(people.labels), 4))
        for test in folds:
            train = np.setdiff1d(np.arange(len(found)), test)
            found[test] = TRIALS[name](people, train, division)[test]
        np.save(path, found)
    return np.load(path)


def row(people: People, logits: list[np.ndarray], rival: list[np.ndarray]) -> str:
    """Return the figures over divisions, and how much they are above the rival's."""
    names, labels, who = people.names, people.labels, np.arange(len(people.labels))
    of = [figures_of(labels, x, names) for x in logits]
    cells = []
    for key in ("demented_auc", "balanced_accuracy_3"):
        values = [figures[key] for figures in of]
        cells.append(f"{np.mean(values):.3f} ± {np.std(values):.3f}")
    if logits is not rival:
        odds = [np.stack([demented_odds(x, names) for x in xs]) for xs in (logits, rival)]
        found = [auc_difference(*odds, labels != names.index("Non_Demented"))]
        shares = [
            np.mean(
                [shares_of(Sample(labels, x, who), "balanced_accuracy_3", names) for x in xs], 0
            )
            for xs in (logits, rival)
        ]
        found.append(share_difference(shares[0] - shares[1], labels))
        cells += ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*difference[:3]) for difference in found]
    return " | ".join([str(len(logits)), *cells, *["–"] * (4 - len(cells))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"some of {', '.join(TRIALS)}")
    parser.add_argument("--divisions", type=int, default=10)
    options = parser.parse_args()
    people = People()
    rival = "tissue, converged"
    known: dict[str, list[np.ndarray]] = {}
    print("| what | divisions | AUC | 3-class | AUC, less `tissue` | 3-class, less `tissue` |")
    print("|---|---|---|---|---|---|")
    numbers = np.unique(people.groups)
    divided = [
        [np.flatnonzero(np.isin(numbers, people.groups[split.test]))
         for split in folds_of(people.slice_labels, people.groups, division=division)]
        for division in range(options.divisions)
    ]  # fmt: skip
    for name in dict.fromkeys([rival, *(options.names or TRIALS)]):
        with threadpool_limits(1):
            known[name] = [answers(name, d, people, divided[d]) for d in range(options.divisions)]
        print(f"| {name} | {row(people, known[name], known[rival])} |", flush=True)


if __name__ == "__main__":
    main()
