"""Small files that ask for all memory, all time or another file: refused with a reason, in little.

Each kind is a function that makes one file; ``python test_hostile.py`` reads the files whose names
it gets on its standard input in a process of its own, so that an abort or a hang is seen.
"""

import faulthandler
import json
import os
import re
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mri.data.decode import DataError
from mri.data.one_slice import read_slice
from mri.data.scans import iter_batches, read_scans

HANG_SECONDS, BOUND_MB = 5, 400
KINDS = {}


def kind(ending, message):
    """Register a maker of a hostile file, to be refused with this message."""

    def put(function):
        KINDS[function.__name__] = (function, ending, message)
        return function

    return put


# --- pictures ---

GRAY = np.random.default_rng(0).integers(0, 256, (24, 20), dtype=np.uint8)
PNG = cv2.imencode(".png", GRAY)[1].tobytes()
JPEG = cv2.imencode(".jpg", GRAY)[1].tobytes()


def progressive(side=64, scans=10):
    """A JPEG whose last scan is repeated."""
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    blob = cv2.imencode(".jpg", np.zeros((side, side), np.uint8), options)[1].tobytes()
    start, end = blob.rfind(b"\xff\xda"), blob.rfind(b"\xff\xd9")
    return blob[:end] + blob[start:end] * (scans - blob.count(b"\xff\xda")) + blob[end:]


def chunk(name, data=b""):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


PICTURES = {
    "jpeg_of_200000_scans": (progressive(scans=200_000), r"200000 scans"),
    "jpeg_of_33_scans": (progressive(scans=33), r"33 scans"),
    "jpeg_of_large_scans": (progressive(4096, scans=64), r"64 scans"),
    "colour_jpeg_of_scans": (
        cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes()[:-2]
        + b"\xff\xda\0\x08\1\1\0\0\x3f\0\0" * 40,
        r"41 scans",
    ),
    "jpeg_of_fill_bytes": (b"\xff\xd8" + b"\xff" * 4_000_000 + JPEG[2:], "fill bytes before"),
    "jpeg_of_comments": (b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000 + JPEG[2:], "segments"),
    "jpeg_of_empty_tables": (b"\xff\xd8" + b"\xff\xdb\0\2" * 1_000_000 + JPEG[2:], "segments"),
    "jpeg_with_a_tail": (JPEG + bytes(5_000_000), "bytes for 24 × 20 pixels"),
    "jpeg_too_wide": (JPEG.replace(b"\0\x18\0\x14", b"\0\x18\xff\xff"), "the limit is 4096"),
    "jpeg_of_no_height": (JPEG.replace(b"\0\x18\0\x14", b"\0\0\0\x14"), "declares 0 × 20"),
    "jpeg_cut_in_its_header": (JPEG[:100], "not a JPEG|truncated or corrupt"),
    "png_of_empty_chunks": (PNG[:33] + chunk(b"teXt") * 1_000_000 + PNG[33:], "chunks in one PNG"),
    "png_of_empty_data": (PNG[:33] + chunk(b"IDAT") * 300_000 + PNG[33:], "chunks in one PNG"),
    "png_of_frames": (PNG[:33] + chunk(b"fcTL", bytes(26)) * 9000 + PNG[33:], "chunks in one PNG"),
    "png_with_a_long_text": (PNG[:33] + chunk(b"teXt", bytes(6_000_000)) + PNG[33:], "bytes for"),
    "png_too_high": (
        PNG[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 2**31 - 1, 8, 0, 0, 0, 0)) + PNG[33:],
        "the limit is 4096",
    ),
    "png_of_a_wrong_sum": (PNG[:-20] + b"\0" * 4 + PNG[-16:], "truncated or corrupt"),
    "gif": (b"GIF89a" + bytes(99), "not a JPEG or PNG"),
    "svg": (b"<svg onload='alert(1)'/>", "not a JPEG or PNG"),
}
for _name, (_blob, _message) in PICTURES.items():

    def _file(path, blob=_blob):
        path.write_bytes(blob)

    def _column(path, blob=_blob):
        write(path, [blob] * 3)

    KINDS[f"{_name}"] = (_file, ".jpg", _message)
    KINDS[f"{_name}_in_parquet"] = (_column, ".parquet", _message)


# --- tables ---


