"""The binding calls what the header declares: every function, with as many arguments, and structs of the same layout."""

import ctypes
import re

from conftest import ROOT
from peftswift import _library as library

HEADER = re.sub(r"/\*.*?\*/", "", (ROOT / "include" / "peftswift.h").read_text(), flags=re.S)
FUNCTIONS = dict(re.findall(r"^(?:const )?[a-z0-9_]+ \**(peft_\w+)\(([^;]*)\);", HEADER, flags=re.M))


def test_every_function_is_bound():
    assert set(FUNCTIONS) == set(library.FUNCTIONS) | set(library.PLAIN) and len(FUNCTIONS) > 70


def test_as_many_arguments():
    for name, text in FUNCTIONS.items():
        declared = 0 if text.strip() == "void" else text.count(",") + 1
        bound = len(library.FUNCTIONS[name]) + 1 if name in library.FUNCTIONS else len(library.PLAIN[name][1])
        assert bound == declared, f"{name}({text})"


def test_structs():
    """abi/layout.txt is what a C compiler makes of the header."""
    layout = (ROOT / "abi" / "layout.txt").read_text().splitlines()
    structs = {"peft_error": library.ErrorRecord, "peft_context_options": library.ContextOptions, "peft_model_options": library.ModelOptions,
               "peft_array": library.ArrayView, "peft_step": library.Step, "peft_training_progress": library.Progress}
    for name, ours in structs.items():
        assert f"sizeof({name}) {ctypes.sizeof(ours)}" in layout
        for field, *_ in ours._fields_:
            assert f"{name}.{field} {getattr(ours, field).offset}" in layout
