"""Keras and TensorFlow, imported without their announcements.

TensorFlow prints what it was compiled with before any log level applies, on the C level, where a
notebook shows it as a red box. The descriptor is put aside for the import only; errors are raised
as ever.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Whatever a file in the home folder says.
os.environ["KERAS_BACKEND"] = "tensorflow"
_kept, _null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
os.dup2(_null, 2)
try:
    import keras
    import tensorflow as tf

    # The first look for a GPU complains where there is none.
    for gpu in tf.config.list_physical_devices("GPU"):
        # Else one process takes all of it, and the second of a sweep has none.
        tf.config.experimental.set_memory_growth(gpu, True)
finally:
    os.dup2(_kept, 2)
    os.close(_kept)
    os.close(_null)

# Networks are run at a few batch sizes each, and TensorFlow warns of every new one.
tf.get_logger().addFilter(lambda record: "triggered tf.function retracing" not in str(record.msg))

__all__ = ["keras", "tf"]
