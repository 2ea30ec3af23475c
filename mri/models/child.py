"""A process for models of strangers, with a limit of memory and of time, fed and read by arrays.

Static checks cannot foresee all that a network does while it runs. Here it can take no more than
its share, and can end no process but this one. The process starts when it is first needed, serves
one model after another, and is replaced when one misbehaves. It is a wall for networks of Keras'
own layers, and no sandbox for code: that is refused before (`mri.models.archive`).
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from threading import Event, RLock, Thread, Timer
from typing import Any

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
_MOST_BYTES = 2**33
_OF_MEMORY = "bad_alloc", "OOM", "annot allocate", "out of memory", "ResourceExhausted"


_TOO_SLOW = (
    "had no answer after {:.0f} s, which is its limit, and was stopped. It may never end. If you "
    "trust it, set MRI_MODEL_SECONDS to more than {:.0f}"
)
_TOO_LARGE = (
    "needs more than {:g} GiB of memory, which is the limit, and was stopped. If you trust it, set "
    "MRI_MODEL_GIB higher"
)


class _Misbehaved(Exception):
    """A model that took too much, or ended the process."""


def run_here(function: Answers, path: Path, facts: Facts, arrays: Arrays) -> tuple[Facts, Arrays]:
    """Return the last that `function` yields, in this process: for the project's own models."""
    *_, last = function(facts, arrays)
    return last


class Child:
    """The process, as its parent sees it.

    It imports the module `loads` when it starts; what that takes of memory is not counted.
    """

    def __init__(self, loads: str = "mri._keras") -> None:
        self._lock, self._loads, self._idle = RLock(), loads, Timer(0, self.end)
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def start(self) -> None:
        """Let the process begin to start, if there is none; `run` waits until it is ready."""
        with self._lock:
            if self._process is None:
                self._open()
                self._wait_for_more()

    def run(
        self, function: Answers, path: Path, facts: Facts, arrays: Arrays
    ) -> tuple[Facts, Arrays]:
        """Return the last that `function`, of a module of this package, yields in the process.

        `path` is of the model file, for messages; `facts` are JSON-ready, `arrays` of numbers.

        Raises
        ------
        ModelFileError
            If `function` raises an error, or takes more time or memory than the limits allow, or
            ends its process.
        """
        with self._lock:
            self._idle.cancel()
            seconds, gib = map(_limit, LIMITS)
            told = {"function": f"{function.__module__}:{function.__qualname__}", "gib": gib}
            try:
                process = self._process or self._open()
                if not self._ready:
                    with self._within(process, _START):
                        _receive(process.stdout)
                    self._ready = True
                with self._within(process, seconds / _FIRST):
                    _send(process.stdin, told | {"facts": facts}, arrays)
                    found, values = _receive(process.stdout)
                if "error" not in found:
                    with self._within(process, seconds):
                        found, values = _receive(process.stdout)
                if said := for_line(found.get("error", "")):
                    if found["refused"]:
                        raise ModelFileError(said)
                    large = _is_of_memory(said)
                    raise _Misbehaved(
                        _TOO_LARGE.format(gib) if large else f"cannot be run ({said})"
                    )
            except ModelFileError:
                raise
            except _Misbehaved as error:
                self.end()
                raise ModelFileError(f"{path}: {error}") from None
            except BaseException:
                self.end()
                raise
            finally:
                self._wait_for_more()
            return found["facts"], values

    def _wait_for_more(self) -> None:
        """End the process if nothing more is asked for in a while."""
        self._idle.cancel()
        self._idle = Timer(_IDLE, self.end)
        self._idle.daemon = True
        self._idle.start()

    def _open(self) -> subprocess.Popen[bytes]:
        self._folder = mkdtemp(prefix="mri-child-")
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        places = {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": self._folder}
        try:
            with Path(self._folder, "said.txt").open("wb") as said:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "mri.models.child", self._loads],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    cwd=self._folder,
                    env=os.environ | places,
                )
        except OSError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._ready = False
        return self._process

    @contextmanager
    def _within(self, process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
        """Kill the process if the block takes longer; say why it ended where the block fails."""
        over = Event()

        def stop() -> None:
            over.set()
            process.kill()

        timer = Timer(seconds, stop)
        timer.start()
        try:
            yield
        except (OSError, ValueError, TypeError, LookupError):
            limit = _limit("MRI_MODEL_SECONDS")
            slow = _TOO_SLOW.format(seconds, limit)
            raise _Misbehaved(slow if over.is_set() else self._end_of(process)) from None
        finally:
            timer.cancel()

    def _end_of(self, process: subprocess.Popen[bytes]) -> str:
        """Return why the process is gone, by its last words and its status."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        last = Path(self._folder, "said.txt").read_bytes()[-4000:].decode("utf-8", "replace")
        if _is_of_memory(last):
            return _TOO_LARGE.format(_limit("MRI_MODEL_GIB"))
        code = process.returncode
        by = f"exit status {code}" if code is None or code >= 0 else signal.Signals(-code).name
        return f"ended the process in which it was run ({by}); do not use it"

    def end(self) -> None:
        """End the process, and remove what it has left."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                with suppress(OSError), process:
                    process.kill()
                shutil.rmtree(self._folder, ignore_errors=True)


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


def _send(stream: Any, told: Facts, arrays: Arrays) -> None:
    """Write arrays and, as the last of them, JSON."""
    packed = io.BytesIO()
    np.savez(packed, *arrays.values(), np.frombuffer(json.dumps([told, [*arrays]]).encode(), "u1"))
    stream.write(packed.tell().to_bytes(8, "little"))
    stream.write(packed.getbuffer())
    stream.flush()


def _receive(stream: Any) -> tuple[Facts, Arrays]:
    """Read what `_send` has written; OSError at the end of the stream, ValueError of a pickle."""
    size = int.from_bytes(stream.read(8), "little")
    content = stream.read(size) if size <= _MOST_BYTES else b""
    if not content or len(content) < size:
        raise OSError("ended")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        *values, told = (file[f"arr_{i}"] for i in range(len(file.files)))
    facts, names = json.loads(told.tobytes())
    return facts, dict(zip(names, values, strict=True))


def _serve() -> None:
    """Answer the parent until it is gone."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Nothing that is printed gets between the answers.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with suppress(OSError):  # Of Linux: where memory runs out, this process goes first.
        Path("/proc/self/oom_score_adj").write_text("1000")
    import_module(sys.argv[1])
    gc.freeze()  # To look through all that was imported takes a quarter of a second a model.
    _send(sink, {}, {})
    with suppress(OSError):
        while True:
            _answer(sink, *_receive(source))
            gc.collect()


def _answer(sink: Any, told: Facts, arrays: Arrays) -> None:
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


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, even in the middle of an answer."""
    while os.getppid() == parent:
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
