"""Mutated images, mutated files and tables of anything: an array, or an error that says why.

Processes of their own do the work: a crash or a hang of the C libraries is seen and counted,
and the cases behind it are run too. A case depends on its number alone.

``python tests/data/test_fuzz.py`` runs all and prints the counts. Run again, it goes on where
it was interrupted. ``python tests/data/test_fuzz.py KIND CASE`` runs one.
"""

import collections
import faulthandler
import functools
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from mri.data.decode import DataError, dict_to_image
from mri.data.parquet import CLASS_NAMES
from mri.data.scans import iter_batches, read_scans
from mri.evaluation.logits import LogitsTable

HANG_SECONDS, BOUND_MB = 5, 400
ROOT = Path(__file__).resolve().parents[2]
OUTCOMES = {
    "d": "decoded",
    "r": "refused",
    "c": "crash",
    "h": "hang",
    "m": "memory",
    "w": "wrong",
}
"""By the letter that is kept of each case; a crash ends the process, 'wrong' is any other error."""

CASES = {"images": 30_000, "files": 6_000, "footers": 18_000, "logits": 6_000, "tables": 2_000}
SHORT = {"images": 300, "files": 150, "footers": 300, "logits": 100, "tables": 50}


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


COARSE = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
COLOUR = Image.fromarray(cv2.resize(COARSE, (20, 24), interpolation=cv2.INTER_CUBIC))
GRAY = COLOUR.convert("L")
DEEP = Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 257)
JPEGS = {
    "gray": encoded(GRAY, "jpeg"),
    "colour": encoded(COLOUR, "jpeg"),
    "progressive": encoded(COLOUR, "jpeg", progressive=True),
    "CMYK": encoded(COLOUR.convert("CMYK"), "jpeg"),
    "EXIF rotation": encoded(GRAY, "jpeg", exif=rotated()),
}
PNGS = {
    "gray": encoded(GRAY, "png"),
    "colour": encoded(COLOUR, "png"),
    "palette": encoded(COLOUR.quantize(16), "png"),
    "16 bits": encoded(DEEP, "png"),
    "alpha": encoded(COLOUR.convert("RGBA"), "png"),
    "one bit": encoded(GRAY.convert("1"), "png"),
    "animated": encoded(GRAY, "png", save_all=True, append_images=[COLOUR.convert("L")] * 2),
}
OTHERS = {
    "animated GIF": encoded(GRAY, "gif", save_all=True, append_images=[GRAY.rotate(90)]),
    "WebP": encoded(GRAY, "webp"),
    "TIFF": encoded(GRAY, "tiff"),
    "BMP": encoded(GRAY, "bmp"),
    "text": b"a slice of a brain",
    "empty": b"",
    "null": None,
    "bomb": PNGS["gray"][:16] + b"\x7f\xff\xff\xff" * 2 + PNGS["gray"][24:],
    "cut": JPEGS["gray"][:-30],
}


