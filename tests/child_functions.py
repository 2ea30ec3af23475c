"""What a model may do to the process in which it runs; see tests/models/test_child.py."""

import os
import time

import numpy as np

from mri.models.cards import ModelFileError


def answers(facts, arrays):
    yield {}, {}
    yield {"told": facts, "pid": os.getpid()}, {name: of * 2 for name, of in arrays.items()}


def prints(facts, arrays):
    os.write(1, b"\x08" * 100)
    print("not an answer", flush=True)
    yield from answers(facts, arrays)


def sleeps(facts, arrays):
    time.sleep(1000)
    yield {}, {}


def sleeps_later(facts, arrays):
    yield {}, {}
    time.sleep(1000)


def aborts(facts, arrays):
    os.abort()
    yield {}, {}


def leaves(facts, arrays):
    os._exit(0)
    yield {}, {}


def eats(facts, arrays):
    kept = [np.ones(2**24) for _ in range(100)]
    yield {"kept": len(kept)}, {}


def raises(facts, arrays):
    raise KeyError("\x1b[31m" + "x" * 10**6)
    yield {}, {}


def refuses(facts, arrays):
    raise ModelFileError("m.keras: is no good")
    yield {}, {}


def lies(facts, arrays):
    yield {}, {}
    yield {}, {"objects": np.array([open], object)}
