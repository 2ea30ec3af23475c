"""Time of heatmaps beside `predict` of the same slices, and beside other packages.

``pytest tests/benchmarks/bench_gradcam.py -m benchmark -s`` prints one line a contestant: the
median over interleaved rounds of its time divided by that of `predict` in the same round.
"""

import statistics
import time

import keras
import numpy as np
import pytest

from mri.gradcam import METHODS, GradCAM

SLICES, BATCH, ROUNDS = 256, 64, 5


def baseline():
    """Build the small baseline of this project's comparison: 8.4 million parameters, float32."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((128, 128, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="first"),
            layers.MaxPooling2D(),
            layers.BatchNormalization(),
            layers.Conv2D(64, 3, padding="same", activation="relu", name="last"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(4),
        ]
    )


def tf_keras_vis(model, images):
    """Explain with tf-keras-vis, which normalises and stretches the maps as well."""
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.utils.scores import CategoricalScore

    cam = Gradcam(model, clone=False)

    def run():
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH, ..., None].astype(np.float32)
            cam(CategoricalScore([1] * len(batch)), batch, penultimate_layer="last")

    return run


def pytorch_grad_cam(_, images):
    """Explain the same network in PyTorch with pytorch-grad-cam."""
    import torch
    from pytorch_grad_cam import GradCAM as TorchCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torch import nn

    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(32)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * 32 * 32, 128), nn.ReLU(), nn.Linear(128, 4)),
    ).eval()
    cam = TorchCAM(model, [model[5]])

    def run():
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(images[start : start + BATCH, None] / np.float32(255))
            cam(batch, [ClassifierOutputTarget(1)] * len(batch))

    return run


@pytest.mark.benchmark
@pytest.mark.filterwarnings("ignore")  # of the other packages
def test_cost_of_heatmaps_beside_predict():
    model = baseline()
    images = np.random.default_rng(0).integers(0, 256, (SLICES, 128, 128), dtype=np.uint8)
    runs = {"predict": lambda: model.predict(images[..., None], batch_size=BATCH, verbose=0)}
    for method in METHODS:
        cam = GradCAM(model, method=method)
        runs[method] = lambda cam=cam: cam(images, 1, batch_size=BATCH)
    first = GradCAM(model, "first")
    runs["grad-cam, first layer"] = lambda: first(images, 1, batch_size=BATCH)
    for peer in (tf_keras_vis, pytorch_grad_cam):
        try:
            runs[peer.__name__] = peer(model, images)
        except ImportError as missing:
            print(f"{peer.__name__:>22}: not installed ({missing.name})")

    seconds = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        ratio = statistics.median(np.divide(times, seconds["predict"]))
        print(f"{name:>22}: {ratio:5.2f} x predict ({statistics.median(times):.2f} s)")
