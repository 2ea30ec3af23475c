"""A process for models of strangers, with a limit of memory and of time, fed and read by arrays.

Static checks cannot foresee all that a network does while it runs. Here it can take no more than
its share, and can end no process but this one. The process starts when it is first needed, serves
one model after another, and is replaced when one misbehaves. It is a wall for networks of Keras'
own layers, and no sandbox for code: that is refused before (`mri.models.archive`).
"""

from __future__ import annotations

import atexit
import gc
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock, Thread
from typing import IO, Any

import numpy as np

from mri._text import for_line
from mri.models.cards import ModelFileError

Facts = dict[str, Any]
Arrays = dict[str, np.ndarray]
Answers = Callable[[Facts, Arrays], Iterator[tuple[Facts, Arrays]]]
"""A function that yields twice: once it has answered for a few slices, and when it has for all."""

Run = Callable[[Answers, Path, Facts, Arrays], tuple[Facts, Arrays]]
"""Where such a function runs: `run_here`, or `Child.run`."""

LIMITS = {"MRI_MODEL_SECONDS": 900.0, "MRI_MODEL_GIB": 6.0}
"""Of one model; environment variables of these names change them."""

_FIRST = 8  # One part in so many of the seconds is for loading and the first slices.
_START, _IDLE = 300.0, 60.0
_MOST_TEXT, _MOST_BYTES = 2**24, 2**33
_KINDS = "<f4", "<i8", "|u1", "|b1"
_OF_MEMORY = "bad_alloc", "OOM", "annot allocate", "out of memory", "ResourceExhausted"


class _Misbehaved(Exception):
    """A model that took too much, or ended the process."""


def run_here(function: Answers, path: Path, facts: Facts, arrays: Arrays) -> tuple[Facts, Arrays]:
    """Return the last that `function` yields, in this process: for the project's own models."""
    *_, last = function(facts, arrays)
    return last


