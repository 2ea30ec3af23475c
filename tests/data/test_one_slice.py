"""One slice of any file comes out as in the data set, and what is no such slice is refused."""

import re
import sys

import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_sample_images

from mri.data.decode import DataError
from mri.data.one_slice import SIZE, check_slice, read_slice
from mri.data.phantom import make_phantoms, write_phantom


@pytest.fixture(scope="module")
def phantoms():
    """Others than those that the check compares with."""
    return make_phantoms(4, 32, seed=11)


@pytest.fixture(scope="module")
def head(phantoms):
    """A volume (x, y, z) to the right, front and top, in whose middle stand a phantom's slices.

    Above and below they shrink as an ellipsoid does. A bright spot lies on the patient's right, a
    larger one at the front.
    """
    slices = phantoms.images[phantoms.subjects == 0].astype(np.float32)
    planes = []
    for height in np.linspace(-0.98, 0.98, 64):
        size = np.sqrt(1 - max(0, abs(height) - 0.3) ** 2 / 0.49)
        of = slices[round(31 * np.clip((height + 0.3) / 0.6, 0, 1))]
        centre = np.array([64, 63.5])
        planes.append(ndimage.affine_transform(of, [1 / size] * 2, centre - centre / size, order=1))
    volume = 0.7 * np.minimum(np.stack(planes), 200)[:, :, ::-1].transpose(2, 1, 0).copy()
    volume[95:99, 62:66, 28:36] = 350
    volume[62:68, 98:104, 28:36] = 350
    return volume


def shares(images):
    return np.mean([check_slice(image) is None for image in images])


def test_phantoms_pass_and_their_turned_copies_are_told_how_to_turn_back(phantoms):
    images = phantoms.images[::3]
    assert shares(images) == 1
    for turned, back in (
        (images[:, ::-1, ::-1], "by 180°"),
        (images[:, ::-1], "by 180°"),  # A mirrored head, which no turn puts right, stands so too.
        (np.rot90(images, 1, (1, 2)), "by 90° to the right"),
        (np.rot90(images, 3, (1, 2)), "by 90° to the left"),
    ):
        problems = [check_slice(image) for image in turned]
        assert None not in problems
        told = [problem for problem in problems if "looks turned" in problem]
        assert len(told) > 0.9 * len(problems)
        assert all(f"turn it {back} first" in problem for problem in told)


def photographs(rng, n=100):
    for photo in load_sample_images().images:
        gray = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
        for _ in range(n // 2):
            size = rng.integers(128, 400)
            top, left = (rng.integers(0, side - size) for side in gray.shape)
            part = gray[top : top + size, left : left + size]
            yield cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def test_what_is_no_slice_is_refused(rng, phantoms, head):
    oval = np.zeros((SIZE, SIZE), np.uint8)
    cv2.ellipse(oval, (64, 64), (50, 52), 0, 0, 360, 200, -1)
    noise = rng.integers(0, 256, (50, SIZE, SIZE)).astype(np.uint8)
    views = (head / 0.7).clip(0, 255).astype(np.uint8)
    tall = [cv2.resize(view, (SIZE, SIZE)) for axis in (0, 1) for view in np.rollaxis(views, axis)]
    others = {
        "photographs": list(photographs(rng)),
        "noise": noise,
        "noise in the outline of a head": np.where(phantoms.images[:50] > 16, noise, 0),
        "negatives": 255 - phantoms.images[::4],
        "negatives on black": np.where(phantoms.images > 16, 255 - phantoms.images, 0)[::4],
        "an oval": [oval],
        "black and white": [np.zeros_like(oval), np.full_like(oval, 255)],
        "sagittal and coronal views": [np.rot90(v, k) for v in tall for k in range(4)],
    }
    assert {name: shares(images) for name, images in others.items() if shares(images) > 0.01} == {}
    assert "(64, 128) pixels" in check_slice(oval[::2])


@pytest.mark.parametrize(("bone", "thick"), [(20, 4), (40, 4), (30, 6)])
def test_a_head_with_its_skull_is_refused(tmp_path, phantoms, bone, thick):
    """Around the brain: fluid, the dark skull, and the bright scalp."""
    nibabel = pytest.importorskip("nibabel")
    whole = np.pad(phantoms.images[phantoms.subjects == 2], ((0, 0), (24, 24), (24, 24)))
    for image in whole:
        away = ndimage.distance_transform_edt(~ndimage.binary_fill_holes(image > 16))
        for begin, end, gray in [(0, 3, 40), (3, 3 + thick, bone), (3 + thick, 8 + thick, 210)]:
            image[(away > begin) & (away <= end)] = gray
    volume = whole[:, :, ::-1].transpose(2, 1, 0).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"looks like the skull: strip it first|outline overlaps"):
        read_slice(tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"looks like the skull: strip it first"):
        read_slice(tmp_path / "a.nii", plane=8)


