"""What a file in a person's home folder says of Keras changes nothing here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mri._keras import keras
from mri.gradcam.cam import GradCAM
from mri.models.builders import build_model

SCRIPT = """
import json, sys
from test_home import figures
from mri._keras import keras
print(json.dumps([keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format(),
                  keras.config.dtype_policy().name, keras.config.backend(), figures()]))
"""


def figures():
    """Numbers that depend on the float type, epsilon and layout of every layer."""
    keras.utils.set_random_seed(0)
    model = build_model("compact", input_shape=(32, 32, 1))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    found = GradCAM(model, method="hirescam")(images, 1)
    dtypes = sorted({str(w.dtype) for w in model.weights})
    return [found.logits.tolist(), found.maps[:, ::4, ::4].tolist(), dtypes, model.count_params()]


@pytest.mark.slow
def test_the_home_folder_changes_nothing(tmp_path):
    told = {"floatx": "float64", "epsilon": 0.01, "image_data_format": "channels_first",
            "backend": "jax"}  # fmt: skip
    (tmp_path / "keras.json").write_text(json.dumps(told))
    here = Path(__file__).parent
    places = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "KERAS_HOME": str(tmp_path), "PYTHONPATH": places},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *config, found = json.loads(done.stdout)
    assert config == ["float32", 1e-7, "channels_last", "float32", "tensorflow"]
    logits, maps, *rest = found
    expected = figures()
    np.testing.assert_allclose(logits, expected[0], atol=1e-5)
    np.testing.assert_allclose(maps, expected[1], atol=1e-4)
    assert rest == expected[2:]
