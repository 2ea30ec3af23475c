"""A corpus of hostile and broken model files: refused without running them or filling the memory.

Each attack is a function that turns a sound file into a hostile one; `canary` is a path that must
never come into being.
"""

import base64
import hashlib
import io
import json
import pickle
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from mri._keras import keras
from mri.evaluation.comparison import compare
from mri.models.files import save_model
from mri.subjects.splits import subject_split
from mri.training.loop import train
from mri.training.recipe import Recipe

# Keras' saving and loading.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

layers = keras.layers
WEIGHTS, CONFIG = "model.weights.h5", "config.json"
SIZE, NAMES = 16, ("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented")
BOUND_MB = 100
ATTACKS = {}


UNMATCHED = r"expected \d variables, but received 0|variable\.shape=.* value\.shape="
OTHER = r"expected a \.keras file|not a whole Keras archive|expected \['config.json', .*found"


def attack(message, *suffix):
    """Register an attack; its file gets the suffixes, and is to be refused with this message."""

    def put(function):
        ATTACKS[function.__name__] = (function, suffix or (".keras",), message)
        return function

    return put


def sound():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((SIZE, SIZE, 1)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(4)]
    )


def members(path):
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def pack(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content:
            file.writestr(name, data)


def repack(path, **changes):
    """Replace the members config and weights."""
    names = {"config": CONFIG, "weights": WEIGHTS}
    changed = {names[key]: value for key, value in changes.items()}
    pack(path, {**members(path), **changed}.items())


def put_layer(path, name, module="keras.layers", /, **config):
    """Declare one more layer before the last, and let Keras infer all shapes again."""
    found = json.loads(members(path)[CONFIG])
    config = {"name": f"layer_{len(found['config']['layers'])}", **config}
    entry = {"module": module, "class_name": name, "config": config, "registered_name": None}
    found["config"]["layers"].insert(-1, entry)
    for part in (found, *found["config"]["layers"]):
        part.pop("build_config", None)
    found["config"].pop("build_input_shape", None)
    repack(path, config=json.dumps(found))


def put_activation(path, **entry):
    found = json.loads(members(path)[CONFIG])
    found["config"]["layers"][-1]["config"]["activation"] = {"registered_name": None, **entry}
    repack(path, config=json.dumps(found))


def rewrite(path, change):
    """Call ``change(file, name)`` with the HDF5 file and the name of its largest data set."""
    buffer, names = io.BytesIO(members(path)[WEIGHTS]), {}
    with h5py.File(buffer, "r+") as file:
        file.visititems(lambda name, x: names.update({getattr(x, "size", 0): name}))
        change(file, names[max(names)])
    repack(path, weights=buffer.getvalue())


class Payload:
    """Runs on unpickling."""

    def __init__(self, canary):
        self.source = f"open({str(canary)!r}, 'w').close()"

    def __reduce__(self):
        return exec, (self.source,)


# --- code ---


@attack("may run code")
def lambda_layer(path, canary):
    source = f"lambda x: (open({str(canary)!r}, 'w').close(), x)[1]"
    keras.Sequential(
        [keras.Input((SIZE, SIZE, 1)), *sound().layers, layers.Lambda(eval(source))]
    ).save(path)
    canary.unlink()  # Building it here has run it.


@attack("may run code")
def bare_lambda(path, canary):
    put_activation(path, module="builtins", class_name="__lambda__", config={"value": "4wAAAA=="})


@attack("may run code")
def saved_model_layer(path, canary):
    put_layer(path, "TFSMLayer", filepath=str(canary.parent), call_endpoint="serve")


@attack("may run code")
def torch_layer(path, canary):
    module = base64.b64encode(pickle.dumps(Payload(canary))).decode()
    put_layer(path, "TorchModuleWrapper", module=module)


@attack("may run code")
def function_of_os(path, canary):
    command = {"class_name": "function", "config": "system"}
    put_activation(path, module="os", **command)


@attack("may run code")
def class_of_builtins(path, canary):
    put_layer(path, "exec", "builtins", source=f"open({str(canary)!r}, 'w')")


@attack("may run code")
def module_of_ones_own(path, canary):
    sys.path.insert(0, str(canary.parent))
    (canary.parent / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()")
    put_layer(path, "Layer", "evil")


@attack("may run code")
def safety_switched_off(path, canary):
    put_activation(
        path, module="keras.config", class_name="function", config="enable_unsafe_deserialization"
    )


@attack("may run code")
def downloader(path, canary):
    put_activation(path, module="keras.utils", class_name="function", config="get_file")


@attack("may run code")
def vocabulary_from_a_file(path, canary):
    put_layer(path, "StringLookup", vocabulary="/etc/passwd")


@attack("may run code")
def vocabulary_by_the_back_door(path, canary):
    module = "keras.src.layers.preprocessing.index_lookup"
    put_layer(path, "IndexLookup", module, vocabulary="/etc/passwd")


@attack(OTHER, ".pth", ".pt", ".pkl", ".h5", ".keras")
def pickled_code(path, canary):
    path.write_bytes(pickle.dumps(Payload(canary)))


@attack(OTHER, ".pth", ".keras")
def torch_archive(path, canary):
    pack(path, {"m/data.pkl": pickle.dumps(Payload(canary)), "m/version": b"3\n"}.items())


@attack(OTHER, ".h5", ".hdf5", ".keras")
def legacy_lambda(path, canary):
    entry = {"class_name": "Lambda", "config": {"function": ["4wAAAA==", None, None]}}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": [entry]})


# --- archive ---


@attack(r"found \[")
def path_traversal(path, canary):
    pack(path, [*members(path).items(), (f"../{canary.name}", b"x")])


@attack(r"found \[")
def absolute_path(path, canary):
    pack(path, [*members(path).items(), (str(canary), b"x")])


@attack("file signature not found")
def symbolic_link(path, canary):
    link = zipfile.ZipInfo(WEIGHTS)
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    pack(path, [*[m for m in members(path).items() if m[0] != WEIGHTS], (link, b"/etc/passwd")])


@attack("unpacks from")
def bomb_of_zeros(path, canary):
    repack(path, weights=bytes(200 * 2**20))


@attack("unpacks from")
def bomb_in_the_config(path, canary):
    repack(path, config=b'{"a":"' + b" " * 200 * 2**20 + b'"}')


@attack("maximum recursion depth")
def deep_config(path, canary):
    repack(path, config=b"[" * 10**6 + b"]" * 10**6)


@attack("not a whole Keras archive")
def truncated(path, canary):
    path.write_bytes(path.read_bytes()[:-100])


@attack("is not [0-9a-f]{64} of its card")
def wrong_hash(path, canary):
    card = {"sha256": hashlib.sha256(b"another file").hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(card))


# --- weights ---


@attack("external Dataset")
def weights_in_another_file(path, canary):
    def change(file, name):
        shape = file[name].shape
        del file[name]
        file.create_dataset(name, shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])

    rewrite(path, change)


@attack("ExternalLink")
def link_to_another_file(path, canary):
    other = path.with_name("other.bin")
    other.write_bytes(members(path)[WEIGHTS])

    def change(file, name):
        del file[name]
        file[name] = h5py.ExternalLink(str(other), name)

    rewrite(path, change)


@attack("virtual Dataset")
def virtual_weights(path, canary):
    def change(file, name):
        layout = h5py.VirtualLayout(file[name].shape, "f4")
        layout[...] = h5py.VirtualSource("/etc/passwd", "x", file[name].shape)
        del file[name]
        file.create_virtual_dataset(name, layout)

    rewrite(path, change)


@attack(r"its weights claim 4\d{12} bytes")
def four_terabytes_of_weights(path, canary):
    def change(file, name):
        del file[name]
        file.create_dataset(name, (2**20, 2**20), "f4", chunks=(1, 1))

    rewrite(path, change)


@attack(r"its weights claim 42\d{8} bytes")
def weights_below_the_limit_of_keras(path, canary):
    def change(file, name):
        del file[name]
        file.create_dataset(name, (2**10 - 1, 2**20), "f4", chunks=(1, 2**20), compression="gzip")

    rewrite(path, change)


@attack("more than one name")
def the_same_weights_a_thousand_times(path, canary):
    """One matrix of 4 MB, linked from each of 1000 layers that claim it."""
    x = x0 = keras.Input((1024,))
    for i in range(2):
        x = layers.Dense(1024, use_bias=False, name=f"d{i}")(x)
    keras.Model(x0, layers.Activation("linear")(x)).save(path)
    config = json.loads(members(path)[CONFIG])
    one, two = config["config"]["layers"][1:3]
    repeats = [json.loads(json.dumps(two).replace("d1", f"d{i}")) for i in range(1, 1000)]
    for i, entry in enumerate(repeats):
        entry["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = f"d{i}"
    last = config["config"]["layers"][-1]
    last["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = "d999"
    config["config"]["layers"] = [config["config"]["layers"][0], one, *repeats, last]
    buffer = io.BytesIO(members(path)[WEIGHTS])
    with h5py.File(buffer, "r+") as file:
        for i in range(2, 1000):
            file[f"layers/dense_{i}/vars/0"] = file["layers/dense_1/vars/0"]
    repack(path, config=json.dumps(config), weights=buffer.getvalue())


@attack(UNMATCHED)
def weights_of_another_network(path, canary):
    other = path.with_name("other.keras")
    keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten()]).save(other)
    repack(path, weights=members(other)[WEIGHTS])
    other.unlink()


@attack("could not convert string")
def weights_that_are_text(path, canary):
    def change(file, name):
        shape = file[name].shape
        del file[name]
        file.create_dataset(name, data=np.full(shape, "x" * 10, object))

    rewrite(path, change)


# --- size ---


@attack(UNMATCHED)
def dense_of_twenty_gigabytes(path, canary):
    put_layer(path, "Dense", units=5 * 10**9 // 392)
    put_layer(path, "Dense", units=392)


@attack(UNMATCHED)
def dense_of_one_gigabyte(path, canary):
    put_layer(path, "Dense", units=2**28 // 392)


@attack(UNMATCHED)
def large_layer_with_small_weights(path, canary):
    config = json.loads(members(path)[CONFIG])
    config["config"]["layers"][-1]["config"]["units"] = 12_000_000
    config["config"]["layers"][-1].pop("build_config")
    repack(path, config=json.dumps(config))


@attack(UNMATCHED)
def terabytes_before_the_weights(path, canary):
    put_layer(path, "Dense", units=10**12)


@attack(UNMATCHED)
def embedding(path, canary):
    put_layer(path, "Embedding", input_dim=2**28, output_dim=4)


@attack(UNMATCHED)
def recurrent_inside_wrappers(path, canary):
    put_layer(path, "Reshape", target_shape=[8, 49])
    inner = {"module": "keras.layers", "class_name": "LSTM", "config": {"units": 20_000}}
    put_layer(path, "Bidirectional", layer=inner)


@attack(UNMATCHED)
def a_network_inside_the_network(path, canary):
    inner = keras.Sequential([keras.Input((392,)), layers.Dense(9)])
    config = keras.saving.serialize_keras_object(inner)["config"]
    config["layers"][-1]["config"]["units"] = 10**7
    config["layers"][-1].pop("build_config")
    config.pop("build_input_shape")
    put_layer(path, "Sequential", "keras.models", **config)


@attack("may run code")
def spectrogram_of_a_huge_window(path, canary):
    put_layer(path, "STFTSpectrogram", fft_length=2**15, frame_length=2**15, sequence_stride=1)


@attack(r"gives 1\d{8} times")
def blown_up_by_repeats(path, canary):
    put_layer(path, "RepeatVector", n=10**8)
    put_layer(path, "GlobalAveragePooling1D")


@attack(r"gives 1\d{8} times")
def blown_up_by_pixels(path, canary):
    put_layer(path, "Reshape", target_shape=[14, 14, 2])
    put_layer(path, "UpSampling2D", size=[10_000, 10_000])
    put_layer(path, "MaxPooling2D", pool_size=[10_000, 10_000])
    put_layer(path, "Flatten")


@attack(r"gives 1\d{8} times")
def blown_up_inside_a_network(path, canary):
    inner = keras.Sequential(
        [keras.Input((392,)), layers.RepeatVector(10**8), layers.GlobalAveragePooling1D()]
    )
    put_layer(
        path, "Sequential", "keras.models", **keras.saving.serialize_keras_object(inner)["config"]
    )


def put_inside(path, name, *inner):
    """Put a layer around a network, before the last."""
    parts = [
        {"module": "keras.layers", "class_name": of, "config": config, "registered_name": None}
        for of, config in inner
    ]
    network = {"module": "keras.models", "class_name": "Sequential", "registered_name": None}
    put_layer(path, "Reshape", target_shape=[14, 28])
    put_layer(path, name, layer={**network, "config": {"name": "inner", "layers": parts}})
    put_layer(path, "Flatten")


@attack(r"a step of its network, .*, gives 2\d{8} numbers")
def blown_up_inside_a_wrapper(path, canary):
    inner = ("RepeatVector", {"n": 10**7}), ("GlobalAveragePooling1D", {})
    put_inside(path, "TimeDistributed", *inner)


@attack(r"a step of its network, .*, gives 2\d{8} numbers")
def attention_over_every_pixel(path, canary):
    x = keras.Input((128, 128, 1))
    y = layers.Reshape((16384, 1))(x)
    y = layers.Attention()([y, y])
    keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling1D()(y))).save(path)


@attack("repeats its steps 392 times")
def an_unrolled_recurrence(path, canary):
    x = keras.Input((SIZE, SIZE, 1))
    y = layers.Reshape((392, 1))(layers.Flatten()(layers.Conv2D(2, 3)(x)))
    keras.Model(x, layers.Dense(4)(layers.GRU(1, unroll=False)(y))).save(path)
    config = members(path)[CONFIG].replace(b'"unroll": false', b'"unroll": true')
    repack(path, config=config)


# --- what is tested ---


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Folder of hostile files, their names and messages, and the canary."""
    folder = tmp_path_factory.mktemp("hostile") / "models"
    folder.mkdir()
    canary, search = folder.parent / "canary", list(sys.path)
    sound().save(folder / "sound.keras")
    start = (folder / "sound.keras").read_bytes()
    (folder / "control.keras").write_bytes(start)
    put_layer(folder / "control.keras", "Dense", units=300 * 2**20 // 4 // 392)
    messages = {}
    for name, (function, suffixes, message) in ATTACKS.items():
        for suffix in suffixes:
            path = folder / f"{name}{suffix}"
            if suffix == ".keras":
                path.write_bytes(start)
            function(path, canary)
            messages[path.name] = message
    sys.path[:] = search
    return folder, messages, canary


SCRIPT = """
import json, sys, time
from pathlib import Path
from mri._keras import keras
from mri.models.files import ModelFileError, load_model

def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(key))