@pytest.mark.stress
@pytest.mark.real_data
def test_nearly_all_real_slices_pass_and_no_turned_one(real_data):
    from mri.data.scans import read_scans

    images = np.concatenate([read_scans(real_data, split=s).images for s in ("train", "test")])
    assert shares(images) > 0.998
    assert shares(images[::8, ::-1]) == 0
    assert shares(np.rot90(images[::8], 1, (1, 2))) == 0


def test_a_row_of_a_parquet_file(tmp_path):
    from mri.data.scans import read_scans

    folder = write_phantom(tmp_path, subjects=8, slices=4)
    scans = read_scans(folder / "test.parquet")
    for row in (0, len(scans) - 1):
        found = read_slice(folder / "test.parquet", row=row)
        np.testing.assert_array_equal(found.image, scans.images[row])
        assert found.label == scans.labels[row]
        assert found.place.endswith(f"test.parquet, row {row}")
    with pytest.raises(DataError, match=rf"has rows 0 to {len(scans) - 1}. Received: row=-1"):
        read_slice(folder / "test.parquet", row=-1)


def test_pictures_are_taken_as_they_are_or_resized(tmp_path, phantoms):
    image = phantoms.images[16]
    cv2.imwrite(str(tmp_path / "a.png"), image)
    found = read_slice(tmp_path / "a.png")
    np.testing.assert_array_equal(found.image, image)
    assert found.label is None
    cv2.imwrite(str(tmp_path / "b.png"), np.kron(image, np.ones((2, 2), np.uint8)))
    np.testing.assert_array_equal(read_slice(tmp_path / "b.png").image, image)
    cv2.imwrite(str(tmp_path / "c.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert np.abs(read_slice(tmp_path / "c.jpg").image.astype(int) - image).mean() < 3


def test_errors_name_the_file_and_the_cause(tmp_path, phantoms):
    with pytest.raises(DataError, match=r"nothing.png: no such file; give a JPEG"):
        read_slice(tmp_path / "nothing.png")
    (tmp_path / "a.png").write_bytes(b"no picture at all")
    with pytest.raises(DataError, match=r"a.png: not a JPEG or PNG"):
        read_slice(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "b.png"), phantoms.images[0][::-1])
    with pytest.raises(DataError, match=r"b.png: it.* expected a skull-stripped axial T1 slice"):
        read_slice(tmp_path / "b.png")
    assert read_slice(tmp_path / "b.png", check=False).image.shape == (SIZE, SIZE)


@pytest.mark.parametrize(("name", "module"), [("a.nii.gz", "nibabel"), ("a.dcm", "pydicom")])
def test_a_missing_extra_is_named_with_its_command(tmp_path, monkeypatch, name, module):
    (tmp_path / name).write_bytes(bytes(200))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"pip install '{module}~=[\\d.,>=]+'$"):
        read_slice(tmp_path / name)


