"""Who is who.

`recovery` finds the people in the pixels, `splits` divides slices without tearing a person in two,
and `leakage` measures how much of an accuracy is only recognition of people. It does so by `probes`
that know nothing of anatomy, and by the `likeness` of all pairs of slices. `person` prepares all
slices of a person, and `template` registers them to a mean brain.
"""

from mri import _face

__getattr__, __dir__, __all__ = _face(
    __name__,
    {
        "audit_page": "audit_html",
        "leakage": "Audit audit checklist",
        "linking": "UnclearSubjectsError",
        "person": "Person Tones people_tones person_tones prepare_people prepare_person",
        "probes": "linear_probe shuffle_diagnoses",
        "recovery": "Subjects order_slices recover_subjects",
        "splits": "DataLeakageError Split check_disjoint image_split subject_split",
        "template": "Template make_template read_template",
    },
)