def mutate(data, rng):
    """Change up to four places, half of the time near the ends, where headers and footers are."""
    data = bytearray(data)
    for _ in range(min(4, rng.geometric(0.6))):
        n, kind = len(data), rng.integers(7)
        if not n:
            break
        near = int(rng.integers(min(n, 96)))
        at = [int(rng.integers(n)), int(rng.integers(n)), near, n - 1 - near][rng.integers(4)]
        span = slice(at, at + int(rng.integers(1, 40)))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[span]
        elif kind == 4:
            data[at:at] = data[span]
        elif kind == 5:
            data[at:at] = rng.bytes(span.stop - at)
        else:
            extremes = [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x01", b"\0\0\x10\0"]
            data[at : at + 4] = extremes[rng.integers(5)]
    return bytes(data)


# --- the kinds of cases: each returns its outcome, or raises ---


def images(case, folder):
    """A PNG has checksums: its pixels come back, or it is refused; of a JPEG the size is known."""
    rng = np.random.default_rng((1, case))
    blobs = [*PNGS.items()] if case % 2 else [*JPEGS.items()]
    _, blob = blobs[case // 2 % len(blobs)]
    found = mutate(blob, rng)
    try:
        image = dict_to_image(found)
    except DataError as error:
        assert str(error), "an error says why"
        return "refused"
    assert image.dtype == np.uint8 and image.ndim == 2
    if case % 2:
        np.testing.assert_array_equal(image, dict_to_image(blob))
    else:
        # Of a damaged EXIF the two libraries may think differently: turned or not.
        # What Pillow does not know by its first bytes is within the limit at least.
        assert max(image.shape) <= 4096
        with suppress(OSError), Image.open(io.BytesIO(found)) as header:
            assert image.shape in (header.size, header.size[::-1])
    return "decoded"


def read(path):
    """Read a file and leave out bad rows, or return None where it is refused by name."""
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            return read_scans(path, on_error="skip", threads=1)
    except DataError as error:
        assert str(path) in str(error)
        return None


def files(case, folder):
    """With page checksums every row kept is as it was written; without, no row gets lost."""
    rng, checked = np.random.default_rng((2, case)), case % 2 == 0
    path = Path(folder) / f"case{case}.parquet"
    blobs = [PNGS["gray"], PNGS["colour"], PNGS["palette"], PNGS["16 bits"], PNGS["one bit"]]
    order = rng.integers(5, size=12)
    labels = rng.integers(4, size=12)
    image = pa.array([{"bytes": blobs[i], "path": f"{i}.png"} for i in order])
    table = pa.table({"image": image, "label": labels})
    pq.write_table(table, path, row_group_size=5, write_page_checksum=checked)
    path.write_bytes(mutate(path.read_bytes(), rng))
    if (scans := read(path)) is None:
        return "refused"
    rows = pq.ParquetFile(path).metadata.num_rows
    assert len(scans) + len(scans.rejected) == rows
    assert scans.images.shape == (len(scans), *scans.images.shape[1:])
    assert set(scans.labels.tolist()) <= set(range(len(scans.class_names)))
    if checked:
        kept = np.setdiff1d(np.arange(rows), scans.rejected["row"])
        np.testing.assert_array_equal(scans.labels, labels[kept])
        for pixels, i in zip(scans.images, order[kept], strict=True):
            np.testing.assert_array_equal(pixels, dict_to_image(blobs[i]))
    return "decoded"


@functools.cache
def small_file(labels=(0, 1, 2, 3) * 3):
    table = pa.table({"image": [{"bytes": PNGS["gray"], "path": "a"}] * 12, "label": labels})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=6, write_page_checksum=True)
    return buffer.getvalue()


def footers(case, folder):
    """Every byte of a footer, from its end, in eight ways: no process ends, no row gets lost."""
    content = bytearray(small_file())
    length = int.from_bytes(content[-8:-4], "little") + 8
    at = -1 - (case * 7 // 8) % length
    old = content[at]
    content[at] = [old ^ 1, old ^ 128, 0, 255, (old + 2) % 256, (old - 2) % 256, 127, old ^ 16][
        case % 8
    ]
    path = Path(folder) / f"case{case}.parquet"
    path.write_bytes(content)
    if (scans := read(path)) is None:
        return "refused"
    assert len(scans) + len(scans.rejected) == 12
    return "decoded"


@functools.cache
def small_logits():
    frame = pd.DataFrame(
        {"row": np.arange(9), "subject": np.arange(9) // 3, "label": [0, 1, 2] * 3}
    )
    for i, name in enumerate("abc"):
        frame[f"logit_{name}"] = np.float32(np.arange(9) == i)
    about = {"class_names": list("abc"), "sha256": "0" * 64, "data": "1" * 64, "origin": "slices"}
    about |= {"parameters": 9, "bytes": 99, "milliseconds": [1.0, 2.0]}
    with tempfile.TemporaryDirectory() as folder:
        LogitsTable(frame, about).save(Path(folder, "a.parquet"))
        return Path(folder, "a.parquet").read_bytes()


def logits(case, folder):
    """Kept logits: a table of distinct rows and finite logits, or an error."""
    rng, content = np.random.default_rng((3, case)), small_logits()
    path = Path(folder) / f"case{case}.parquet"
    if case % 2:
        length = int.from_bytes(content[-8:-4], "little") + 8
        content = content[:-length] + mutate(content[-length:], rng)
    else:
        content = mutate(content, rng)
    path.write_bytes(content)
    try:
        found = LogitsTable.read(path)
    except DataError as error:
        assert str(path) in str(error)
        return "refused"
    assert len(set(found.rows.tolist())) == len(found.rows) and found.rows.min() >= 0
    assert np.isfinite(found.logits).all()
    assert set(found.labels.tolist()) <= set(range(len(found.about["class_names"])))
    return "decoded"


BLOBS = [*JPEGS.values(), *PNGS.values()]
ROWS = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from(BLOBS),
            st.sampled_from([*OTHERS.values()]),
            st.binary(max_size=40),
            st.builds(
                lambda blob, seed: mutate(blob, np.random.default_rng(seed)),
                st.sampled_from(BLOBS),
                st.integers(0, 10**6),
            ),
        ),
        st.one_of(st.integers(0, 3), st.sampled_from([-1, 4, 127, None])),
    ),
    max_size=14,
)
TABLES = {
    "rows": ROWS,
    "column": st.sampled_from(
        ["struct", "null struct", "binary", "large", "view", "dictionary", "list", "text"]
    ),
    "label": st.sampled_from([pa.int8(), pa.int64(), pa.int32(), pa.string(), pa.float64()]),
    "group": st.integers(1, 6),
    "names": st.permutations(["image", "label", "extra"]),
    "batch": st.integers(1, 9),
    "size": st.sampled_from([None, (7, 9)]),
}


