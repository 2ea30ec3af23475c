"""A whole person: order, gain, tissues, heights and the way to the template."""

import cv2
import numpy as np
import pytest

from mri.data.decode import DataError
from mri.data.phantom import Phantoms, make_phantoms
from mri.data.tone_map import ANCHORS, HEIGHTS, band, tone_with_band
from mri.subjects.person import (
    Tones,
    fit_tissue,
    people_tones,
    person_tones,
    prepare_people,
    prepare_person,
    slice_gain,
)
from mri.subjects.template import Template, make_template, move, read_template, slice_flows


@pytest.fixture(scope="module")
def phantoms() -> Phantoms:
    return make_phantoms(6, seed=1)


@pytest.fixture(scope="module")
def tones(phantoms: Phantoms) -> list[Tones]:
    return list(people_tones(phantoms.images, phantoms.subjects).values())


@pytest.fixture(scope="module")
def template(tones: list[Tones]) -> Template:
    return make_template([person.images for person in tones[:4]], registered=True)


@pytest.fixture(scope="module")
def slices(phantoms: Phantoms) -> np.ndarray:
    return phantoms.images[phantoms.subjects == 5]


def test_tissue_of_a_known_mixture_is_recovered(rng):
    means, deviations, shares = (41, 132, 210), (10, 30, 12), (0.15, 0.55, 0.3)
    parts = zip(means, deviations, shares, strict=True)
    values = np.concatenate([rng.normal(m, s, int(60_000 * share)) for m, s, share in parts])
    found = fit_tissue(values)
    np.testing.assert_allclose(found.means, means, atol=3)
    np.testing.assert_allclose(found.shares, shares, atol=0.03)
    np.testing.assert_allclose(found.deviations, deviations, rtol=0.15)


def test_tissue_of_twice_the_brightness_has_twice_the_means(rng):
    parts = ((30, 6, 3000), (75, 14, 9000), (110, 6, 6000))
    values = np.concatenate([rng.normal(*part) for part in parts])
    one, two = fit_tissue(values), fit_tissue(2 * values)
    np.testing.assert_allclose(two.means, 2 * one.means, rtol=0.02)


def test_a_known_gain_is_undone(slices):
    dark = np.exp(-0.25 * np.sin(np.arange(HEIGHTS) / 4))
    changed = slices * dark[:, None, None]
    found = slice_gain(changed) / slice_gain(slices)
    np.testing.assert_allclose(found, dark / np.exp(np.log(dark).mean()), rtol=0.05)


def test_tones_do_not_depend_on_order_or_brightness(slices):
    plain = person_tones(slices)
    shuffled = person_tones(slices[::-1] * 0.8)
    np.testing.assert_array_equal(plain.order, HEIGHTS - 1 - shuffled.order)
    brain = plain.images > 60
    assert np.abs(plain.images - shuffled.images)[brain].mean() < 3


def test_tissues_lie_at_the_anchors(slices):
    person = person_tones(slices)
    raw = slices[person.order] / person.gain[:, None, None]
    for mean, anchor in zip(person.tissue.means, ANCHORS, strict=True):
        there = np.abs(raw - mean) < 0.5
        np.testing.assert_allclose(person.images[there].mean(), anchor, atol=1)
    assert (person.images[slices[person.order] == 0] == 0).all()


@pytest.mark.parametrize("registered", [True, False])
def test_template_is_symmetric_and_of_people_given(tones, registered):
    made = make_template([person.images for person in tones[:3]], registered=registered)
    np.testing.assert_array_equal(made.mean, made.mean[..., ::-1])
    assert (made.people, made.registered) == (3, registered)
    if not registered:
        mean = np.mean([person.images for person in tones[:3]], axis=0)
        np.testing.assert_allclose(made.mean, (mean + mean[..., ::-1]) / 2, atol=0.51)
        tone = np.mean([band(person.images) for person in tones[:3]], axis=0)
        tone = (tone + tone[..., ::-1]) / 2
        np.testing.assert_allclose(band(made.typical.astype(float)), tone, atol=0.015)


def test_tone_with_band_is_its_inverse():
    values = np.linspace(0.001, 1, 50)
    np.testing.assert_allclose(band(tone_with_band(values)), values, rtol=1e-9)
    assert tone_with_band(np.zeros(1)) == 0


def test_registration_undoes_a_known_smooth_warp(template):
    rows, columns = np.mgrid[:128, :128].astype(np.float32)
    shift = np.stack([2.5 * np.sin(rows / 25), 2 * np.cos(columns / 30)], -1).astype(np.float32)
    target = template.mean
    warped = move(target, np.broadcast_to(-shift, (HEIGHTS, 128, 128, 2)))
    found = slice_flows(warped, target)
    back = move(warped, found)
    brain = cv2.erode((target[16] > 60).astype(np.uint8), np.ones((9, 9))) > 0
    before = np.abs(warped[16] - target[16])[brain].mean()
    assert np.abs(back[16] - target[16])[brain].mean() < 0.4 * before
    assert np.abs(found[16] - shift)[brain].mean() < 0.5 * np.abs(shift)[brain].mean()


def test_no_flow_where_nothing_moved(template):
    assert np.abs(slice_flows(template.mean, template.mean)).max() < 0.05


def test_a_whole_person_lacks_nothing(slices, template):
    person = prepare_person(slices[::-1], template)
    assert person.images.shape == (HEIGHTS, 128, 128)
    assert person.channels.shape == (128, 128, HEIGHTS)
    assert person.known.all()
    np.testing.assert_array_equal(person.heights, np.arange(HEIGHTS)[::-1])
    assert person.warnings == ()