sys.path.insert(0, str(Path(sys.argv[1]).parent))
load_model(Path(sys.argv[1]) / "sound.keras")  # So that nothing of Keras is loaded later.
for name in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
    before, start = resident("VmRSS"), time.perf_counter()
    try:
        load_model(Path(sys.argv[1]) / name)
        found = ["loaded", ""]
    except ModelFileError as error:
        found = ["refused", str(error)]
    except BaseException as error:
        found = ["failed", repr(error)]
    print(json.dumps([name, *found, resident("VmHWM") - before, time.perf_counter() - start]))
before = resident("VmRSS")
try:
    keras.saving.load_model(Path(sys.argv[1]) / "control.keras")
except ValueError:
    print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
def test_every_hostile_file_is_refused_unrun_in_little_memory(corpus, keep_figures):
    folder, messages, canary = corpus
    names = list(messages)
    before = {path.name for path in folder.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), *names],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    *found, unguarded = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in found] == names, done.stderr[-3000:]
    assert [f for f in found if f[1] != "refused"] == []
    for name, _, message, *_ in found:
        assert str(folder / Path(name).stem) in message
        assert re.search(messages[name], message), f"{name}: {message}"
    assert [(f[0], f[3]) for f in found if f[3] > BOUND_MB] == []
    assert unguarded > 2 * BOUND_MB, "the control: Keras alone takes what a small file declares"
    assert not canary.exists()
    assert {path.name for path in folder.iterdir()} == before
    assert "canary" not in {path.name for path in folder.parent.iterdir()}
    assert len(names) >= 40
    keep_figures(
        "hostile models",
        files=len(names),
        refused=len(found),
        code_run=0,
        largest_growth_mb=round(max(f[3] for f in found)),
        longest_seconds=round(max(f[4] for f in found), 1),
    )


