"""Cost of heatmaps beside `predict` of the same slices, for every network in both dtypes.

    python tests/benchmarks/cost_of_maps.py [--slices 1280] [NAME …]

Two ratios: of the clock, on a machine that does nothing else, and of CPU seconds, which other work
hardly changes. Both are the median of five pairs. Weights are random. Networks of more than 100 ms
a slice get an eighth of the slices.
"""

import argparse
from time import perf_counter, process_time

import numpy as np

from mri.gradcam.cam import GradCAM
from mri.models import builders

AT_MOST = 1.2


def seconds(run) -> np.ndarray:
    """Return the seconds of the clock and of the processor that a call takes."""
    start = perf_counter(), process_time()
    run()
    return np.array([perf_counter(), process_time()]) - start


def ratios(name: str, dtype: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ms a slice of `predict`, and how many times as much the maps cost; clock and CPU."""
    model = builders.build_model(name, dtype=dtype)
    cam = GradCAM(model)

    def predict(of=images):
        model.predict(of[..., None], batch_size=64, verbose=0)

    predict(images[:64]), cam(images[:64])
    if seconds(lambda: predict(images[:64]))[1] > 6.4:
        images = images[: max(64, len(images) // 8)]
    predict(images), cam(images)
    pairs = [(seconds(lambda: predict(images)), seconds(lambda: cam(images))) for _ in range(5)]
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
            cost, times = ratios(name, dtype, slices)
            said = "" if times[0] <= AT_MOST else f"  more than {AT_MOST}"
            told = "clock {:7.2f} ms {:5.2f}  CPU {:7.2f} ms {:5.2f}".format(
                *(cost[0], times[0], cost[1], times[1])
            )
            print(f"{name:26s} {dtype:15s} {told}{said}", flush=True)
