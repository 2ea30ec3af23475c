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

    # What a file in the home folder says is for models of one's own: here nothing depends on it.
    if (float_type := keras.config.floatx()) != "float32":
        keras.config.set_floatx("float32")
        if keras.config.dtype_policy().name == float_type:
            keras.config.set_dtype_policy("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")

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
