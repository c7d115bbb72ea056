#!/usr/bin/env python3
"""The ABI gate: the library, the header, abi/symbols.txt and abi/layout.txt must agree.

    abi.py build/libpeftswift.so.1            checks; says what differs, status 1 then
    abi.py build/libpeftswift.so.1 --record   writes down what is new (what was written down before never changes)

abi/symbols.txt   every function and the version it is in since: a released function stays for ever.
abi/layout.txt    sizes and offsets of public structs and the values of constants: they only ever grow at the end.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from header import functions, preprocessed, structs

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "include/peftswift.h"
SYMBOLS, LAYOUT = ROOT / "abi/symbols.txt", ROOT / "abi/layout.txt"


def version():
    text = HEADER.read_text()
    return ".".join(re.search(rf"#define PEFT_VERSION_{part} (\d+)", text)[1] for part in ("MAJOR", "MINOR"))


def exported(library):
    """What the library gives out: (our functions, everything else)."""
    lines = subprocess.run(["nm", "-D", "--defined-only", "--format=posix", library], capture_output=True, text=True, check=True).stdout.splitlines()
    names = {line.split()[0].split("@")[0] for line in lines if line.split()[1] not in "Aa"}  # A: the version node itself
    return {n for n in names if n.startswith("peft_")}, {n for n in names if not n.startswith("peft_")}


def layout():
    """'name value' for every struct, field and constant, as a C compiler sees them."""
    constants = re.findall(r"^#define (PEFT_\w+) +\(?-?\d", HEADER.read_text(), re.M)
    lines = [f'  printf("{name} %d\\n", (int){name});' for name in constants if not name.startswith("PEFT_VERSION")]
    for struct, fields in structs(HEADER).items():
        lines.append(f'  printf("sizeof({struct}) %d\\n", (int)sizeof({struct}));')
        lines += [f'  printf("{struct}.{field} %d\\n", (int)offsetof({struct}, {field}));' for field in fields]
    program = '#include "peftswift.h"\n#include <stdio.h>\nint main(void) {\n' + "\n".join(lines) + "\n  return 0;\n}\n"
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "layout.c", Path(folder) / "layout"
        source.write_text(program)
        subprocess.run(["cc", "-std=c99", f"-I{HEADER.parent}", source, "-o", binary], check=True)
        output = subprocess.run([binary], capture_output=True, text=True, check=True).stdout
    return dict(line.rsplit(" ", 1) for line in output.splitlines())


def recorded(path):
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))


def main():
    library, record = sys.argv[1], "--record" in sys.argv
    problems = []
    in_header = {f.name for f in functions(HEADER)}
    in_library, strangers = exported(library)
    since, places, now = recorded(SYMBOLS), recorded(LAYOUT), layout()

    problems += [f"{n} is in the header and not in the library" for n in sorted(in_header - in_library)]
    problems += [f"{n} is in the library and not in the header" for n in sorted(in_library - in_header)]
    problems += [f"{n} was released and is gone" for n in sorted(set(since) - in_header)]
    problems += [f"the library gives out {len(strangers)} symbols that are not ours, such as {n}" for n in sorted(strangers)[:1]]
    problems += [f"{n} was {v} and is {now.get(n, 'gone')}" for n, v in places.items() if now.get(n) != v and not (n.startswith("sizeof(") and int(now.get(n, 0)) > int(v))]
    # What a struct, a compiler and LuaJIT's ffi.cdef must be able to read: no value types without a fixed width.
    problems += [f"'{word}' has no fixed width on all compilers" for word in ("bool", "long", "enum", "unsigned int") if re.search(rf"\b{word}\b", preprocessed(HEADER))]

    if record and not problems:
        since.update({n: version() for n in in_header - set(since)})
        SYMBOLS.write_text("# function, version it is in since\n" + "".join(f"{n} {v}\n" for n, v in sorted(since.items())))
        LAYOUT.write_text("# name, bytes or value (x86-64)\n" + "".join(f"{n} {v}\n" for n, v in now.items()))
    else:
        problems += [f"{n} is not in {SYMBOLS.relative_to(ROOT)} (record it: {Path(__file__).name} LIBRARY --record)" for n in sorted(in_header - set(since))]
        problems += [f"{n} is not in {LAYOUT.relative_to(ROOT)} as it is now" for n in now if n not in places or places[n] != now[n]]
    for problem in problems:
        print(f"  {problem}")
    print(f"abi: {len(in_library)} functions, {len(structs(HEADER))} structs, {len(problems)} problems")
    return int(bool(problems))


sys.exit(main())
