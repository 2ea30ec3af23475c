"""The explorer's controls choose what they say, and the picture follows."""

import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from mri import plots
from mri.gradcam.cam import GradCAM
from mri.models.builders import build_model
from mri.plots.explorer import MARKED, PREDICTED, Explorer, explore

pytestmark = pytest.mark.usefixtures("closed")


@pytest.fixture(scope="module")
def case():
    """Two untrained networks, and four people of which the second half was held out."""
    from mri.data.phantom import make_phantoms

    phantoms = make_phantoms(4, 6, seed=3)
    order = np.random.default_rng(0).permutation(24)
    scans = SimpleNamespace(
        images=phantoms.images[order],
        labels=phantoms.labels[order],
        class_names=("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented"),
    )
    groups, card = phantoms.subjects[order], {"temperature": 2.0}
    runs = {
        name: SimpleNamespace(model=build_model(name), card=card) for name in ("compact", "tissue")
    }
    rows = np.flatnonzero(groups >= 2)
    return runs, scans, groups, rows, phantoms.z[order]


def test_people_are_those_of_the_rows_and_their_slices_go_upwards(case):
    _, scans, groups, rows, z = case
    explorer = Explorer(*case[:4])
    assert sorted(np.concatenate(list(explorer.people.values()))) == rows.tolist()
    for name, of in explorer.people.items():
        subject, label = name.split(": ")
        assert set(groups[of]) == {int(subject)}
        assert label == scans.class_names[scans.labels[of[0]]].replace("_", " ")
        assert (np.diff(z[of]) > 0).all()


def test_a_drawing_is_of_what_was_chosen(case, monkeypatch):
    runs, scans, *_ = case
    drawn = []
    grid = plots.heatmap_grid
    monkeypatch.setattr(plots, "heatmap_grid", lambda *a, **k: drawn.append(a) or grid(*a, **k))
    explorer = Explorer(*case[:4])
    person = list(explorer.people)[1]
    explorer.draw(
        person, 4, network="tissue", explained="Non_Demented", method="layercam", layer="distance"
    )
    images, found, labels, shares, names = drawn[0]
    row = explorer.people[person][4]
    np.testing.assert_array_equal(images, scans.images[[row]])
    expected = GradCAM(runs["tissue"].model, "distance", method="layercam")(images, 2)
    np.testing.assert_array_equal(found.maps, expected.maps)
    scaled = np.exp(expected.logits / 2)
    np.testing.assert_allclose(shares, scaled / scaled.sum(), rtol=1e-5)
    assert (labels[0], names) == (scans.labels[row], scans.class_names)
    explorer.draw(person, 4)
    plain = GradCAM(runs["compact"].model, method="hirescam")(images)
    np.testing.assert_array_equal(drawn[1][1].maps, plain.maps)
    assert drawn[1][1].classes == plain.logits.argmax()


@pytest.mark.slow
def test_layers_are_those_that_have_a_map(case):
    explorer = Explorer(*case[:4])
    found = explorer.layers("compact")
    assert found[0] == MARKED
    assert "last_conv" in found
    assert not [name for name in found if name.startswith(("dense", "flatten", "slices"))]
    for layer in found:
        explorer.draw(next(iter(explorer.people)), 0, layer=layer)


@pytest.mark.slow
def test_every_control_changes_the_picture(case):
    box = explore(*case[:4])
    *rows, picture = box.children
    controls = {control.description: control for row in rows for control in row.children}
    seen = {bytes(picture.value)}
    slices = Explorer(*case[:4]).people[controls["person"].value]
    said = int(case[0]["compact"].model(case[1].images[slices[:1]][..., None]).numpy().argmax())
    changes = {
        "slice": 1,
        "method": "grad-cam",
        "explain": case[1].class_names[(said + 1) % 4],
        "layer": controls["layer"].options[3],
        "network": "tissue",
        "person": controls["person"].options[1],
        "opacity": 0.1,
    }
    assert (controls["slice"].min, controls["slice"].max) == (1, len(slices))
    for name, value in changes.items():
        controls[name].value = value
        assert bytes(picture.value) not in seen, name
        seen.add(bytes(picture.value))
    assert controls["explain"].options[0] == PREDICTED
    assert controls["explain"].index == 1 + (said + 1) % 4, "what the browser is told"
    assert controls["layer"].value == MARKED, "of the new network"
    assert "distance" in controls["layer"].options


def test_the_picture_says_what_the_network_knows_and_whether_its_maps_were_checked(case):
    runs, scans, groups, rows, _ = case
    person = rows[groups[rows] == 2]
    cards = {
        "unseen": {"test_rows": rows.tolist()},
        "person known": {"test_rows": person[:3].tolist()},
        "no card": {},
        "others": {"test_rows": rows.tolist(), "data": "of others"},
    }
    scans.fingerprint = lambda: "of these"
    known = {
        name: SimpleNamespace(model=runs["compact"].model, card={"temperature": 1.0} | card)
        for name, card in cards.items()
    }
    check = SimpleNamespace(verdict="fails")
    explorer = Explorer(known, scans, groups, rows, checks={("unseen", "hirescam"): check})
    assert explorer.known("unseen", person[0]) == "person not used in training"
    assert explorer.known("person known", person[0]).endswith("other slices of this person")
    assert explorer.known("person known", person[4]).endswith("this very slice")
    assert explorer.known("no card", person[0]) == "may have been trained on this slice"
    assert explorer.known("others", person[0]) == "trained on other slices than these"
    assert explorer.checked("unseen", "hirescam") == "such maps fail their checks"
    for network, method, layer in (
        ("unseen", "grad-cam", MARKED),
        ("no card", "hirescam", MARKED),
        ("unseen", "hirescam", "activation"),
    ):
        assert explorer.checked(network, method, layer) == "such maps were not checked"
    (name,) = [of for of in explorer.people if of.startswith("2:")]
    drawn = explorer.draw(name, 0, network="unseen")
    told = [text.get_text() for text in drawn.axes[1].texts]
    assert {"person not used in training", "such maps fail their checks"} <= set(told)
    assert "temperature 1.00" in drawn.get_suptitle()


def test_where_no_widget_runs_the_picture_shows(case, monkeypatch):
    box = explore(*case[:4])
    bundle = box._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in bundle
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert isinstance(explore(*case[:4]), plt.Figure)


def test_nothing_to_explore_is_an_error(case):
    runs, scans, groups, rows, _ = case
    with pytest.raises(
        ValueError, match=r"at least one network and one slice. Received: networks=\[\]"
    ):
        explore({}, scans, groups, rows)
    with pytest.raises(ValueError, match="slices=0"):
        explore(runs, scans, groups, rows[:0])
