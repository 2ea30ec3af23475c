"""Model files: written whole or not at all, and refused before anything in them can run."""

import hashlib
import io
import json
import stat
import struct
import zipfile
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest

from mri._keras import keras
from mri.models.cards import describe
from mri.models.files import ModelFileError, load_model, read_card, save_model

# Keras' saving and loading.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

layers = keras.layers
MEMBERS = ["metadata.json", "config.json", "model.weights.h5"]


def tiny():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(3)]
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Bytes of a sound model file."""
    path = tmp_path_factory.mktemp("sound") / "m.keras"
    with pytest.MonkeyPatch.context():
        tiny().save(path)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, archive):
    """A sound model file without a card."""
    path = tmp_path / "m.keras"
    path.write_bytes(archive)
    return path


@pytest.fixture
def keras_must_not_see_it(monkeypatch):
    """Inspection refuses before Keras opens the file."""

    def load(*arguments, **options):
        pytest.fail("the file reached Keras")

    monkeypatch.setattr(keras.saving, "load_model", load)


def members(path):
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def pack(path, content):
    """Write an archive of (name or ZipInfo, bytes) pairs."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items() if isinstance(content, dict) else content:
            file.writestr(name, data)


def reconfigure(path, change):
    """Rewrite config.json of a model file."""
    content = members(path)
    config = json.loads(content["config.json"])
    change(config)
    pack(path, {**content, "config.json": json.dumps(config)})


def put_layer(path, entry):
    """Put one more object into the list of layers."""
    reconfigure(path, lambda config: config["config"]["layers"].insert(1, entry))


def files(folder):
    return sorted(entry.name for entry in folder.iterdir())


# --- saving ---