@pytest.mark.slow
def test_a_comparison_lists_every_hostile_file_and_ranks_the_others(
    corpus, tmp_path, striped_scans
):
    folder, names, canary = corpus
    subjects = np.repeat(np.arange(40), 2)
    scans = striped_scans(subjects, SIZE, NAMES, np.random.default_rng(0))
    options = {"folder": tmp_path, "recipe": Recipe(epochs=1, batch_size=16), "verbose": 0}
    trained = train("compact", scans, subject_split(scans.labels, subjects, folds=4), **options)
    save_model(trained.model, tmp_path / "second.keras", trained.card)
    for name in names:
        for path in (folder / name, (folder / name).with_suffix(".json")):
            if path.exists():
                (tmp_path / path.name).write_bytes(path.read_bytes())
    found = compare(scans, subjects, tmp_path)
    ranked = found.table[found.table["protocol"] == "subject"]
    assert sorted(ranked["model"]) == ["compact-subject", "second"]
    assert ranked["balanced_accuracy"].notna().all()
    refused = found.table[found.table["protocol"] == "–"]
    assert sorted(refused["model"]) == sorted(name.removesuffix(".keras") for name in names)
    assert refused["balanced_accuracy"].isna().all()
    for name, note in zip(refused["model"], refused["note"], strict=True):
        assert str(tmp_path / name) in note
    assert not canary.exists()


