"""Keras and TensorFlow, imported without their start messages.

TensorFlow prints how it was compiled before any log level applies. It does so on the C level, and a
notebook shows this as a red box. Therefore standard error is redirected, only during the import.
Errors are raised as usual.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Overrides any settings file in the home folder.
os.environ["KERAS_BACKEND"] = "tensorflow"
_kept, _null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
os.dup2(_null, 2)
try:
    import keras
    import tensorflow as tf

    # The first search for a GPU prints a warning if there is none.
    for gpu in tf.config.list_physical_devices("GPU"):
        # Otherwise one process takes all memory, and the next one of a sweep has none.
        tf.config.experimental.set_memory_growth(gpu, True)
finally:
    os.dup2(_kept, 2)
    os.close(_kept)
    os.close(_null)

# Each network runs at a few batch sizes, and TensorFlow warns about every new one.
tf.get_logger().addFilter(lambda record: "triggered tf.function retracing" not in str(record.msg))

__all__ = ["keras", "tf"]