def test_a_saved_model_and_its_card_are_read_back(tmp_path, rng):
    model = tiny()
    path = tmp_path / "deep" / "er" / "a.b.keras"
    card = save_model(model, path, {"facts": [1, 0.1, None], "class_names": ["é", "e"]})
    assert files(path.parent) == ["a.b.json", "a.b.keras"]
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert next(iter(card)) == "sha256"
    told = {"card_version": 1, "facts": [1, 0.1, None], "class_names": ["é", "e"]}
    assert card == {"sha256": card["sha256"], **told}
    assert read_card(path) == card == json.loads(path.with_suffix(".json").read_text())
    again = load_model(path)
    for one, two in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    x = rng.normal(size=(4, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(model(x), again(x))
    assert not again.compiled


def test_a_card_of_another_file_gets_the_hash_of_this_one(tmp_path):
    card = save_model(tiny(), tmp_path / "one.keras", {"sha256": "of another file", "n": 1})
    assert card["sha256"] == hashlib.sha256((tmp_path / "one.keras").read_bytes()).hexdigest()
    load_model(tmp_path / "one.keras")


class Failing:
    def save(self, path):
        Path(path).write_bytes(b"half of a")
        raise OSError("disk full")


@pytest.mark.parametrize(
    ("make", "card", "error", "message"),
    [
        (Failing, {}, OSError, "disk full"),
        (tiny, {"not JSON": np.float32(1)}, TypeError, "float32 is not JSON serializable"),
    ],
)
def test_a_failure_leaves_the_old_pair_as_it_was(tmp_path, make, card, error, message):
    path = tmp_path / "m.keras"
    save_model(tiny(), path, {"n": 1})
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(error, match=message):
        save_model(make(), path, card)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before
    load_model(path)


def test_a_kill_between_model_and_card_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "m.keras"
    save_model(tiny(), path, {"n": 1})

    replace = Path.replace

    def killed(self, target):
        if target.suffix == ".json":
            raise KeyboardInterrupt
        return replace(self, target)

    other = tiny()
    other.set_weights([weight + 1 for weight in other.get_weights()])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        save_model(other, path, {"n": 2})
    with pytest.raises(ModelFileError, match=r"SHA-256 [0-9a-f]{64} is not [0-9a-f]{64} of its"):
        load_model(path)


# --- what is loaded ---


def test_a_file_without_a_card_is_loaded(path):
    assert read_card(path) is None
    assert load_model(path).count_params() == tiny().count_params()
    assert load_model(str(path)).output_shape == (None, 3)


def test_all_that_ordinary_networks_hold_is_let_through(tmp_path):
    inner = keras.Sequential([keras.Input((4, 4, 2)), layers.SeparableConv2D(2, 1)], name="inner")
    x = start = keras.Input((8, 8, 1))
    x = layers.RandomFlip()(x, training=False)
    x = layers.Conv2D(
        2, 3, 2, "same", kernel_regularizer="l2", kernel_constraint=keras.constraints.MaxNorm(1)
    )(x)
    x = layers.LayerNormalization()(layers.PReLU()(x))
    x = keras.ops.relu(inner(x) + x)
    x = layers.Flatten()(keras.ops.transpose(x, (0, 2, 1, 3)))
    x = layers.Dense(3, activation="gelu", dtype="mixed_bfloat16")(x)
    model = keras.Model(start, layers.Softmax(dtype="float32")(x))
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model.compile(
        keras.optimizers.AdamW(schedule),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", keras.metrics.AUC()],
    )
    save_model(model, tmp_path / "m.keras", {})
    again = load_model(tmp_path / "m.keras")
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8, 1)
    np.testing.assert_array_equal(model(x), again(x))


# --- what is refused ---


@pytest.mark.usefixtures("keras_must_not_see_it")
class TestRefusedUnopened:
    def refused(self, path, message):
        with pytest.raises(ModelFileError, match=message) as caught:
            load_model(path)
        assert str(path) in str(caught.value)

    def test_missing(self, tmp_path):
        self.refused(tmp_path / "none.keras", "no such model file")

    def test_folder(self, tmp_path):
        (tmp_path / "m.keras").mkdir()
        self.refused(tmp_path / "m.keras", "no regular file; it is a folder")

    @pytest.mark.parametrize("suffix", [".h5", ".pth", ".pt", ".pkl", ".zip", ""])
    def test_other_formats(self, path, suffix):
        self.refused(path.rename(path.with_suffix(suffix)), r"expected a \.keras file")

    @pytest.mark.parametrize("content", [b"", b"print('hello')\n" * 9, b"\x89HDF\r\n\x1a\n" * 50])
    def test_disguised(self, path, content):
        path.write_bytes(content)
        self.refused(path, "not a whole Keras archive")

    @pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
    def test_truncated(self, path, archive, share):
        path.write_bytes(archive[: int(share * len(archive))])
        self.refused(path, "not a whole Keras archive")

    def test_damaged(self, path, archive):
        at = archive.index(b"config.json") + 200
        path.write_bytes(archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :])
        self.refused(path, "not a whole Keras archive")

    def test_encrypted(self, path, archive):
        data = bytearray(archive)
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = data.find(signature)
            while at >= 0:
                flags = struct.unpack_from("<H", data, at + offset)[0]
                struct.pack_into("<H", data, at + offset, flags | 1)
                at = data.find(signature, at + 1)
        path.write_bytes(data)
        self.refused(path, "not a whole Keras archive.*encrypted")

    @pytest.mark.parametrize(
        "name", ["extra.py", "assets/vocabulary.txt", "../evil", "/etc/evil", "config.json/"]
    )
    def test_extra_member(self, path, name):
        pack(path, {**members(path), name: b"x"})
        self.refused(path, r"expected \['config.json', .*, found \[")
        assert files(path.parent) == ["m.keras"]
        assert not (path.parent.parent / "evil").exists()

    @pytest.mark.parametrize("name", MEMBERS)
    def test_missing_member(self, path, name):
        content = members(path)
        del content[name]
        pack(path, content)
        self.refused(path, r"expected \['config.json', .*, found \[")

    def test_symbolic_link(self, path):
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        pack(path, [*members(path).items(), (link, b"/etc/passwd")])
        self.refused(path, r"found \[.*'link'")

    @pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
    @pytest.mark.parametrize("name", MEMBERS)
    def test_repeated_member(self, path, name):
        pack(path, [(name, members(path)[name])] * 3)
        self.refused(path, r"expected \['config.json', .*, found \[")

    @pytest.mark.parametrize("name", MEMBERS)
    def test_bomb(self, path, name):
        pack(path, {**members(path), name: bytes(60 * 2**20)})
        assert path.stat().st_size < 2**20
        self.refused(path, r"unpacks from \d+ to 6\d{7} bytes")

    @pytest.mark.parametrize("config", [b"", b"{", b"\xff\xfe", b"[" * 100_000 + b"]" * 100_000])
    def test_config_that_is_not_json(self, path, config):
        pack(path, {**members(path), "config.json": config})
        self.refused(path, "not a whole Keras archive")

    @pytest.mark.parametrize(
        ("module", "name"),
        [
            ("keras.layers", "Lambda"),
            ("keras.layers", "TFSMLayer"),
            ("keras.layers", "TorchModuleWrapper"),
            ("keras.layers", "JaxLayer"),
            ("keras.layers", "FlaxLayer"),
            ("keras.layers", "StringLookup"),
            ("keras.layers", "TextVectorization"),
            ("keras.src.layers.core.lambda_layer", "Lambda"),
            ("keras", "layers.Lambda"),
            (None, "__lambda__"),
            ("os", "system"),
            ("builtins.os", "Lambda"),
            ("mri.models", "compact"),
            ("kerasx.layers", "Dense"),
            ("keras.utils", "get_file"),
            ("keras.src.utils.file_utils", "get_file"),
            ("keras", "utils.get_file"),
            ("keras.config", "enable_unsafe_deserialization"),
            ("keras.saving", "load_model"),
            ("keras_hub.models", "Backbone"),
        ],
    )
    @pytest.mark.parametrize("place", ["layer", "initializer", "function"])
    def test_code(self, path, module, name, place):
        entry = {"module": module, "class_name": name, "config": {}, "registered_name": None}
        if place == "function":
            entry |= {"class_name": "function", "config": name}
        if place == "layer":
            put_layer(path, entry)
        else:
            put_layer(path, {"module": "keras.layers", "class_name": "Dense", "config": entry})
        self.refused(path, rf"holds {module or 'keras'}\.{name}, which may run code")

    def test_layer_of_ones_own(self, tmp_path):
        @keras.saving.register_keras_serializable("mine")
        class Doubled(layers.Layer):
            def call(self, x):
                return 2 * x

        keras.Sequential([keras.Input((2,)), Doubled()]).save(tmp_path / "m.keras")
        self.refused(tmp_path / "m.keras", "holds (unknown.mine>Doubled|.*Doubled), which may run")

    def test_wrong_hash(self, path, archive):
        card = {"sha256": hashlib.sha256(archive + b"x").hexdigest()}
        path.with_suffix(".json").write_text(json.dumps(card))
        found = hashlib.sha256(archive).hexdigest()
        self.refused(path, f"SHA-256 {found} is not {card['sha256']} of its card")

    def test_card_without_a_hash(self, path):
        path.with_suffix(".json").write_text("{}")
        self.refused(path, r"has \[\], but no sha256\. Expected what mri\.train writes")