CARDS = {
    "temperature": ["hot", 0, -1, None, float("nan"), [], True, float("inf"), 10**30, "1"],
    "test_rows": ["all", [10**9], [-1], [0.5], [None], {}, [[0]], None],
    "split": [
        *[None, {}, [], {"protocol": 7}, {"protocol": None}, {"protocol": ["subject"]}],
        {"protocol": "subject", "slices": [1, 2]},
        {"protocol": "subject", "fold": "first"},
    ],
    "class_names": [7, None, [], [1, 2, 3, 4], {"a": 1}, ["a"] * 4, ["a", ["b"]], "abcd"],
    "data": [7, None, ["x"]],
    "seconds": ["long", None, {}, [1], float("nan"), -1],
    "parameters": [10**30, -1, 0.5, "many", True, None],
    "builder": [["a"], None, 7, "x" * 10**6],
    "validation": [7, {"balanced_accuracy": "high"}, {"balanced_accuracy": float("nan")}, []],
    "recipe": [[], {"epochs": []}, {"a": {"b": 1}}, "sgd"],
    "history": [[], {"loss": 1}, {"loss": ["a"]}],
    "versions": [[], {"python": ["3"]}],
    "card_version": [0, 2, 99, -1, 1.0, "1", True, None, []],
    "expects": [7, [], {"size": 0}, {"range": [1, 0]}, {"sise": 1}, {"scale": 0}],
}


@pytest.mark.parametrize("key", CARDS)
def test_a_card_that_lies_costs_one_row(key, tmp_path, striped_scans):
    subjects = np.repeat(np.arange(40), 2)
    scans = striped_scans(subjects, SIZE, NAMES, np.random.default_rng(0))
    card = {
        "class_names": list(NAMES),
        "data": scans.fingerprint(),
        "split": {"protocol": "subject"},
        "temperature": 1.0,
        "test_rows": list(range(40)),
        "seconds": 1.0,
    }
    save_model(sound(), tmp_path / "right.keras", card)
    for i, value in enumerate(CARDS[key]):
        whole = save_model(sound(), tmp_path / f"wrong{i}.keras", card)
        (tmp_path / f"wrong{i}.json").write_text(json.dumps({**whole, key: value}))
    found = compare(scans, subjects, tmp_path)
    assert len(found.table) == 1 + len(CARDS[key])
    assert found.table["model"][0] == "right"
    assert found.table["note"][0].startswith("claimed: its division")
    wrong = found.table[found.table["model"] != "right"]
    assert (wrong["protocol"] == "–").all(), wrong[["model", "protocol", "note"]]
    assert wrong["note"].str.contains(str(tmp_path), regex=False).all()
    assert repr(found)
