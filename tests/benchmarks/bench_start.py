"""`import mri`, beside `import tensorflow`; each in a new process."""

from harness import child, clock, main, row

CLOCK = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"


def measure(quick: bool) -> list[dict]:
    imports = {
        "mri": "import mri",
        "reading": "from mri import read_scans",
        "tensorflow": "import tensorflow",
    }
    seconds = {name: [] for name in imports}
    for _ in range(2 if quick else 6):
        for name, code in imports.items():
            seconds[name].append(float(child(CLOCK.format(code))))
    # The first round has the files read from disk.
    mri, reading, tensorflow = (of[1:] for of in seconds.values())
    return [
        row(
            *("`import mri`", "`import tensorflow`", mri, "s"),
            at_most=0.5,
            note=f"against {clock(tensorflow)}",
        ),
        row("`from mri import read_scans`", "`import tensorflow`", reading, "s", at_most=0.7),
    ]


if __name__ == "__main__":
    main("start", measure)