TWICE = b'{"range": [0, 1], "range": [0, 255]}'
ALIKE = b'{"class_names": ["Mild_Demented", "mild demented"]}'
VAST = b'{"validation": {"balanced_accuracy": 1' + b"0" * 400 + b"}}"
UNREADABLE = [b"{", b"", b"\xff\x00", b"[1, 2]", b"7", b"[" * 100_000, None, b'{"range": [0, 1],}']


@pytest.mark.usefixtures("keras_must_not_see_it")
@pytest.mark.parametrize("card", [*UNREADABLE, TWICE, ALIKE, VAST])
def test_an_unreadable_card_is_refused(path, card):
    beside = path.with_suffix(".json")
    beside.mkdir() if card is None else beside.write_bytes(card)
    for function in (read_card, load_model):
        with pytest.raises(ModelFileError, match=r"m\.json: unreadable card .* train the model"):
            function(path)


def test_a_card_may_begin_with_a_mark_of_its_encoding(path):
    path.with_suffix(".json").write_bytes(b'\xef\xbb\xbf{"range": [0, 1]}')
    assert read_card(path) == {"range": [0, 1]}


def test_a_lambda_layer_that_would_run_does_not(tmp_path):
    canary = tmp_path / "canary"
    source = f"lambda x: (open({str(canary)!r}, 'w').close(), x)[1]"
    model = keras.Sequential([keras.Input((2,)), layers.Lambda(eval(source))])
    model.save(tmp_path / "m.keras")
    canary.unlink()
    keras.saving.load_model(tmp_path / "m.keras", safe_mode=False)
    assert canary.exists(), "the attack works where nobody looks"
    canary.unlink()
    with pytest.raises(ModelFileError, match=r"holds keras\.layers\.Lambda, which may run code"):
        load_model(tmp_path / "m.keras")
    assert not canary.exists()


@pytest.mark.parametrize("inner", [False, True])
def test_what_a_model_was_compiled_with_is_never_read(tmp_path, inner, rng):
    """Losses and metrics of one's own cost nothing, and what stands there cannot run."""

    @keras.saving.register_keras_serializable("mine")
    def focal(labels, scores):
        return keras.ops.mean(keras.ops.square(labels - scores))

    model = tiny()
    model.compile("adam", focal, metrics=[focal])
    if inner:
        inputs = keras.Input((8, 8, 1))
        model = keras.Model(inputs, model(inputs))
    path = tmp_path / "m.keras"
    model.save(path)
    content = members(path)
    text = content["config.json"].decode()
    assert "focal" in text
    pack(path, {**content, "config.json": text.replace("focal", "never_heard_of")})
    x = rng.normal(size=(2, 8, 8, 1)).astype(np.float32)
    again = load_model(path)
    np.testing.assert_array_equal(model(x), again(x))
    assert not again.compiled and not [v for v in again.layers if getattr(v, "compiled", False)]
    with pytest.raises((TypeError, ValueError)) if inner else nullcontext():
        keras.saving.load_model(path, compile=False)