def spots(image):
    """(row, column) of the smaller and the larger of the two brightest spots."""
    found, n = ndimage.label(image > 250)
    sizes = ndimage.sum_labels(np.ones_like(found), found, range(1, n + 1))
    two = np.argsort(sizes)[-2:] + 1
    return np.array(ndimage.center_of_mass(np.ones_like(found), found, two))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_a_volume_is_turned_by_its_header_whatever_its_storage(tmp_path, head, codes):
    nibabel = pytest.importorskip("nibabel")
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    # Twice as fine from side to side, and in other units.
    fine = np.repeat(head, 2, 0) * 7.5
    plain = nibabel.Nifti1Image(fine.astype(np.float32), np.diag([0.7, 1.6, 1.4, 1]))
    turn = ornt_transform(io_orientation(plain.affine), axcodes2ornt(codes))
    nibabel.save(plain.as_reoriented(turn), tmp_path / "head.nii.gz")
    found = read_slice(tmp_path / "head.nii.gz", plane=31)
    assert found.place.endswith("head.nii.gz, plane 31 of 64")
    right, front = spots(found.image)
    assert right[1] < 40 and abs(right[0] - 64) < 6  # The patient's right is on the left,
    assert front[0] > 95 and abs(front[1] - 64) < 6  # the front is down.
    expected = head[::-1, :, 31].T
    assert np.corrcoef(found.image.ravel(), expected.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(
    ("kind", "name", "notes"),
    [
        ("Nifti2Image", "a.nii", 0),
        ("Nifti1Pair", "a.hdr", 0),
        ("MGHImage", "a.mgz", 0),
        ("Spm99AnalyzeImage", "a.img", 1),
    ],
)
def test_a_volume_is_the_same_in_every_format(tmp_path, head, kind, name, notes):
    nibabel = pytest.importorskip("nibabel")
    whole = np.rint(head).astype(np.int16)
    affine = np.array([[0.0, -1, 0, 60], [1, 0, 0, -70], [0, 0, 1, -30], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(whole, affine), tmp_path / "usual.nii")
    expected = read_slice(tmp_path / "usual.nii", plane=31, check=False)
    nibabel.save(getattr(nibabel, kind)(whole, affine), tmp_path / name)
    found = read_slice(tmp_path / name, plane=31, check=False)
    np.testing.assert_array_equal(found.image, expected.image)
    assert [of.startswith("This format does not say") for of in found.notes] == [True] * notes


def test_a_volume_without_a_plane_gives_the_one_most_like_the_data_set(tmp_path, head):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(head, np.eye(4)), tmp_path / "head.nii")
    plane = int(re.search(r"plane (\d+) of 64", read_slice(tmp_path / "head.nii").place).group(1))
    assert 15 <= plane <= 48
    with pytest.raises(DataError, match=r"its outline overlaps 0\.\d\d, 0\.95 is needed"):
        read_slice(tmp_path / "head.nii", plane=2)
    with pytest.raises(DataError, match=r"has planes 0 to 63. Received: plane=64"):
        read_slice(tmp_path / "head.nii", plane=64)


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((8, 8, 8)), "is empty, no pixel is above 0"),
        (np.ones((8, 8, 8, 3)), r"array \(8, 8, 8, 3\), expected one volume"),
    ],
)
def test_volumes_that_hold_no_head(tmp_path, array, problem):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(DataError, match=rf"a\.nii: .*{problem}"):
        read_slice(tmp_path / "a.nii")
    (tmp_path / "a.nii").write_bytes(b"no volume")
    with pytest.raises(DataError, match=r"a\.nii: nibabel cannot read it"):
        read_slice(tmp_path / "a.nii")


def test_a_picture_of_two_axes_is_a_slice_and_one_too_long_is_not_read(tmp_path, head):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(head[:, :, 31], np.eye(4)), tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image(head[:, :, 31:32], np.eye(4)), tmp_path / "b.nii")
    one, other = (read_slice(tmp_path / f"{name}.nii", check=False).image for name in "ab")
    np.testing.assert_array_equal(one, other)
    with (tmp_path / "c.png").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(DataError, match=r"c\.png: cannot be read \(it has 67108865 bytes"):
        read_slice(tmp_path / "c.png")


def write_dicom(path, pixels, orientation, photometric="MONOCHROME2", syntax="1.2.1"):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, MRImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(f"1.2.840.10008.{syntax}")
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.SamplesPerPixel, data.PixelRepresentation = 15, 1, 0
    data.PhotometricInterpretation = photometric
    data.ImageOrientationPatient = orientation
    data.PixelData = pixels.astype(np.uint16).tobytes()
    data.save_as(path, enforce_file_format=True)


# Rows of the head's plane go to the front (-y in DICOM), columns to the left (+x).
DICOMS = {
    "as usual": (lambda a: a[::-1], [1, 0, 0, 0, 1, 0]),
    "mirrored": (lambda a: a[::-1, ::-1], [-1, 0, 0, 0, 1, 0]),
    "lying": (lambda a: a.T, [0, -1, 0, 1, 0, 0]),
    "tilted": (lambda a: a[::-1], [1, 0, 0, 0, 0.95, -0.31]),
}


