"""The leakage report as one page for a browser, with the twins side by side."""

from __future__ import annotations

import base64
from html import escape

import cv2
import numpy as np

from mri.data.scans import Scans
from mri.subjects.leakage import Audit

SHOWN = 12
"""Pairs of twins on the page."""

_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:right;"
    "border-bottom:1px solid #ddd}tbody th{text-align:left;font-weight:normal}"
    ".verdict{font-size:1.3em;font-weight:bold}figure{display:inline-block;margin:0 1em 1em 0}"
    "img{image-rendering:auto;width:160px}figcaption{font-size:.85em}"
)


def audit_html(found: Audit, train: Scans, test: Scans | None = None, *, compared: str = "") -> str:
    """Return a page of HTML of an audit of `train` and `test`: verdict, figures, twins.

    `compared` says after the verdict which parts these are.
    """
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Leakage report</title>"
        f"<style>{_STYLE}</style><h1>Leakage report</h1>"
        f"<p class='verdict {found.status}'>{escape(found.verdict + compared)}</p>"
    )
    page += "".join(found.shown("to_html"))
    if test is not None:
        page += "<h2>Test slices and their twins in the train part</h2>"
        order = np.argsort(-np.nan_to_num(found.correlations, nan=-1), kind="stable")
        for i in order[:SHOWN].tolist():
            pair = (("test", test, i), ("train", train, int(found.twins[i])))
            names = [f"{side} {row}: {of.class_names[of.labels[row]]}" for side, of, row in pair]
            caption = escape(" · ".join([*names, f"r = {found.correlations[i]:.3f}"]))
            pictures = " ".join(_picture(of.images[row]) for _, of, row in pair)
            page += f"<figure>{pictures}<figcaption>{caption}</figcaption></figure>"
    return f"{page}</html>"


def _picture(image: np.ndarray) -> str:
    data = base64.b64encode(cv2.imencode(".png", image)[1].tobytes()).decode()
    return f"<img alt='slice' src='data:image/png;base64,{data}'>"