def expected(rows, size):
    """What a loop over the rows finds: images, labels, rejected row numbers; None if sizes mix."""
    kept, bad, shape = [], [], size
    used = [label for _, label in rows if label is not None and label >= 0]
    # Without a 0 they count from 1 if they reach 4; of more classes no names are known.
    first = int(min(used, default=0) >= 1 and max(used) == len(CLASS_NAMES))
    if min(used, default=0) >= 1 and max(used) > len(CLASS_NAMES):
        return None
    for row, (blob, label) in enumerate(rows):
        try:
            image = dict_to_image(blob, size=size)
        except DataError:
            bad.append(row)
            continue
        shape = shape or image.shape
        if image.shape != shape:
            return None
        if label is None or not 0 <= label - first < len(CLASS_NAMES):
            bad.append(row)
        else:
            kept.append((image, label - first))
    return [image for image, _ in kept], [label for _, label in kept], bad


def check_table(folder, rows, column, label, group, names, batch, size):
    path = Path(folder) / "table.parquet"
    blobs = [blob for blob, _ in rows]
    values = [None if y is None else label.to_pandas_dtype()(y) for _, y in rows]
    kinds = {"large": pa.large_binary(), "view": pa.binary_view()}
    image = pa.array(blobs, kinds.get(column, pa.binary()))
    if column == "struct":
        image = pa.StructArray.from_arrays([image], ["bytes"])
    elif column == "null struct":
        empty = pa.array([blob is None for blob in blobs], pa.bool_())
        image = pa.StructArray.from_arrays([image], ["bytes"], mask=empty)
    elif column == "dictionary":
        image = image.dictionary_encode()
    elif column == "list":
        image = pa.array([None if blob is None else [[blob]] for blob in blobs])
    elif column == "text":  # What a CSV file of bytes holds; it is read as such.
        image = pa.array([None if blob is None else repr(blob) for blob in blobs], pa.string())
    labels = pa.array([None if y is None else str(y) for _, y in rows], pa.string())
    labels = labels if label == pa.string() else pa.array(values, label)
    whole = pa.table({"image": image, "label": labels, "extra": pa.nulls(len(rows))})
    # In two chunks, as tables put together from shards are.
    half = len(rows) // 2
    whole = pa.concat_tables([whole.slice(0, half), whole.slice(half)]).select(names)
    pq.write_table(whole, path, row_group_size=group)
    wrong = column == "list"
    truth = None if wrong else expected(rows, size)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            scans = read_scans(path, size=size, on_error="skip", threads=2)
            options = {"batch_size": batch, "size": size, "on_error": "skip", "threads": 1}
            batches = list(iter_batches(path, **options))
    except DataError as error:
        assert str(path) in str(error)
        assert truth is None or not truth[0], f"{error}, but {len(truth[0])} rows are good"
        return "refused"
    assert truth is not None and truth[0], "a table without a good row, or of mixed sizes, was read"
    np.testing.assert_array_equal(scans.images, truth[0])
    np.testing.assert_array_equal(scans.labels, truth[1])
    assert scans.rejected["row"].tolist() == truth[2]
    assert (scans.rejected["file"] == str(path)).all() and scans.rejected["cause"].all()
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), truth[0])
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), truth[1])
    return "decoded"


# --- the worker ---


def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(key))


