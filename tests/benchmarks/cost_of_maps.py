"""Cost of heatmaps beside `predict` of the same slices, for every network in both dtypes.

    python tests/benchmarks/cost_of_maps.py [--slices 1280] [NAME …]

Each ratio is of CPU seconds, which other work on the machine hardly changes: the median of three
pairs. Weights are random. Networks of more than 100 ms a slice get an eighth of the slices.
"""

import argparse
from time import process_time

import numpy as np

from mri.gradcam.cam import GradCAM
from mri.models import builders

AT_MOST = 1.2


def seconds(run) -> float:
    start = process_time()
    run()
    return process_time() - start


def ratio(name: str, dtype: str, images: np.ndarray) -> tuple[float, float]:
    """Return CPU ms a slice of `predict`, and how many times as much the maps cost."""
    model = builders.build_model(name, dtype=dtype)
    cam = GradCAM(model)

    def predict(of=images):
        model.predict(of[..., None], batch_size=64, verbose=0)

    predict(images[:64]), cam(images[:64])
    if seconds(lambda: predict(images[:64])) > 6.4:
        images = images[: max(64, len(images) // 8)]
    pairs = [(seconds(lambda: predict(images)), seconds(lambda: cam(images))) for _ in range(3)]
    one, other = np.median([(a, b / a) for a, b in pairs], axis=0)
    return 1000 * one / len(images), other


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help="by default all networks")
    parser.add_argument("--slices", type=int, default=1280)
    options = parser.parse_args()
    builders.DOWNLOAD = False
    shape = options.slices, 128, 128
    slices = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for name in options.names or builders.list_models():
        for dtype in ("float32", "mixed_bfloat16"):
            cost, times = ratio(name, dtype, slices)
            said = "" if times <= AT_MOST else f"  more than {AT_MOST}"
            print(f"{name:26s} {dtype:15s} {cost:7.2f} ms  {times:5.2f}{said}", flush=True)
