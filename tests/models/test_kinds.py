"""Model files of other people's kinds: each is ranked, or refused by its true name.

The table of all of them goes to ``runs/model_kinds.md``.
"""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mri._keras import keras
from mri.data.scans import Scans
from mri.evaluation.comparison import compare
from mri.gradcam.cam import GradCAM
from mri.models.files import load_model
from mri.models.formats import may_be_model, recognised

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`"),
    pytest.mark.filterwarnings("ignore:You are saving"),
]
K, ops = keras.layers, keras.ops
SIZE, CLASSES = 16, 4
NAMES = ("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented")
KINDS, WARNED = {}, {}


def kind(expected="", suffix=".keras", heat=None, warned=""):
    """Register a maker of a file.

    `expected` is in its note if refused, `heat` in the message if it has no map, `warned` in its
    note though it is ranked.
    """

    def put(make):
        KINDS[make.__name__.strip("_")] = (make, suffix, expected, heat)
        WARNED[make.__name__.strip("_")] = warned
        return make

    return put


def saved(expected="", heat=None, **options):
    """Register a maker of a functional model, from image tensor to scores."""

    def put(make):
        def save(path):
            inputs = keras.Input(options.get("shape", (SIZE, SIZE, 1)), options.get("batch"),
                                 dtype=options.get("dtype"))  # fmt: skip
            keras.Model(inputs, make(inputs)).save(path)

        save.__name__ = make.__name__
        return kind(expected, heat=heat, warned=options.get("warned", ""))(save)

    return put


def trunk(x):
    return K.Conv2D(6, 3, padding="same", activation="relu")(K.Rescaling(1 / 255)(x))


def head(x, **options):
    return K.Dense(CLASSES, **options)(K.GlobalAveragePooling2D()(x))


def sequential(*end):
    steps = [K.Rescaling(1 / 255), K.Conv2D(4, 3, activation="relu"), K.Flatten(), K.Dense(CLASSES)]
    return keras.Sequential([keras.Input((SIZE, SIZE, 1)), *steps, *end])


# --- which are ranked ---


@kind()
def sequential_logits(path):
    sequential().save(path)


@kind()
def sequential_without_input(path):
    model = keras.Sequential(sequential().layers)
    model(np.zeros((1, SIZE, SIZE, 1)))
    model.save(path)


@saved()
def dense_softmax(x):
    return head(trunk(x), activation="softmax")


@saved()
def log_softmax(x):
    return head(trunk(x), activation="log_softmax")


@saved()
def sigmoids(x):
    return head(trunk(x), activation="sigmoid")


@saved()
def averaged_softmax(x):
    x = trunk(x)
    return K.Average()([head(x, activation="softmax"), head(x, activation="softmax")])


@saved(heat="must be named")
def ensemble_of_networks(x):
    return K.Average()([head(trunk(x), activation="softmax") for _ in range(2)])


@kind()
def compiled_with_own_loss(path):
    @keras.saving.register_keras_serializable("theirs")
    def their_loss(labels, scores):
        return keras.ops.mean(scores)

    model = sequential(K.Softmax())
    model.compile("adam", their_loss, metrics=["accuracy", their_loss])
    model.fit(np.zeros((4, SIZE, SIZE, 1)), np.eye(4), verbose=0)
    model.save(path)


@kind()
def around_a_compiled_model(path):
    inner = sequential()
    inner.compile("adam", "mse")
    inputs = keras.Input((SIZE, SIZE, 1))
    keras.Model(inputs, K.Softmax()(inner(inputs))).save(path)


@kind()
def nested_twice(path):
    inner = keras.Sequential([keras.Input((SIZE, SIZE, 1)), K.Conv2D(4, 3), K.ReLU()])
    outer = keras.Sequential([keras.Input((SIZE, SIZE, 1)), inner, K.MaxPooling2D()])
    inputs = keras.Input((SIZE, SIZE, 1))
    keras.Model(inputs, head(outer(inputs))).save(path)


@saved()
def seed_generator(x):
    drawn = keras.initializers.GlorotUniform(keras.random.SeedGenerator(3))
    return head(K.Dropout(0.5, seed=3)(K.Conv2D(4, 3, kernel_initializer=drawn)(trunk(x))))


@saved()
def augmentation_inside(x):
    return head(trunk(K.RandomRotation(0.1)(K.RandomFlip()(x))))


@saved(batch=7)
def fixed_batch_size(x):
    return head(trunk(x))


@saved(shape=(None, None, 1))
def open_sizes(x):
    return head(trunk(x))


@saved()
def output_in_a_dict(x):
    return {"diagnosis": head(trunk(x), activation="softmax")}


@saved()
def output_in_a_list(x):
    return [head(trunk(x))]


@saved(dtype="uint8")
def whole_numbers(x):
    return head(trunk(x))


@kind()
def mixed_bfloat16(path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        sequential(K.Softmax()).save(path)
    finally:
        keras.config.set_dtype_policy(before)


@saved()
def float16_layers(x):
    x = K.Conv2D(4, 3, dtype="float16")(K.Rescaling(1 / 255)(x))
    return K.Dense(CLASSES, dtype="float16")(K.GlobalAveragePooling2D(dtype="float16")(x))


@saved()
def float64_layers(x):
    x = K.Conv2D(4, 3, dtype="float64")(K.Rescaling(1 / 255)(x))
    return K.Dense(CLASSES, dtype="float64")(K.GlobalAveragePooling2D(dtype="float64")(x))


@kind()
def quantised_int8(path):
    model = sequential()
    model.quantize("int8")
    model.save(path)


@kind()
def low_rank_adaptation(path):
    model = sequential()
    model.layers[-1].enable_lora(2)
    model.save(path)


@saved()
def attention_on_the_grid(x):
    x = K.MaxPooling2D(4)(trunk(x))
    t = K.Reshape((16, 6))(x)
    t = K.LayerNormalization()(K.Add()([t, K.MultiHeadAttention(2, 3)(t, t)]))
    return K.Dense(CLASSES)(K.GlobalAveragePooling1D()(t))


@saved()
def squeeze_and_excite(x):
    x = trunk(x)
    s = K.Conv2D(6, 1, activation="sigmoid")(K.GlobalAveragePooling2D(keepdims=True)(x))
    return head(K.Multiply()([x, s]))


@saved()
def residual_with_group_norm(x):
    x = trunk(x)
    return head(K.ReLU()(K.Add()([x, K.GroupNormalization(2)(K.Conv2D(6, 3, padding="same")(x))])))


@saved()
def convnext_block(x):
    x = trunk(x)
    y = K.LayerNormalization()(K.DepthwiseConv2D(3, padding="same")(x))
    return head(x + K.Dense(6)(K.Dense(12, activation="gelu")(y)))


@saved()
def separable_and_transposed(x):
    x = K.SeparableConv2D(6, 3, strides=2, padding="same")(trunk(x))
    return head(K.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu")(x))


@saved()
def shared_convolution(x):
    conv = K.Conv2D(6, 3, padding="same", activation="relu")
    return head(conv(conv(trunk(x))))


@saved()
def plain_operations(x):
    x = ops.relu(trunk(x)) * 2.0 - 0.5
    return ops.matmul(ops.mean(x, (1, 2)), np.ones((6, CLASSES), np.float32))


@saved()
def spectral_normalisation(x):
    return head(K.SpectralNormalization(K.Conv2D(4, 3))(trunk(x)))


@kind()
def regularised_and_constrained(path):
    options = {"kernel_regularizer": "l2", "kernel_constraint": "max_norm"}
    steps = [K.Conv2D(4, 3, **options), K.PReLU(), K.ActivityRegularization(0.1), K.Flatten()]
    model = keras.Sequential([keras.Input((SIZE, SIZE, 1)), *steps, K.Dense(CLASSES)])
    model.save(path)


@kind()
def normalisation_adapted(path):
    layer = K.Normalization(axis=None)
    layer.adapt(np.arange(256.0))
    inputs = keras.Input((SIZE, SIZE, 1))
    keras.Model(inputs, head(trunk(layer(inputs)))).save(path)


@saved(shape=(1, SIZE, SIZE))
def channels_first(x):
    x = K.Conv2D(6, 3, activation="relu", data_format="channels_first")(K.Rescaling(1 / 255)(x))
    return K.Dense(CLASSES)(K.GlobalAveragePooling2D(data_format="channels_first")(x))


@saved(heat="result with a grid")
def no_convolution(x):
    return K.Dense(CLASSES)(K.Flatten()(x))


@saved(heat="must be named")
def two_branches(x):
    return K.Dense(CLASSES)(K.Concatenate()([K.GlobalMaxPooling2D()(trunk(x)) for _ in range(2)]))


@saved()
def recurrent_over_rows(x):
    x = trunk(x)
    return K.Dense(CLASSES)(K.GRU(5)(K.Reshape((SIZE, SIZE * 6))(x)))


@kind()
def of_keras_3_0(path):
    sequential(K.Softmax()).save(path)
    change(path, "metadata.json", lambda told: told | {"keras_version": "3.0.5"})


@kind()
def with_a_card_of_what_it_expects(path):
    inputs = keras.Input((32, 32, 3))
    x = K.Conv2D(4, 3, activation="relu")(inputs)
    keras.Model(inputs, head(x, activation="softmax")).save(path)
    told = {"size": 32, "channels": 3, "range": [0, 1], "class_names": list(NAMES[::-1])}
    path.with_suffix(".json").write_text(json.dumps(told))


@saved()
def softmax_as_an_operation(x):
    return ops.softmax(head(trunk(x)))


@saved()
def log_softmax_as_an_operation(x):
    return ops.log_softmax(head(trunk(x)), axis=-1)


@saved()
def softmax_behind_a_reshape(x):
    x = K.Reshape((CLASSES,))(K.Reshape((2, 2))(head(trunk(x))))
    return K.Activation("softmax")(x)


@saved()
def logits_by_a_temperature(x):
    return K.Softmax()(head(trunk(x)) / 2.5)


@saved(warned="probabilities whose logits are out of reach")
def clipped_probabilities(x):
    return ops.clip(head(trunk(x), activation="softmax"), 1e-7, 1 - 1e-7)


@saved()
def layer_scale_of_convnext(x):
    from keras.src.applications.convnext import LayerScale

    x = trunk(x)
    y = K.LayerNormalization(epsilon=1e-6)(K.DepthwiseConv2D(7, padding="same")(x))
    y = LayerScale(1e-6, 6)(K.Dense(6)(K.Dense(24, activation="gelu")(y)))
    return head(K.Add()([x, y]))


@saved()
def swish_with_squeeze_and_excite(x):
    x = K.Conv2D(6, 3, activation="swish")(K.Rescaling(1 / 255)(x))
    s = K.Reshape((1, 1, 6))(K.GlobalAveragePooling2D()(x))
    s = K.Conv2D(6, 1, activation="sigmoid")(K.Conv2D(2, 1, activation="swish")(s))
    return head(K.multiply([x, s]))


@saved(heat="with a grid")
def transformer_of_flat_patches(x):
    x = K.Permute((1, 3, 2, 4))(K.Reshape((4, 4, 4, 4))(K.Rescaling(1 / 255)(x)))
    t = K.Dense(8)(K.Reshape((16, 16))(x))
    t = K.Add()([t, K.MultiHeadAttention(2, 4)(t, t)])
    return K.Dense(CLASSES)(K.GlobalAveragePooling1D()(K.LayerNormalization()(t)))


@saved(heat="with a grid")
def convolution_for_each_of_one_time_step(x):
    x = K.TimeDistributed(K.Conv2D(4, 3, activation="relu"))(K.Reshape((1, SIZE, SIZE, 1))(x))
    x = K.TimeDistributed(K.GlobalAveragePooling2D())(x)
    return K.Dense(CLASSES)(K.Flatten()(x))


@saved(heat="must be named")
def one_network_for_both_mirror_sides(x):
    inner = keras.Sequential([K.Conv2D(4, 3, activation="relu"), K.GlobalAveragePooling2D()])
    return K.Dense(CLASSES)(K.Add()([inner(x), inner(ops.flip(x, axis=2))]))


@kind()
def policy_of_bfloat16(path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    try:
        sequential(K.Softmax()).save(path)
    finally:
        keras.config.set_dtype_policy(before)


@saved()
def dropout_that_is_always_on(x):
    """In `predict` Keras takes training=False all the same, so the answer is one."""
    return head(K.Dropout(0.9, seed=1)(trunk(x), training=True))


@saved(warned="by the others of a batch")
def summed_over_its_batch(x):
    y = head(trunk(x))
    return y - keras.ops.sum(y, axis=0, keepdims=True)


@kind(warned="makes gray values small twice")
def rescaled_by_card_and_by_itself(path):
    sequential().save(path)
    path.with_suffix(".json").write_text(json.dumps({"range": [0, 1]}))


@kind()
def scores_of_named_classes_in_a_dict(path):
    inputs = keras.Input((SIZE, SIZE, 1))
    keras.Model(inputs, {"scores": head(trunk(inputs), activation="softmax")}).save(path)
    path.with_suffix(".json").write_text(json.dumps({"class_names": list(NAMES[::-1])}))


@kind()
def weights_in_float16(path):
    model = sequential()
    model.set_weights([w.astype("float16").astype("float32") for w in model.get_weights()])
    model.save(path)


# --- which are refused by name ---


@kind("class_names must be those of the data")
def three_of_the_four_classes(path):
    inputs = keras.Input((SIZE, SIZE, 1))
    keras.Model(inputs, K.Dense(3)(K.Flatten()(inputs))).save(path)
    path.with_suffix(".json").write_text(json.dumps({"class_names": list(NAMES[:3])}))


@kind("needs one image input")
def two_slices_at_a_time(path):
    inputs = [keras.Input((SIZE, SIZE, 1), name=f"slice{i}") for i in range(2)]
    keras.Model(inputs, head(K.Concatenate()(inputs))).save(path)


@saved("must be class scores (n, k)")
def scores_for_each_of_its_rows(x):
    return K.TimeDistributed(K.Dense(CLASSES))(K.Reshape((SIZE, SIZE))(x))


@saved("takes (None, 32, 32, 3), the slices are (None, 16, 16, 1)", shape=(32, 32, 3))
def of_another_size(x):
    return head(x)


@saved("gives (None, 2), the data have classes")
def of_two_classes(x):
    return K.Dense(2, activation="softmax")(K.Flatten()(x))


@saved("gives (None, 1), the data have classes")
def one_unit(x):
    return K.Dense(1, activation="sigmoid")(K.Flatten()(x))


@saved("must be class scores (n, k)")
def a_map_instead_of_scores(x):
    return K.Conv2D(CLASSES, 1)(x)


@saved("`output` must be one of the names")
def two_outputs(x):
    return [head(trunk(x)), head(trunk(x))]


@kind("needs one image input")
def two_inputs(path):
    inputs = [keras.Input((SIZE, SIZE, 1)), keras.Input((1,), name="age")]
    x = K.Concatenate()([K.Flatten()(inputs[0]), inputs[1]])
    keras.Model(inputs, K.Dense(CLASSES)(x)).save(path)


@saved("needs one image input", shape=(5, SIZE, SIZE, 1))
def volumes(x):
    return K.Dense(CLASSES)(K.Flatten()(x))


@kind("holds no weights")
def saved_before_it_was_built(path):
    keras.Sequential([K.Flatten(), K.Dense(CLASSES)]).save(path)


@saved("holds keras.layers.Lambda, which may run code")
def with_a_lambda(x):
    return head(K.Lambda(lambda x: 2 * x, output_shape=(SIZE, SIZE, 1))(x))


@kind("which may run code")
def with_a_layer_of_their_own(path):
    @keras.saving.register_keras_serializable("theirs")
    class Theirs(K.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((SIZE, SIZE, 1))
    keras.Model(inputs, head(Theirs()(inputs))).save(path)


@kind("may run code")
def with_a_vocabulary(path):
    inputs = keras.Input((1,), dtype="string")
    keras.Model(inputs, K.StringLookup(vocabulary=["a"])(inputs)).save(path)


@kind("it is a file of Keras 2.15.0: in Keras 2 save its weights")
def of_keras_2(path):
    sequential().save(path)
    change(path, "metadata.json", lambda told: told | {"keras_version": "2.15.0"})


@kind("it is a whole model in Keras' older HDF5 format", ".h5")
def older_hdf5(path):
    sequential().save(path)


@kind("it is a whole model in Keras' older HDF5 format")
def hdf5_called_keras(path):
    sequential().save(path.with_suffix(".h5"))
    path.with_suffix(".h5").rename(path)


@kind("it is weights only, in HDF5", ".weights.h5")
def weights_only(path):
    sequential().save_weights(path)


@kind("it is a TensorFlow SavedModel", "")
def saved_model_folder(path):
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"\x08\x01")


@kind("it is a TensorFlow SavedModel")
def saved_model_folder_called_keras(path):
    saved_model_folder(path)


@kind("it is an unpacked Keras archive", "")
def unpacked_archive(path):
    sequential().save(path.with_name("packed.keras"))
    with zipfile.ZipFile(path.with_name("packed.keras")) as archive:
        archive.extractall(path)
    path.with_name("packed.keras").unlink()


@kind("it is a folder: models are looked for in", "")
def folder_of_models(path):
    path.mkdir()


@kind("it is a TensorFlow Lite model", ".tflite")
def tensorflow_lite(path):
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(40))


@kind("it is an ONNX model", ".onnx")
def onnx(path):
    path.write_bytes(b"\x08\x08\x12\x07pytorch" + bytes(40))


@kind("it is an ONNX model")
def onnx_called_keras(path):
    onnx(path)


@kind("it is a PyTorch model", ".pt")
def pytorch(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))


@kind("it is a pickle, which may run code", ".pth")
def older_pytorch(path):
    path.write_bytes(pickle.dumps({}, 2))


@kind("it is a pickle, which may run code", ".joblib")
def scikit_learn(path):
    path.write_bytes(pickle.dumps({}))


@kind("it is a safetensors file", ".safetensors")
def safetensors(path):
    text = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))


@kind("it is NumPy arrays", ".npz")
def numpy_arrays(path):
    np.savez(path, w=np.zeros(3))


@kind("it is a network without its weights", ".json")
def architecture_alone(path):
    path.write_text(sequential().to_json())


@kind("it is empty: copy it again")
def empty(path):
    path.write_bytes(b"")


@kind("not a whole Keras archive")
def cut_short(path):
    sequential().save(path)
    path.write_bytes(path.read_bytes()[:900])


@kind("not a whole Keras archive")
def a_web_page(path):
    path.write_text("<html>404: not found</html>")


@kind("expected a .keras file", ".bin")
def unknown(path):
    path.write_bytes(bytes(range(200)))


def change(path, member, function):
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content[member] = json.dumps(function(json.loads(content[member])))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    path.write_bytes(buffer.getvalue())


def make_folder(folder, names):
    for name in names:
        keras.utils.set_random_seed(1)
        make, suffix, *_ = KINDS[name]
        make(folder / f"{name}{suffix}")
    return folder


@pytest.fixture(scope="module")
def scans():
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(24), 2)
    images = rng.integers(0, 256, (48, SIZE, SIZE), dtype=np.uint8)
    rejected = pd.DataFrame(columns=["file", "row", "cause"])
    return Scans(images, subjects % CLASSES, NAMES, rejected, synthetic=True), subjects


def row_of(table, name):
    suffix = KINDS[name][1]
    return table.loc[name if suffix == ".keras" else f"{name}{suffix}"]


def judged(folder, names, scans):
    """Return of each file whether it is ranked, its note, and its layer or why it has none."""
    table = compare(*scans, folder).table.set_index("model")
    assert len(table) == len(names), "each entry has a row"
    found = {}
    for name in names:
        row, layer = row_of(table, name), "–"
        if row["protocol"] == "unknown":
            try:
                layer = GradCAM(load_model_for(folder / f"{name}.keras")).layer.name
            except ValueError as error:
                layer = str(error)
        found[name] = (row["protocol"] == "unknown", row["note"], layer)
    return found


def load_model_for(path):
    from mri.models.files import ModelFile

    return ModelFile(path).load((SIZE, SIZE), NAMES)


def check(found):
    wrong = []
    for name, (ranked, note, layer) in found.items():
        *_, expected, heat = KINDS[name]
        if ranked != (not expected) or expected not in note or WARNED[name] not in note:
            wrong.append(f"{name}: {note}")
        elif ranked and (heat not in layer if heat else " " in layer):
            wrong.append(f"{name}: {layer}")
    assert wrong == []


FEW = ["dense_softmax", "around_a_compiled_model", "fixed_batch_size", "two_branches", "older_hdf5",
       "of_another_size", "saved_model_folder", "architecture_alone", "unknown"]  # fmt: skip


def test_some_kinds_are_ranked_or_refused_by_name(tmp_path, scans):
    check(judged(make_folder(tmp_path, FEW), FEW, scans))


@pytest.mark.slow
def test_every_kind_is_ranked_or_refused_by_name(tmp_path, scans):
    found = judged(make_folder(tmp_path, KINDS), list(KINDS), scans)
    check(found)
    assert len(found) >= 40
    lines = ["| model file | | note | heatmap at |", "|---|---|---|---|"]
    for name, (ranked, note, layer) in found.items():
        note = note.replace(str(tmp_path) + "/", "").replace("|", "/")
        short = layer if " " not in layer else "none: " + layer.split(". ")[0][:90]
        title = name.replace("_", " ")
        lines.append(f"| {title} | {'ranked' if ranked else 'refused'} | {note} | {short} |")
    Path("runs").mkdir(exist_ok=True)
    Path("runs/model_kinds.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_text_and_pictures_are_no_models(tmp_path):
    for name in ("README.md", "picture.png", "table.parquet", "card.json"):
        (tmp_path / name).write_text("{}")
        assert not may_be_model(tmp_path / name)
    assert recognised("README.md") == ""
    assert recognised(tmp_path / "gone") == ""


def test_a_model_is_found_by_name():
    assert load_model("tissue-subject").count_params() == 70