def run_tables(start, stop, folder, done):
    """Run a block of tables; Hypothesis draws them from its first number."""

    @seed(start)
    @settings(
        max_examples=stop - start,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(**TABLES)
    def run(**table):
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        done(check_table(folder, **table))

    run()


def work(kind, start, stop, kept):
    """Run cases and append a letter for each to the file `kept`; end at what is no good."""
    before = resident("VmRSS")
    letters = {name: letter for letter, name in OUTCOMES.items()}
    with tempfile.TemporaryDirectory() as folder, open(kept, "ab", buffering=0) as log:

        def done(outcome):
            for path in Path(folder).iterdir():
                path.unlink()
            over = resident("VmHWM") - before > BOUND_MB
            log.write(letters["memory" if over else outcome].encode())
            if over:
                sys.exit("over the bound of memory")

        if kind == "tables":
            run_tables(start, stop, folder, done)
        else:
            for case in range(start, stop):
                faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
                done(globals()[kind](case, folder))
    faulthandler.cancel_dump_traceback_later()
    print(resident("VmHWM") - before)


def run_block(kind, start, stop, kept):
    """Run a block of cases in processes, one after the other; return growth in MB and errors.

    A case that seems to hang gets a second try: on a busy machine, five seconds may pass anyway.
    """
    growth, errors, tried = 0.0, [], -1
    kept.touch()
    while (case := start + kept.stat().st_size) < stop:
        done = subprocess.run(
            [sys.executable, __file__, kind, str(case), str(stop), str(kept)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
            env={"PYTHONPATH": ".", "OPENCV_LOG_LEVEL": "OFF"},
        )
        if done.returncode == 0:
            growth = max(growth, float(done.stdout.splitlines()[-1]))
            break
        failed = start + kept.stat().st_size
        letter = "h" if "Timeout (" in done.stderr else "w" if done.returncode == 1 else "c"
        if "over the bound of memory" in done.stderr:
            errors.append(f"{kind} {failed - 1}: {done.stderr[-300:]}")
        elif letter == "h" and tried != failed:
            tried = failed
        else:
            errors.append(f"{kind} {failed}: {done.stderr[-2000:]}")
            with kept.open("a") as log:
                log.write(letter)
        if kind == "tables" and kept.read_text()[-1:] in "cw":
            break  # The tables behind depend on those before.
    return growth, errors


def fuzz(cases, folder, block=2000, told=None):
    """Run all kinds of cases; return counts, the largest growth in MB, and what went wrong.

    The letters stay in `folder`: what stands there is not run again.
    """
    total, growth, errors = collections.Counter(), 0.0, []
    for kind, n in cases.items():
        for start in range(0, n, block):
            kept = Path(folder, f"{kind}-{start}.txt")
            grown, wrong = run_block(kind, start, min(n, start + block), kept)
            letters = collections.Counter(kept.read_text())
            total.update({f"{kind} {OUTCOMES[of]}": count for of, count in letters.items()})
            growth, errors = max(growth, grown), errors + wrong
        if told:
            counts = {key: count for key, count in sorted(total.items()) if key.startswith(kind)}
            told(f"{counts}, up to {growth:.0f} MB so far")
    return total, growth, errors


def summary(total):
    """What the faults page says: inputs, and those that ended badly."""
    bad = {name: sum(n for key, n in total.items() if key.endswith(f" {name}"))
           for name in ("crash", "hang", "memory", "wrong")}  # fmt: skip
    return {"inputs": sum(total.values()), **bad}


def main():
    """Run all cases and print the counts; go on where an earlier run of this code stopped."""
    code = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted((ROOT / "mri").glob("**/*.py")):
        code.update(path.read_bytes())
    folder = ROOT / "runs" / "fuzz" / code.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    told = functools.partial(print, flush=True)
    total, growth, errors = fuzz(CASES, folder, told=told)
    told(*errors, f"{summary(total)}, up to {growth:.0f} MB", sep="\n")
    return int(bool(errors))


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="resident memory is read from /proc"
)


@pytest.mark.slow
@needs_proc
def test_nine_hundred_mutations_are_read_or_refused(tmp_path):
    total, _, errors = fuzz(SHORT, tmp_path)
    assert errors == []
    assert sum(total.values()) >= 900
    assert all(total[f"{kind} {end}"] for kind in SHORT for end in ("decoded", "refused"))


@needs_proc
@pytest.mark.stress
def test_sixty_thousand_mutations_are_read_or_refused(tmp_path, keep_figures):
    total, growth, errors = fuzz(CASES, tmp_path)
    assert errors == []
    counts = {key.replace(" ", "_"): count for key, count in sorted(total.items())}
    assert summary(total)["inputs"] >= 60_000
    keep_figures("mutated data", **summary(total), **counts, growth_mb=round(growth))


@pytest.mark.slow
@needs_proc
def test_footers_that_once_ended_the_process_do_no_harm(tmp_path):
    """A type, a histogram of levels, the name of a leaf that contradict the schema."""
    for case in (1714, 2932, 2954, 2973, 2980):
        assert run_block("footers", case, case + 1, tmp_path / f"{case}.txt")[1] == []


def faulty(case, folder):
    """Some cases fail, each in a way of its own; the others are refused."""
    way = {3: "abort", 8: "hang", 13: "memory", 18: "error"}.get(case)
    if way == "abort":
        os.abort()
    elif way == "hang":
        faulthandler.dump_traceback_later(0.2, exit=True)
        time.sleep(60)
    elif way == "memory":
        np.ones((BOUND_MB + 50) << 20, np.uint8)
    elif way == "error":
        raise KeyError(case)
    return "refused"


@pytest.mark.slow
@needs_proc
def test_what_goes_wrong_is_counted_and_hides_nothing_behind_it(tmp_path):
    total, _, errors = fuzz({"faulty": 20}, tmp_path, block=15)
    assert summary(total) == {"inputs": 20, "crash": 1, "hang": 1, "memory": 1, "wrong": 1}
    assert total["faulty refused"] == 16
    assert [of.split(":")[0] for of in errors] == [f"faulty {i}" for i in (3, 8, 13, 18)]
    (tmp_path / "faulty-15.txt").write_text("rr")
    again, _, errors = fuzz({"faulty": 20}, tmp_path, block=15)
    assert again == total and [of.split(":")[0] for of in errors] == ["faulty 18"]


# --- named cases that mutation would hardly meet ---


def test_cmyk_is_as_dark_as_its_colours():
    gray = np.asarray(COLOUR.convert("L")).astype(int)
    assert abs(dict_to_image(JPEGS["CMYK"]).astype(int) - gray).mean() < 6


def test_of_an_animated_png_the_first_picture_is_taken():
    np.testing.assert_array_equal(dict_to_image(PNGS["animated"]), np.asarray(GRAY))


@pytest.mark.parametrize("kind", ["animated GIF", "WebP", "TIFF", "BMP"])
def test_what_is_neither_jpeg_nor_png_is_refused(kind):
    with pytest.raises(DataError, match="not a JPEG or PNG image, it begins with"):
        dict_to_image(OTHERS[kind])


@pytest.mark.parametrize("length", [400, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("chunk", [b"IDAT", b"acTL", b"tEXt"])
def test_a_chunk_longer_than_the_image_does_not_reach_opencv(length, chunk, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *a: pytest.fail("it would set that aside"))
    blob = PNGS["gray"]
    cut = blob[:33] + length.to_bytes(4, "big") + chunk + blob[41:]
    with pytest.raises(DataError, match="the image is truncated or corrupt"):
        dict_to_image(cut)


def test_a_page_larger_than_the_file_is_not_set_aside(tmp_path):
    """Its header declares 2 GB: Arrow's buffered reader would take them."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [PNGS["gray"]] * 9, "label": [0] * 9}), path)
    content = bytearray(path.read_bytes())
    before = resident("VmHWM")
    for at in range(5, 14):
        path.write_bytes(content[:at] + b"\x15\xfe\xff\xff\xff\x0f" + content[at:])
        with pytest.raises(DataError, match="damaged parquet data"):
            read_scans(path)
    assert resident("VmHWM") - before < 200


def test_shards_of_different_columns_are_read_as_one(tmp_path):
    image = pa.array([PNGS["gray"]])
    struct = pa.StructArray.from_arrays([image], ["bytes"])
    shards = [
        pa.table({"image": struct, "label": pa.array([0], pa.int8())}),
        pa.table({"label": pa.array([1]), "note": ["x"], "image": image}),
        pa.table({"image": image.dictionary_encode(), "label": pa.array([2], pa.uint16())}),
    ]
    for i, shard in enumerate(shards):
        pq.write_table(shard, tmp_path / f"{i}.parquet")
    with pytest.warns(UserWarning, match="no class names in the data"):
        scans = read_scans(tmp_path)
    np.testing.assert_array_equal(scans.labels, [0, 1, 2])
    np.testing.assert_array_equal(scans.images, [np.asarray(GRAY)] * 3)


if __name__ == "__main__":
    if len(sys.argv) == 5:
        work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    elif len(sys.argv) == 3:
        work(sys.argv[1], int(sys.argv[2]), int(sys.argv[2]) + 1, os.devnull)
    else:
        sys.exit(main())
