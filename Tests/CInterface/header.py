"""The header as data: its functions with their parameters, its structs with their fields. Used by the generator of handle tests and by the
ABI gate. Reads what `cc -E` makes of it, so macros and comments are out of the way."""

import re
import subprocess
from typing import NamedTuple

HANDLES = ["context", "tensors", "model", "tokenizer", "dataset", "trainer", "session", "pass"]


class Parameter(NamedTuple):
    type: str  # "const peft_model *"
    name: str

    @property
    def handle(self):
        """The kind of handle it takes; None for anything else (a pointer to a handle is an out-parameter, or a list of them)."""
        found = re.fullmatch(r"(?:const )?peft_(\w+) \*(?:const \*)?", self.type)
        return found[1] if found and found[1] in HANDLES else None

    @property
    def is_handle_list(self):
        return self.type.endswith("*const *") and self.handle is not None

    @property
    def out_handle(self):
        found = re.fullmatch(r"peft_(\w+) \*\*", self.type)
        return found[1] if found else None


class Function(NamedTuple):
    result: str
    name: str
    parameters: list

    @property
    def can_fail(self):
        return bool(self.parameters) and self.parameters[-1].type == "peft_error *"


def preprocessed(path, compiler="cc"):
    text = subprocess.run([compiler, "-E", "-P", "-std=c99", path], capture_output=True, text=True, check=True).stdout
    return text[text.index("typedef struct peft_error"):]  # what comes before are the system's headers


def parse_parameter(text):
    text = " ".join(text.split())
    found = re.fullmatch(r"(.*?)(\w+)", text)
    return Parameter(re.sub(r"\s*\*", " *", found[1]).replace("* *", "**").strip(), found[2])


def functions(path):
    result = []
    for kind, name, parameters in re.findall(r"(?:^|[;}])\s*((?:const )?\w+ \*?)(peft_\w+)\(([^()]*)\)\s*(?=;)", preprocessed(path)):
        parameters = [] if parameters.strip() == "void" else [parse_parameter(p) for p in parameters.split(",")]
        result.append(Function(kind.strip(), name, parameters))
    return result


def structs(path):
    """{name: [field]} of the structs whose fields are public."""
    result = {}
    for name, body in re.findall(r"typedef struct (peft_\w+) \{(.*?)\} \1;", preprocessed(path), re.S):
        fields = []
        for line in body.split(";"):
            fields += re.findall(r"(\w+)(?:\[\d+\])?\s*(?:,|$)", line.strip())
        result[name] = fields
    return result