def write(path, blobs, labels=None, names=None, **options):
    image = blobs if isinstance(blobs, pa.Array) else pa.array(blobs, pa.binary())
    labels = np.zeros(len(image), np.int64) if labels is None else labels
    table = pa.table({"image": image, "label": labels})
    if names is not None:
        about = {"info": {"features": {"label": {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, path, **{"compression": "zstd", **options})


def repeated(blob, rows):
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([blob], pa.binary()))


@kind(".parquet", "5000000 rows in")
def five_million_rows_of_one_picture(path):
    write(path, repeated(PNG, 5_000_000))


@kind(".parquet", "5000000 rows in")
def five_million_rows_of_null(path):
    write(path, pa.nulls(5_000_000, pa.binary()))


@kind(".parquet", "rows unpack to .* MiB of pixels")
def a_thousand_rows_of_one_large_picture(path):
    write(path, repeated(cv2.imencode(".png", np.zeros((4000, 4000)))[1].tobytes(), 1000))


@kind(".parquet", "take more than .* bytes")
def a_large_value_repeated(path):
    write(path, repeated(np.random.default_rng(0).bytes(3_000_000), 5000))


@kind(".parquet", "a page that unpacks from")
def a_dictionary_that_unpacks(path):
    write(path, repeated(bytes(100_000_000), 1000))


@kind(".parquet", "a page that unpacks from")
def a_page_that_unpacks(path):
    write(path, [bytes(100_000_000)], use_dictionary=False)


@kind(".parquet", "take more than .* bytes")
def prefixes_that_unpack(path):
    options = {"column_encoding": {"image": "DELTA_BYTE_ARRAY"}, "use_dictionary": False}
    blob = np.random.default_rng(0).bytes(4_000_000)
    write(path, [blob] * 40, write_batch_size=1, data_page_size=1 << 30, **options)


@kind(".parquet", "100000 class names")
def a_hundred_thousand_class_names(path):
    write(path, [PNG] * 9, names=[f"class {i}" for i in range(100_000)])


@kind(".parquet", "class names of up to 1000000 characters")
def a_class_name_of_a_megabyte(path):
    write(path, [PNG] * 9, names=["a", "b" * 1_000_000])


@kind(".parquet", "class names '.*' and '.*' are the same name")
def class_names_that_are_alike(path):
    write(path, [PNG] * 9, names=["a", "b", "a", "c"])


@kind(".parquet", "expected a list of names")
def class_names_of_lists(path):
    write(path, [PNG], names=[["a"] * 100_000])


@kind(".parquet", "unreadable 'huggingface' metadata|recursion")
def metadata_that_nest(path):
    table = pa.table({"image": pa.array([PNG], pa.binary()), "label": [0]})
    deep = "[" * 100_000 + "]" * 100_000
    pq.write_table(table.replace_schema_metadata({"huggingface": deep}), path)


def change_footer(path, *changes):
    """Replace bytes of the footer; each pattern stands there once at least."""
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - length], content[-8 - length :]
    for old, new in changes:
        assert old in footer
        footer = footer.replace(old, new)
    path.write_bytes(body + footer)


def lie(path, groups, rows, told):
    """Write row groups; the footer's own number of rows is another."""
    write(path, [PNG] * rows, row_group_size=rows // groups)
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    at = content.index(bytes([0x16, 2 * rows]), len(content) - 8 - length)
    content[at + 1] = 2 * told
    path.write_bytes(content)


@kind(".parquet", "declares 60 rows, its row groups 12")
def more_rows_told_than_there(path):
    lie(path, 2, 12, 60)


@kind(".parquet", "declares 1 rows, its row groups 12")
def fewer_rows_told_than_there(path):
    lie(path, 2, 12, 1)


@kind(".parquet", "a row group of 11 rows, a column of it has .* pages 12|declares")
def a_group_that_hides_a_row(path):
    write(path, [PNG] * 12)
    change_footer(path, (bytes([0x16, 24]), bytes([0x16, 22])))


@kind(".parquet", "columns of the types .*, its schema says")
def a_column_of_another_type(path):
    """Arrow ends the process where it looks at the statistics of such a column."""
    write(path, [PNG] * 12)
    change_footer(path, (b"\x15\x0c\x19", b"\x15\x0a\x19"))


@kind(".parquet", "a footer of")
def a_footer_longer_than_the_file(path):
    write(path, [PNG])
    content = path.read_bytes()
    path.write_bytes(content[:-8] + b"\xff\xff\xff\x7fPAR1")


@kind(".parquet", "its footer is damaged|nests deeper|unknown kind")
def a_footer_that_nests(path):
    footer = b"\x1c" * 1_000_000
    path.write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")


@kind(".parquet", "its footer is damaged|nests deeper|unknown kind")
def a_footer_of_a_long_list(path):
    footer = b"\x15\x02\x19\xfc" + b"\xff" * 8 + b"\x7f" + bytes(100)
    path.write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")


@kind(".parquet", "no regular file")
def a_pipe(path):
    os.mkfifo(path)


@kind(".parquet", "no regular file")
def a_folder(path):
    path.mkdir()


@kind(".parquet", "no regular file|no such file")
def a_device(path):
    path.symlink_to("/dev/zero")


# --- volumes ---


def nifti(shape=(4, 4, 4), code=2, bits=8, offset=352.0, magic=b"n+1\0"):
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<2h", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, offset)
    struct.pack_into("<f", header, 112, 1.0)
    header[344:348] = magic
    return bytes(header)


def packed(path, begin, zeros):
    """Write a gzip file of these bytes and many zeros, without holding them."""
    pack = zlib.compressobj(9, wbits=31)
    with path.open("wb") as file:
        file.write(pack.compress(begin))
        for _ in range(zeros // 2**20):
            file.write(pack.compress(bytes(2**20)))
        file.write(pack.flush())


@kind(".nii.gz", "unpacks from")
def a_volume_of_zeros(path):
    packed(path, nifti((1000, 1000, 60), 16, 32), 240 * 2**20)


@kind(".nii.gz", "its header declares")
def a_volume_of_terabytes(path):
    packed(path, nifti((32767, 32767, 32767)), 2**20)


@kind(".nii.gz", "is empty")
def a_small_volume_before_a_gigabyte(path):
    packed(path, nifti() + bytes(64), 2**30)


@kind(".nii.gz", "its voxels begin at byte")
def voxels_far_behind_the_header(path):
    packed(path, nifti(offset=2e9), 2**20)


@kind(".nii.gz", "has .* bytes, its header declares|cannot read it|is empty")
def an_extension_of_gigabytes(path):
    extension = b"\1\0\0\0" + struct.pack("<2i", 2**31 - 16, 6)
    packed(path, nifti(offset=1000.0)[:348] + extension, 2**22)


@kind(".nii", "has .* bytes, its header declares")
def a_volume_cut_short(path):
    path.write_bytes(nifti((256, 256, 256)) + bytes(100))


@kind(".nii", "its header declares")
def a_million_planes(path):
    path.write_bytes(nifti((2, 2, 32767)) + bytes(2 * 2 * 32767))


@kind(".nii", "its header declares|cannot read it")
def negative_axes(path):
    path.write_bytes(nifti((-4, 4, 4)) + bytes(64))


@kind(".nii", "one number a voxel")
def complex_voxels(path):
    path.write_bytes(nifti(code=1792, bits=128) + bytes(1024))


@kind(".nii", "one number a voxel")
def colour_voxels(path):
    path.write_bytes(nifti(code=128, bits=24) + bytes(192))


@kind(".nii", "no finite numbers")
def infinite_voxels(path):
    path.write_bytes(nifti(code=16, bits=32) + np.full(64, np.inf, "<f4").tobytes())


@kind(".nii", "cannot read it")
def an_unknown_type_of_voxels(path):
    path.write_bytes(nifti(code=999) + bytes(64))


@kind(".nii", "holds an array")
def a_volume_of_five_axes(path):
    path.write_bytes(nifti((2, 2, 2, 2, 2)) + bytes(range(32)))


@kind(".nii", "no regular file|no such file")
def a_pipe_for_a_volume(path):
    os.mkfifo(path)


@kind(".mgz", "its header declares")
def a_large_mgz(path):
    header = struct.pack(">7ih", 1, 2000, 2000, 2000, 1, 0, 0, 1) + bytes(254)
    packed(path, header, 2**20)


@kind(".hdr", "its header declares|has .* bytes")
def a_pair_that_declares_too_much(path):
    path.write_bytes(nifti((30000, 30000, 300), magic=b"ni1\0", offset=0)[:348])
    path.with_suffix(".img").write_bytes(bytes(1000))


@kind(".hdr", "has 1000 bytes, its header declares")
def a_pair_with_a_short_image(path):
    path.write_bytes(nifti((300, 300, 300), magic=b"ni1\0", offset=0)[:348])
    path.with_suffix(".img").write_bytes(bytes(1000))


@kind(".hdr", "cannot read it")
def a_pair_with_a_pipe(path):
    path.write_bytes(nifti(magic=b"ni1\0", offset=0)[:348])
    os.mkfifo(path.with_suffix(".img"))


# --- DICOM ---


def dicom(path, pixels=bytes(64), syntax="1.2.840.10008.1.2.1", extra=(), **changed):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, MRImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    meta.TransferSyntaxUID = UID(syntax)
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    given = {"Rows": 8, "Columns": 8, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    given |= {"PixelRepresentation": 0, "SamplesPerPixel": 1}
    given |= {"PhotometricInterpretation": "MONOCHROME2", "PixelData": pixels}
    given |= {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    for name, value in (given | changed).items():
        setattr(data, name, value)
    data["PixelData"].VR = "OB"
    for element in extra:
        data.add(element)
    data.save_as(path, enforce_file_format=True)


def encapsulated(path, blob, syntax, **changed):
    from pydicom.encaps import encapsulate

    dicom(path, encapsulate([blob]), syntax, **changed)


BASELINE, JPEG2000, RUNS = (f"1.2.840.10008.1.2.{end}" for end in ("4.50", "4.90", "5"))


@kind(".dcm", "unpacks from")
def a_deflated_slice_that_unpacks(path):
    dicom(path, syntax="1.2.840.10008.1.2.1.99", PixelData=bytes(200_000_000))


@kind(".dcm", "or is cut")
def a_deflated_slice_cut_short(path):
    dicom(path, syntax="1.2.840.10008.1.2.1.99", PixelData=bytes(range(64)))
    path.write_bytes(path.read_bytes()[:-10])


@kind(".dcm", "it is deflated, but its first .* bytes do not say so")
def a_slice_deflated_by_its_pixels_alone(path):
    dicom(path, b"1.2.840.10008.1.2.1.99".ljust(64))


@kind(".dcm", r"its picture declares \(60000, 50000\), its header 8")
def a_jpeg_ls_larger_than_its_slice(path):
    blob = b"\xff\xd8\xff\xf7" + struct.pack(">HBHHB", 11, 8, 60000, 50000, 1) + bytes(99)
    encapsulated(path, blob, "1.2.840.10008.1.2.4.80")


@kind(".dcm", "its rescale slope or intercept is no finite number")
def a_slope_beyond_all_numbers(path):
    dicom(path, bytes(range(64)), RescaleSlope="1e38", RescaleIntercept="0")


@kind(".dcm", "the limit is 4096")
def a_slice_too_large(path):
    dicom(path, Rows=65535, Columns=65535)


@kind(".dcm", "1000000 frames")
def a_slice_of_a_million_frames(path):
    dicom(path, NumberOfFrames=1_000_000)


@kind(".dcm", "200000 scans|2200252 bytes")
def scans_inside_dicom(path):
    encapsulated(path, progressive(64, 200_000), BASELINE, Rows=64, Columns=64)


@kind(".dcm", "its picture declares 90 scans")
def large_scans_inside_dicom(path):
    encapsulated(path, progressive(2048, 90), BASELINE, Rows=2048, Columns=2048)


@kind(".dcm", "its picture declares")
def a_jpeg_larger_than_its_slice(path):
    encapsulated(path, progressive(4096), BASELINE)


@kind(".dcm", "bytes for 8 × 8 pixels|its picture declares")
def fill_bytes_inside_dicom(path):
    encapsulated(path, b"\xff\xd8" + b"\xff" * 4_000_000 + JPEG[2:], BASELINE)


@kind(".dcm", "its picture declares")
def a_jpeg_2000_larger_than_its_slice(path):
    size = struct.pack(">HHHIIIIIIII", 0xFF51, 41, 0, 60000, 60000, 0, 0, 60000, 60000, 0, 0)
    encapsulated(path, b"\xff\x4f" + size + bytes(100), JPEG2000)


@kind(".dcm", "bytes of runs")
def runs_that_unpack(path):
    runs = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 2_000_000
    encapsulated(path, runs, RUNS, Rows=2000, Columns=2000)


@kind(".dcm", "in more than 1024 parts")
def a_picture_of_many_parts(path):
    item = b"\xfe\xff\x00\xe0\2\0\0\0\0\0"
    pixels = b"\xfe\xff\x00\xe0\0\0\0\0" + item * 50_000 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    dicom(path, pixels, BASELINE, Rows=1000, Columns=1000)


@kind(".dcm", "no pixels in its first|more than 20000 elements")
def a_slice_of_many_elements(path):
    dicom(path)
    content = path.read_bytes()
    at = content.rindex(b"\xe0\x7f\x10\0")
    many = b"".join(struct.pack("<HH2sH", 0x7FDF, i, b"LO", 0) for i in range(0x1010, 0xFFFF)) * 5
    path.write_bytes(content[:at] + many + content[at:])


@kind(".dcm", "recursion|not a DICOM image")
def sequences_that_nest(path):
    dicom(path)
    content = path.read_bytes()
    at = content.rindex(b"\xe0\x7f\x10\0")
    opened = struct.pack("<HH2sHI", 0x7FDF, 0x1010, b"SQ", 0, 0xFFFFFFFF) + (
        b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    )
    path.write_bytes(content[:at] + opened * 50_000 + content[at:])


@kind(".dcm", "not a DICOM image")
def a_slice_without_pixels(path):
    path.write_bytes(bytes(128) + b"DICM" + bytes(1000))


@kind(".dcm", "not a DICOM image|expected one axial slice")
def an_orientation_of_no_numbers(path):
    dicom(path, bytes(range(64)))
    content = path.read_bytes()
    at = content.index(b"DS", content.index(b"\x20\0\x37\0")) + 4
    path.write_bytes(content[:at] + b"nan\\0\\0\\0\\1" + content[at + 11 :])


@kind(".dcm", "no such file|no regular file")
def a_pipe_for_a_slice(path):
    os.mkfifo(path)


# --- the worker and what it finds ---


def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(key))


def read(path):
    """Read a file in every way that there is for it."""
    if path.suffix != ".parquet":
        return read_slice(path, check=False)
    errors = []
    for size in (None, (128, 128)):
        for use in (read_scans, lambda *a, **k: list(iter_batches(*a, **k))):
            try:
                return use([path], size=size, on_error="skip", threads=2)
            except DataError as error:
                errors.append(str(error))
    raise DataError(errors[0])


def work():
    warnings.simplefilter("ignore")
    # What is imported late is no growth.
    import nibabel
    import pydicom

    assert nibabel and pydicom
    for line in sys.stdin:
        path = Path(line.strip())
        faulthandler.dump_traceback_later(4 * HANG_SECONDS, exit=True)
        Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
        before, start = resident("VmRSS"), time.perf_counter()
        try:
            found = ["read", repr(read(path))[:200]]
        except DataError as error:
            found = ["refused", str(error)]
        except BaseException as error:
            found = ["failed", repr(error)[:500]]
        seconds = time.perf_counter() - start
        print(json.dumps([path.name, *found, resident("VmHWM") - before, seconds]), flush=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What reading each file ended in: outcome, message, growth in MB, seconds."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks are read from /proc")
    pytest.importorskip("nibabel")
    pytest.importorskip("pydicom")
    folder, results = tmp_path_factory.mktemp("hostile"), {}
    for name, (function, ending, _) in KINDS.items():
        function(folder / f"{name}{ending}")
    done = subprocess.run(
        [sys.executable, __file__],
        input="\n".join(str(folder / f"{name}{of[1]}") for name, of in KINDS.items()),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ".", "OPENCV_LOG_LEVEL": "OFF"},
    )
    for line in done.stdout.splitlines():
        name, *result = json.loads(line)
        results[name.split(".")[0]] = result
    return results, done.stderr[-2000:], folder


@pytest.mark.parametrize("name", KINDS)
def test_a_hostile_file_is_refused_in_little_time_and_memory(name, found):
    results, stderr, folder = found
    assert name in results, f"the process ended: {stderr}"
    outcome, message, growth, seconds = results[name]
    assert outcome == "refused", message
    assert str(folder / name) in message
    assert re.search(KINDS[name][2], message), message
    assert len(message) < 1500
    assert growth < BOUND_MB
    assert seconds < HANG_SECONDS


if __name__ == "__main__":
    work()


def test_a_footer_of_lists_in_lists_is_refused(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1" + b"\x19" * 5000 + (5000).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(DataError, match="nests deeper than"):
        read_scans(path)