def test_a_pickle_that_would_run_does_not(tmp_path):
    canary = tmp_path / "canary"
    payload = f"c__builtin__\nexec\n(S'open({str(canary)!r}, \"w\").close()'\ntR.".encode()
    for name in ("m.pth", "m.keras", "m.h5"):
        (tmp_path / name).write_bytes(payload)
        with pytest.raises(ModelFileError, match=r"expected a \.keras|not a whole Keras archive"):
            load_model(tmp_path / name)
    for name in MEMBERS:
        pack(tmp_path / "m.keras", {**dict.fromkeys(MEMBERS, b"{}"), name: payload})
        with pytest.raises(ModelFileError, match=r"not a whole Keras|Keras cannot load it"):
            load_model(tmp_path / "m.keras")
    assert not canary.exists()


def weights_file(path, change):
    """Rewrite model.weights.h5 of a model file."""
    content = members(path)
    buffer = io.BytesIO(content["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        found = file.visititems(lambda name, x: name if isinstance(x, h5py.Dataset) else None)
        change(file, found)
    pack(path, {**content, "model.weights.h5": buffer.getvalue()})


def test_weights_that_point_to_another_file_are_refused(path, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(18, dtype=np.float32).tobytes())

    def point(file, name):
        shape = file[name].shape
        del file[name]
        file.create_dataset(name, shape, "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])

    weights_file(path, point)
    with pytest.raises(ModelFileError, match=r"(?s)Keras cannot load it .*external"):
        load_model(path)


def test_weights_that_claim_to_be_huge_are_refused(path):
    def swell(file, name):
        del file[name]
        file.create_dataset(name, (2**20, 2**20, 4), "f4", chunks=(1, 1, 1))

    weights_file(path, swell)
    with pytest.raises(ModelFileError, match=r"its weights claim 17592\d+ bytes, the file has \d+"):
        load_model(path)


def test_weights_that_are_a_symbolic_link_are_refused(path):
    link = zipfile.ZipInfo("model.weights.h5")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    content = members(path)
    del content["model.weights.h5"]
    pack(path, [*content.items(), (link, b"/etc/passwd")])
    with pytest.raises(ModelFileError, match="Keras cannot load it"):
        load_model(path)


def test_weights_of_another_network_are_refused(path, tmp_path):
    keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten()]).save(tmp_path / "o.keras")
    weights = members(tmp_path / "o.keras")["model.weights.h5"]
    pack(path, {**members(path), "model.weights.h5": weights})
    with pytest.raises(ModelFileError, match="Keras cannot load it"):
        load_model(path)


def test_an_object_that_is_no_model_is_refused(path):
    content = members(path)
    flatten = json.loads(content["config.json"])["config"]["layers"][2]
    pack(path, {**content, "config.json": json.dumps(flatten)})
    with pytest.raises(ModelFileError, match=r"holds a Flatten, not a model|Keras cannot load it"):
        load_model(path)


def test_model_card_says_what_was_measured_and_warns_of_a_leaky_split():
    card = {
        "builder": "compact",
        "synthetic": False,
        "data": "ab" * 32,
        "parameters": 123,
        "seed": 7,
        "sha256": "cd" * 32,
        "best_epoch": 2,
        "seconds": 4.5,
        "temperature": 1.234,
        "recipe": {"epochs": 9, "balance": "none"},
        "split": {"protocol": "subject", "fold": 1, "folds": 5, "slices": [10, 20, 30]},
        "validation": {"balanced_accuracy": 0.45678},
        "versions": {"keras": "3.15.1"},
    }
    honest = describe(card)
    for said in ("123 weights", "epoch 3 of 9", "fold 1 of 5", "test 30", "0.457", "1.23", "3.15.1",
                 "Not a diagnostic device", "seed 7"):  # fmt: skip
        assert said in honest
    assert "recognition of people" not in honest
    leaky = describe(card | {"split": card["split"] | {"protocol": "image"}})
    assert "recognition of people" in leaky and "fold" not in leaky