def test_raw_slices_and_their_tones_are_the_same(slices, template):
    one, two = prepare_person(slices, template), prepare_person(person_tones(slices), template)
    np.testing.assert_array_equal(one.images, two.images)


def test_registration_brings_a_person_nearer(tones, template):
    plain = Template(template.mean, template.typical, False, 4)
    for person in tones[4:]:
        gap = [
            np.abs(prepare_person(person, t).images - template.mean).mean()
            for t in (plain, template)
        ]
        assert gap[1] < 0.95 * gap[0]


def test_fewer_slices_go_to_about_their_heights(slices, template):
    rows = np.arange(3, 30, 3)
    person = prepare_person(slices[rows[::-1]], template)
    assert np.abs(person.heights[::-1] - rows).mean() <= 1.5
    assert (np.diff(person.heights[::-1]) > 0).all()
    assert person.known.sum() == len(rows)
    assert "23 of 32 heights have no slice" in " ".join(person.warnings)


def test_a_single_slice_says_what_it_lacks(slices, template):
    person = prepare_person(slices[12:13], template)
    far = np.abs(np.arange(HEIGHTS) - person.heights[0]) > 2
    np.testing.assert_array_equal(person.images[far], template.typical[far])
    assert (person.images[~far] == person.images[person.heights[0]]).all()
    text = " ".join(person.warnings)
    assert "judged by 1 of 32 slices" in text
    assert "31 of 32 heights have no slice: 4 take the next one, 27 count as average" in text


def test_more_slices_share_heights(slices, template):
    person = prepare_person(np.concatenate([slices, slices[5:9]]), template)
    assert len(person.heights) == 36
    assert (person.heights[32:] == person.heights[5:9]).mean() >= 0.5
    assert person.known.sum() >= 20


def test_another_size_is_resized_and_said(slices, template):
    small = np.stack([cv2.resize(x, (96, 96), interpolation=cv2.INTER_AREA) for x in slices])
    person = prepare_person(small, template)
    assert person.images.shape == (HEIGHTS, 128, 128)
    assert any("resized to (128, 128)" in text for text in person.warnings)


def test_another_orientation_is_warned_of(slices, template):
    turned = prepare_person(np.rot90(slices, 1, (1, 2)), template)
    assert any("when turned" in text for text in turned.warnings)


def test_what_is_no_brain_is_warned_of(slices, template):
    negative = np.where(slices > 10, 255 - slices.astype(int), 0)
    person = prepare_person(negative, template)
    assert any("hardly look like the template" in text for text in person.warnings)


def test_people_are_prepared_in_order(tones, template):
    many = list(prepare_people(tones, template))
    for person, one in zip(many, tones, strict=True):
        np.testing.assert_array_equal(person.images, prepare_person(one, template).images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0], r"slices must be numbers \(n, h, w\)"),
        (lambda x: x[:0], r"slices must be numbers \(n, h, w\)"),
        (lambda x: np.full(x.shape, "a"), r"slices must be numbers \(n, h, w\)"),
        (lambda x: np.where(x > 200, np.nan, x), "Pixels must be finite"),
        (lambda x: x * 0 + 90, "Slices must not be constant"),
        (lambda x: x / 255, "pixels above 20, in gray values 0 to 255"),
        (lambda x: x.astype(float) * 2, "Pixels must be 0 to 255"),
        (lambda x: x - 1.0, "Pixels must be 0 to 255"),
    ],
)
def test_what_is_no_person_is_refused(slices, change, message):
    with pytest.raises(ValueError, match=message):
        person_tones(change(slices))


def test_the_person_who_cannot_be_prepared_is_named(phantoms):
    images = phantoms.images[:64].copy()
    images[40] = 7
    with pytest.raises(ValueError, match="constant") as caught:
        people_tones(images, phantoms.subjects[:64])
    assert "person 1, 32 slices" in caught.value.__notes__


@pytest.mark.parametrize("people", [[], [np.zeros((31, 64, 64))], [np.zeros((32, 64))]])
def test_template_wants_whole_people(people):
    with pytest.raises(ValueError, match=r"people must all be \(32, h, w\)"):
        make_template(people)


def test_template_file_keeps_all(template, tmp_path):
    template.save(tmp_path / "t.npz")
    found = read_template(tmp_path / "t.npz")
    np.testing.assert_array_equal(found.mean, template.mean)
    np.testing.assert_array_equal(found.typical, template.typical)
    assert (found.registered, found.people) == (template.registered, template.people)
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        template.save(tmp_path / "t.bin")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"no archive"])
def test_a_damaged_template_is_refused(tmp_path, content):
    (tmp_path / "t.npz").write_bytes(content)
    with pytest.raises(DataError, match="no template"):
        read_template(tmp_path / "t.npz")


def test_a_template_that_unpacks_to_more_than_one_has_is_refused(template, tmp_path, monkeypatch):
    template.save(tmp_path / "t.npz")
    monkeypatch.setattr("mri.subjects.template._MOST", 1000)
    with pytest.raises(DataError, match=r"t\.npz: no template \(more than 1000 bytes\)"):
        read_template(tmp_path / "t.npz")


def test_a_template_of_another_kind_is_refused(tmp_path):
    wrong = {"mean": np.zeros((5, 8, 8), np.uint8), "typical": np.zeros((5, 8, 8), np.uint8)}
    np.savez(tmp_path / "t.npz", **wrong, registered=True, people=3)
    with pytest.raises(DataError, match=r"a template is \(32, h, w\)"):
        read_template(tmp_path / "t.npz")
