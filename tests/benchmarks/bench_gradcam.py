"""Heatmaps beside `predict` of the same slices, and beside other packages.

All explain `baseline` with the same weights, in float32 and in batches of 64; each of the two
others is held against its own forward pass too. A network of a seventh of the work shows what is
left where the forward pass is no longer nearly all.
"""

import sys
from unittest.mock import MagicMock

import numpy as np
from harness import folder_of_slices, interleaved, main, optional, versus

from mri.data.scans import read_scans
from mri.gradcam.cam import GradCAM
from mri.models.builders import build_model

BATCH = 64


def tf_keras_vis(model, images):
    """Explain with tf-keras-vis, which normalises and stretches the maps as well."""
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.utils.scores import CategoricalScore

    cam = Gradcam(model, clone=False)

    def run():
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH, ..., None].astype(np.float32)
            cam(CategoricalScore([1] * len(batch)), batch, penultimate_layer="last_conv")

    return {"tf_keras_vis": run}


def pytorch_grad_cam(model, images):
    """Explain the same network, in PyTorch, with pytorch-grad-cam."""
    import torch

    # It imports parts of torchvision for its examples, whether or not they are called.
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules.setdefault(name, MagicMock())
    from pytorch_grad_cam import GradCAM as TorchCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torch_baseline import baseline

    network = baseline(model).eval()
    cam = TorchCAM(network, [network[5]])
    slices = torch.from_numpy(images[:, None] / np.float32(255))

    def explain():
        for batch in slices.split(BATCH):
            cam(batch, [ClassifierOutputTarget(1)] * len(batch))

    def forward():
        with torch.inference_mode():
            for batch in slices.split(BATCH):
                network(batch)

    return {"pytorch_grad_cam": explain, "pytorch": forward}


def measure(quick: bool) -> list[dict]:
    model = build_model("baseline")
    images = read_scans(folder_of_slices(), split="test").images[: 128 if quick else 1280]
    small = build_model("compact")
    cam, small_cam = GradCAM(model), GradCAM(small)
    runs = {
        "predict": lambda: model.predict(images[..., None], batch_size=BATCH, verbose=0),
        "ours": lambda: cam(images, 1, batch_size=BATCH),
        "small_predict": lambda: small.predict(images[..., None], batch_size=BATCH, verbose=0),
        "small_ours": lambda: small_cam(images, 1, batch_size=BATCH),
    }
    for peer in (tf_keras_vis, pytorch_grad_cam):
        with optional(peer.__name__):
            runs |= peer(model, images)
    seconds = interleaved(runs, 1 if quick else 3)
    work = f"Grad-CAM of {len(images):,} slices"
    found = [
        versus(seconds, work, "ours", "predict", "`predict` of the same", at_most=1.2),
        versus(
            seconds,
            f"{work} by `compact`",
            "small_ours",
            "small_predict",
            "its `predict`",
            at_most=1.2,
        ),
        versus(seconds, work, "ours", "tf_keras_vis", "tf-keras-vis", at_least=3),
        versus(seconds, work, "ours", "pytorch_grad_cam", "pytorch-grad-cam", at_least=1),
    ]
    if "pytorch" in seconds:
        theirs = "pytorch-grad-cam, the same slices"
        found.append(versus(seconds, theirs, "pytorch_grad_cam", "pytorch", "its forward pass"))
    return found


if __name__ == "__main__":
    main("gradcam", measure)