@pytest.mark.parametrize("name", DICOMS)
def test_dicom_is_turned_by_its_header(tmp_path, head, name):
    pytest.importorskip("pydicom")
    turn, orientation = DICOMS[name]
    write_dicom(tmp_path / "a.dcm", turn(3 * head[::-1, :, 31].T), orientation)
    found = read_slice(tmp_path / "a.dcm")
    right, front = spots(found.image)
    assert right[1] < 40 and front[0] > 95
    *tilted, alone = found.notes
    assert [of[:30] for of in tilted] == ["Its planes are tilted by 18° a"] * (name == "tilted")
    assert alone.startswith("One slice does not tell the size of its head")
    (tmp_path / "a.dcm").rename(tmp_path / "IM0001")  # Often they have no ending.
    np.testing.assert_array_equal(read_slice(tmp_path / "IM0001").image, found.image)


def test_rescale_slope_and_intercept_are_applied(tmp_path, head):
    pydicom = pytest.importorskip("pydicom")
    plane = np.rint(head[::-1, :, 31].T[::-1])
    write_dicom(tmp_path / "a.dcm", plane, DICOMS["as usual"][1])
    expected = read_slice(tmp_path / "a.dcm").image.astype(int)
    # Stored turned round, and turned back by the slope.
    write_dicom(tmp_path / "b.dcm", 1000 - plane, DICOMS["as usual"][1])
    data = pydicom.dcmread(tmp_path / "b.dcm")
    data.RescaleSlope, data.RescaleIntercept = "-2", "2000"
    data.save_as(tmp_path / "b.dcm")
    assert np.abs(read_slice(tmp_path / "b.dcm").image - expected).max() <= 1


def test_a_series_is_read_to_its_end_whatever_lies_beside_it(tmp_path, head):
    pydicom = pytest.importorskip("pydicom")
    write_dicom(tmp_path / "one", np.rint(3 * head[::-1, :, 30].T[::-1]), DICOMS["as usual"][1])
    data = pydicom.dcmread(tmp_path / "one")
    (tmp_path / "one").unlink()
    for i in range(600):
        data.ImagePositionPatient = [0, 0, 2.0 * i]
        data.save_as(tmp_path / f"{i:04d}.dcm")
        (tmp_path / f"{i:04d}.txt").write_text("beside it")
    assert read_slice(tmp_path, plane=0, check=False).place.endswith("plane 0 of 600")
    for place in (None, [1.0, 2.0]):
        data.ImagePositionPatient = place
        data.save_as(tmp_path / "0003.dcm")
        with pytest.raises(DataError, match=r"0003.dcm: its ImagePositionPatient is .*, not three"):
            read_slice(tmp_path, plane=0, check=False)


def test_an_orientation_without_two_axes_is_refused(tmp_path, head):
    pydicom = pytest.importorskip("pydicom")
    write_dicom(tmp_path / "a.dcm", np.rint(3 * head[::-1, :, 30].T[::-1]), DICOMS["as usual"][1])
    data = pydicom.dcmread(tmp_path / "a.dcm")
    data.ImageOrientationPatient = [0, 1, 0, 1, 1, 0]
    data.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match=r"a\.dcm: .*orientation"):
        read_slice(tmp_path / "a.dcm", check=False)


