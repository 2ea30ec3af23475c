"""Who is who.

`recovery` finds the people in the pixels, `splits` divides slices without tearing a person in two,
and `leakage` measures how much of an accuracy is only recognition of people, by `probes` that know
nothing of anatomy and the `likeness` of all pairs of slices.
"""

from mri import _face

__getattr__, __dir__, __all__ = _face(
    __name__,
    {
        "audit_page": "audit_html",
        "leakage": "Audit audit checklist",
        "probes": "linear_probe shuffle_diagnoses",
        "recovery": "Subjects UnclearSubjectsError order_slices recover_subjects",
        "splits": "DataLeakageError Split check_disjoint image_split subject_split",
    },
)