class Child:
    """The process, as its parent sees it.

    Parameters
    ----------
    loads : str
        Module that it imports when it starts; what that takes of memory is not counted.
    """

    def __init__(self, loads: str = "mri._keras") -> None:
        self._lock, self._loads = Lock(), loads
        self._process: subprocess.Popen[bytes] | None = None
        self._used = 0.0

    def run(
        self, function: Answers, path: Path, facts: Facts, arrays: Arrays
    ) -> tuple[Facts, Arrays]:
        """Return the last that `function` yields in the process.

        Parameters
        ----------
        function : callable
            Of a module of this package.
        path : Path
            Of the model file, for messages.
        facts : dict
            JSON-ready.
        arrays : dict of str to ndarray
            Of float32, int64, uint8 or bool.

        Raises
        ------
        ModelFileError
            If `function` raises an error, or takes more time or memory than the limits allow, or
            ends its process.
        """
        with self._lock:
            limits = {name: _limit(name) for name in LIMITS}
            try:
                return self._asked(f"{function.__module__}:{function.__qualname__}",
                                   limits, facts, arrays)  # fmt: skip
            except ModelFileError:
                raise
            except _Misbehaved as error:
                self.end()
                raise ModelFileError(f"{path}: {error}") from None
            except BaseException:
                self.end()
                raise

    def _asked(
        self, function: str, limits: dict[str, float], facts: Facts, arrays: Arrays
    ) -> tuple[Facts, Arrays]:
        if self._process is None or time.monotonic() - self._used > _IDLE / 2:
            self.end()
            self._start()
        told = {"function": function, "facts": facts, "gib": limits["MRI_MODEL_GIB"]}
        # What goes wrong there is seen where the answer is missing.
        self._thread.submit(_send, self._to, told, arrays)
        seconds = limits["MRI_MODEL_SECONDS"]
        for limit in (seconds / _FIRST, seconds):
            found, values = self._received(limit)
            if "error" in found:
                break
        self._used = time.monotonic()
        if "error" not in found:
            return found["facts"], values
        said = for_line(found["error"])
        if found["refused"]:
            raise ModelFileError(said)
        raise _Misbehaved(self._too_large() if _is_of_memory(said) else f"cannot be run ({said})")

    def _received(self, limit: float) -> tuple[Facts, Arrays]:
        try:
            return self._thread.submit(_receive, self._from).result(limit)
        except TimeoutError:
            raise _Misbehaved(
                f"had no answer after {limit:.0f} s, which is its limit, and was stopped. It may "
                "never end. If you trust it, set MRI_MODEL_SECONDS to more than "
                f"{_limit('MRI_MODEL_SECONDS'):.0f}"
            ) from None
        except (OSError, ValueError, TypeError, LookupError):
            raise _Misbehaved(self._how_it_ended()) from None

    def _start(self) -> None:
        home = str(Path(__file__).parents[2])
        self._folder = TemporaryDirectory(prefix="mri-child-")
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._said = Path(self._folder.name, "said.txt")
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mri.models.child", self._loads],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                cwd=self._folder.name,
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": self._folder.name},
            )
        if self._process.stdin is None or self._process.stdout is None:
            raise OSError("no pipes to the process")
        self._to, self._from = self._process.stdin, self._process.stdout
        self._thread = ThreadPoolExecutor(1)
        self._received(_START)

    def _how_it_ended(self) -> str:
        """Return why the process is gone, by its last words and its status."""
        process = self._process
        if process is None:
            return "its process did not start"
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        last = self._said.read_bytes()[-4000:].decode("utf-8", "replace")
        if _is_of_memory(last):
            return self._too_large()
        code = process.returncode
        by = f"exit status {code}" if code is None or code >= 0 else signal.Signals(-code).name
        return f"ended the process in which it was run ({by}); do not use it"

    @staticmethod
    def _too_large() -> str:
        return (
            f"needs more than {_limit('MRI_MODEL_GIB'):g} GiB of memory, which is the limit, and "
            "was stopped. If you trust it, set MRI_MODEL_GIB higher"
        )

    def end(self) -> None:
        """End the process, and remove what it has left."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        self._thread.shutdown()
        for stream in (self._to, self._from):
            with suppress(OSError):
                stream.close()
        self._folder.cleanup()


CHILD = Child()
"""The one of this process: starting it costs the import of TensorFlow."""

atexit.register(CHILD.end)


def _limit(name: str) -> float:
    given = os.environ.get(name, LIMITS[name])
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number above 0. Received: {name}={given!r}")
    return value


def _is_of_memory(said: str) -> bool:
    return any(sign in said for sign in _OF_MEMORY)


def _send(stream: IO[bytes], told: Facts, arrays: Arrays) -> None:
    values = {name: np.ascontiguousarray(of) for name, of in arrays.items()}
    forms = {name: [of.dtype.str, of.shape] for name, of in values.items()}
    head = json.dumps(told | {"arrays": forms}).encode()
    stream.write(len(head).to_bytes(8, "little") + head)
    for of in values.values():
        stream.write(of.tobytes())
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[Facts, Arrays]:
    """Read what `_send` has written; OSError at the end of the stream."""
    told = json.loads(_exactly(stream, int.from_bytes(_exactly(stream, 8), "little"), _MOST_TEXT))
    arrays = {}
    for name, (kind, shape) in told.pop("arrays").items():
        if kind not in _KINDS:
            raise ValueError(f"an array of {kind}")
        size = math.prod(shape) * np.dtype(kind).itemsize
        arrays[name] = np.frombuffer(_exactly(stream, size, _MOST_BYTES), kind).reshape(shape)
    return told, arrays


def _exactly(stream: IO[bytes], size: int, most: int = 8) -> bytes:
    if not 0 <= size <= most:
        raise ValueError(f"{size} bytes")
    found = stream.read(size)
    if len(found) < size:
        raise OSError("ended")
    return found


def _serve() -> None:
    """Answer the parent until it is gone."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Nothing that is printed gets between the answers.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    active = [time.monotonic(), True]
    Thread(target=_end_with, args=(os.getppid(), active), daemon=True).start()
    with suppress(OSError):  # Of Linux: where memory runs out, this process goes first.
        Path("/proc/self/oom_score_adj").write_text("1000")
    import_module(sys.argv[1])
    active[:] = time.monotonic(), False
    _send(sink, {}, {})
    while True:
        try:
            told, arrays = _receive(source)
        except OSError:
            return
        active[:] = time.monotonic(), True
        _answer(sink, told, arrays)
        gc.collect()
        active[:] = time.monotonic(), False


def _answer(sink: IO[bytes], told: Facts, arrays: Arrays) -> None:
    _limit_memory(told["gib"])
    try:
        module, name = told["function"].split(":")
        for facts, values in getattr(import_module(module), name)(told["facts"], arrays):
            _send(sink, {"facts": facts}, values)
    except BaseException as error:
        own = isinstance(error, ModelFileError)
        said = f"{error}" if own else f"{type(error).__name__}: {error}"
        said += " (OOM)" * isinstance(error, MemoryError)
        _send(sink, {"error": said[:100_000], "refused": own and not _is_of_memory(said)}, {})


def _end_with(parent: int, active: list[Any]) -> None:
    """End this process when its parent is gone, or has not asked for a while."""
    while os.getppid() == parent and (active[1] or time.monotonic() - active[0] < _IDLE):
        time.sleep(1)
    os._exit(0)


def _limit_memory(gib: float) -> None:
    """Let this process take so much more than it holds; no limit where there is none to set."""
    try:
        import resource

        status = Path("/proc/self/status").read_text()
    except (ImportError, OSError):
        return
    held = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    # Not of address space, of which TensorFlow reserves far more than it uses.
    most = held * 1024 + int(gib * 2**30)
    for kind, soft in ((resource.RLIMIT_DATA, most), (resource.RLIMIT_CORE, 0),
                       (resource.RLIMIT_FSIZE, 2**32)):  # fmt: skip
        resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    _serve()