def test_a_folder_of_one_series_is_a_volume(tmp_path, head):
    pydicom = pytest.importorskip("pydicom")
    folder = tmp_path / "series"
    folder.mkdir()
    for i in range(20, 44, 2):  # Their names tell nothing of their order.
        file = folder / f"IM{(7 * i) % 50:03d}"
        write_dicom(file, np.rint(3 * head[::-1, :, i].T[::-1]), DICOMS["as usual"][1])
        data = pydicom.dcmread(file)
        data.ImagePositionPatient, data.SeriesInstanceUID = [0, 0, 2.0 * i], "1.2.3"
        data.save_as(file)
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")  # As on a disc, without pixels.
    found = read_slice(folder, plane=5)
    assert found.place == f"{folder}, plane 5 of 12"
    assert np.corrcoef(found.image.ravel(), head[::-1, :, 30].T.ravel())[0, 1] > 0.9
    assert re.search(r"plane \d+ of 12", read_slice(folder).place)
    data.SeriesInstanceUID = "1.2.4"
    data.save_as(folder / "other")
    told = r"13 files of 2 series and 1 sizes at 12 heights, exp.*first files: IM\d+, other\)"
    with pytest.raises(DataError, match=told):
        read_slice(folder)
    data.SeriesInstanceUID = "1.2.3"  # Of another echo or time.
    data.save_as(folder / "other")
    with pytest.raises(DataError, match=r"13 files of 1 series and 1 sizes at 12 heights, exp"):
        read_slice(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a folder without DICOM files"):
        read_slice(tmp_path / "empty")


def test_more_frames_than_one_say_what_to_do(tmp_path, head):
    pydicom = pytest.importorskip("pydicom")
    write_dicom(tmp_path / "a.dcm", np.rint(head[:, :, 31]), DICOMS["as usual"][1])
    data = pydicom.dcmread(tmp_path / "a.dcm")
    data.NumberOfFrames = 30
    data.save_as(tmp_path / "a.dcm")
    told = r"30 frames of .*; convert it with dcm2niix and give the NIfTI file"
    with pytest.raises(DataError, match=told):
        read_slice(tmp_path / "a.dcm")


def test_numbers_of_colours_are_no_gray_values(tmp_path, head):
    pytest.importorskip("pydicom")
    plane = np.rint(head[::-1, :, 31].T[::-1])
    write_dicom(tmp_path / "a.dcm", plane, DICOMS["as usual"][1], "PALETTE COLOR")
    with pytest.raises(DataError, match=r"16 bits \(PALETTE COLOR\), expected a gray slice"):
        read_slice(tmp_path / "a.dcm")


def test_an_enhanced_slice_says_what_to_do(tmp_path, head):
    """Its orientation stands in a sequence for each frame, even if there is one frame."""
    pydicom = pytest.importorskip("pydicom")
    write_dicom(tmp_path / "a.dcm", np.rint(head[:, :, 31]), DICOMS["as usual"][1])
    data = pydicom.dcmread(tmp_path / "a.dcm")
    del data.ImageOrientationPatient
    plane = pydicom.Dataset()
    plane.ImageOrientationPatient = DICOMS["as usual"][1]
    frame = pydicom.Dataset()
    frame.PlaneOrientationSequence = [plane]
    data.PerFrameFunctionalGroupsSequence, data.NumberOfFrames = [frame], 1
    data.save_as(tmp_path / "a.dcm")
    told = r"a\.dcm: not a DICOM image with an orientation .*enhanced .*, convert it with dcm2niix"
    with pytest.raises(DataError, match=told):
        read_slice(tmp_path / "a.dcm")


def test_voxels_that_are_no_number_are_background_and_one_plane_is_a_slice(tmp_path, head):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(head, np.eye(4)), tmp_path / "a.nii")
    bare = np.where(head > 5, head, np.nan)
    nibabel.save(nibabel.Nifti1Image(bare.astype(np.float32), np.eye(4)), tmp_path / "b.nii")
    expected = read_slice(tmp_path / "a.nii", plane=31).image
    found = read_slice(tmp_path / "b.nii", plane=31).image
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99
    one = nibabel.Nifti1Image(head[:, :, 31:32], np.eye(4))
    nibabel.save(one, tmp_path / "c.nii")
    single = read_slice(tmp_path / "c.nii")
    assert single.place.endswith("plane 0 of 1")
    assert np.corrcoef(single.image.ravel(), expected.ravel())[0, 1] > 0.9


def test_what_a_header_leaves_open_is_noted(tmp_path, head):
    nibabel = pytest.importorskip("nibabel")
    notes = {}
    scanner = np.eye(4)
    scanner[:3, 3] = -64, -70, -30
    cases = {"both": (1, 1), "none": (0, 0), "other": (1, 2), "made up": (0, 2), "tilted": (1, 1)}
    for name, codes in cases.items():
        affine = np.eye(4) if name == "made up" else scanner.copy()
        if name == "tilted":  # Planes whose front is lifted by 20 degrees.
            affine[1:3, 1:3] = [[np.cos(0.349), -np.sin(0.349)], [np.sin(0.349), np.cos(0.349)]]
        image = nibabel.Nifti1Image(head.astype(np.float32), affine)
        turned = np.diag([-1.0, -1, 1, 1]) if name == "other" else affine
        image.set_qform(turned, codes[0])
        image.set_sform(affine, codes[1])
        nibabel.save(image, tmp_path / f"{name}.nii")
        notes[name] = read_slice(tmp_path / f"{name}.nii", plane=31, check=False).notes
    assert notes["both"] == ()
    assert "has no orientation (qform and sform codes are 0)" in notes["none"][0]
    assert notes["other"] == ("Its header contradicts itself: qform says LPS, sform RAS, taken.",)
    (made_up,) = notes["made up"]
    assert made_up.endswith("which side is the patient's right may be made up.")
    (tilted,) = notes["tilted"]
    assert tilted.startswith("Its planes are tilted by 20° against the scanner's axes")


def test_a_plane_that_is_hardly_axial_is_refused(tmp_path, head):
    nibabel = pytest.importorskip("nibabel")
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(0.70), -np.sin(0.70)], [np.sin(0.70), np.cos(0.70)]]  # 40 degrees
    nibabel.save(nibabel.Nifti1Image(head, affine), tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"a\.nii: its orientation is turned by 40° .*resample it"):
        read_slice(tmp_path / "a.nii", check=False)
    image = nibabel.Nifti1Image(head, np.eye(4))
    image.set_sform(np.zeros((4, 4)), 1)
    nibabel.save(image, tmp_path / "b.nii")
    with pytest.raises(DataError, match=r"b\.nii: its header has an axis without length"):
        read_slice(tmp_path / "b.nii", check=False)


@pytest.mark.parametrize("ending", [".hdr", ".IMG"])
def test_plain_analyze_pairs_are_read_as_a_set_of_them_is_published(tmp_path, head, ending):
    nibabel = pytest.importorskip("nibabel")
    # 16 bits, the largest first, of four axes, and no file of SPM beside them.
    whole = np.rint(head).astype(">i2")[..., None]
    nibabel.save(nibabel.AnalyzeImage(whole, None), tmp_path / "a.hdr")
    assert sorted(of.name for of in tmp_path.iterdir()) == ["a.hdr", "a.img"]
    if ending.isupper():
        for of in list(tmp_path.iterdir()):
            of.rename(of.with_suffix(of.suffix.upper()))
    found = read_slice(tmp_path / f"a{ending}", plane=31)
    # Without an orientation, x is taken to go to the left.
    told = nibabel.Nifti1Image(whole[..., 0], np.diag([-1.0, 1, 1, 1]))
    nibabel.save(told, tmp_path / "told.nii")
    expected = read_slice(tmp_path / "told.nii", plane=31)
    np.testing.assert_array_equal(found.image, expected.image)
    assert found.notes[0].startswith("This format does not say")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda a: a / 175 - 1, "its gray values go from -1 to .*before its values were norm"),
        (lambda a: np.where(a > 5, (a - 80) / 40, 0), "its gray values go from -1.*expected 0"),
        (lambda a: a[64:65], "its axial planes have 128 × 1 pixels; it is of one view from"),
        (lambda a: a[:, :, 31][None], "its axial planes have 128 × 1 pixels"),
    ],
)
def test_why_a_volume_cannot_be_taken_is_told(tmp_path, head, changed, told):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(changed(head).astype(np.float32), None), tmp_path / "a.nii")
    with pytest.raises(DataError, match=rf"a\.nii.*: {told}"):
        read_slice(tmp_path / "a.nii")


def test_what_is_coarse_is_noted(tmp_path, head, phantoms):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(head[::8], np.diag([8.0, 1, 1, 1])), tmp_path / "a.nii")
    whole = read_slice(tmp_path / "a.nii", plane=31, check=False).notes[-1]
    times = float(re.fullmatch(r"It is enlarged ([\d.]+) times, .*", whole)[1])
    assert (
        6 < times < 10
    )  # A brain is about as wide as those of the data set, by every eighth line.
    small = cv2.resize(phantoms.images[16], (32, 32), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "a.png"), small)
    assert read_slice(tmp_path / "a.png").notes[-1].startswith("It is enlarged 4.0 times")


def test_rows_and_planes_of_what_has_none_are_refused(tmp_path, head, phantoms):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(head, np.eye(4)), tmp_path / "a.nii")
    cv2.imwrite(str(tmp_path / "a.png"), phantoms.images[16])
    table = write_phantom(tmp_path, subjects=4) / "test.parquet"
    for path, given in [
        (tmp_path / "a.nii", {"row": 30}),
        (tmp_path / "a.png", {"row": 1}),
        (tmp_path / "a.png", {"plane": 1}),
        (table, {"plane": 1}),
    ]:
        with pytest.raises(DataError, match=f"{path.name}: rows are of a table, planes of a vol"):
            read_slice(path, **given)
    with pytest.raises(ValueError, match=r"plane must be an integer\..*plane=1\.5"):
        read_slice(tmp_path / "a.nii", plane=1.5)


def test_a_map_of_labels_is_no_scan(tmp_path, head, phantoms):
    nibabel = pytest.importorskip("nibabel")
    labels = np.digitize(head, [10, 60, 100, 130]).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"plane 31: has \d gray values, .* like a segmentation"):
        read_slice(tmp_path / "a.nii", plane=31)
    assert read_slice(tmp_path / "a.nii", plane=31, check=False).image.shape == (SIZE, SIZE)
    cv2.imwrite(str(tmp_path / "a.png"), phantoms.images[16] // 64 * 64)
    with pytest.raises(DataError, match=r"a\.png: has \d gray values"):
        read_slice(tmp_path / "a.png")
    (tmp_path / "a.mnc").write_bytes(b"CDF")
    with pytest.raises(DataError, match=r"a\.mnc: a MINC volume; convert it with mnc2nii"):
        read_slice(tmp_path / "a.mnc")
    (tmp_path / "a.img.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"a\.img\.gz: a volume of another format; convert it to N"):
        read_slice(tmp_path / "a.img.gz")


def test_a_picture_says_what_it_cannot_tell(tmp_path, phantoms):
    image = phantoms.images[16]
    cv2.imwrite(str(tmp_path / "a.jpg"), cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
    (note,) = read_slice(tmp_path / "a.jpg").notes
    assert "does not say which side is the patient's right" in note
    dim = (image * 0.6).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "dim.png"), dim)
    note = read_slice(tmp_path / "dim.png").notes[-1]
    usual = re.fullmatch(r"Its bright tissue has the gray value (\d+); .* 160 to 246\. .*", note)
    assert abs(int(usual[1]) - np.sort(dim[dim > 16])[-(dim > 16).sum() // 100]) <= 1
    cv2.imwrite(str(tmp_path / "b.png"), cv2.applyColorMap(image, cv2.COLORMAP_JET))
    assert "in colours" in read_slice(tmp_path / "b.png", check=False).notes[1]
    # Its background is bright, so that it is refused: the colours are the reason.
    cv2.imwrite(str(tmp_path / "c.png"), cv2.applyColorMap(image, cv2.COLORMAP_VIRIDIS))
    with pytest.raises(DataError, match=r"outline overlaps .*back of the head up\. .*in colours"):
        read_slice(tmp_path / "c.png")


def test_dicom_negative_and_views_from_the_side(tmp_path, head):
    pytest.importorskip("pydicom")
    plane = np.rint(head[::-1, :, 31].T[::-1])
    write_dicom(tmp_path / "a.dcm", plane, DICOMS["as usual"][1])
    write_dicom(tmp_path / "b.dcm", plane.max() - plane, DICOMS["as usual"][1], "MONOCHROME1")
    difference = read_slice(tmp_path / "a.dcm").image.astype(int)
    difference -= read_slice(tmp_path / "b.dcm").image
    assert np.abs(difference).max() <= 1
    write_dicom(tmp_path / "z.dcm", plane, DICOMS["as usual"][1], syntax="1.2.1.99")
    assert (tmp_path / "z.dcm").stat().st_size < (tmp_path / "a.dcm").stat().st_size / 2
    deflated = read_slice(tmp_path / "z.dcm").image
    np.testing.assert_array_equal(deflated, read_slice(tmp_path / "a.dcm").image)
    write_dicom(tmp_path / "c.dcm", plane, [0, 1, 0, 0, 0, -1])
    with pytest.raises(DataError, match=r"c\.dcm: expected one axial slice.*with dcm2niix"):
        read_slice(tmp_path / "c.dcm")
    (tmp_path / "d.dcm").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"d\.dcm: not a DICOM image"):
        read_slice(tmp_path / "d.dcm")
