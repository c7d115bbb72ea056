#!/usr/bin/env python3
"""Lets the linker drop what the library does not use of Swift's standard library.

    slim_runtime.py libswiftCore.a          changes the archive in place
    slim_runtime.py --check object…         fails if one of them needs a type that was taken for unused

Every function of it is marked "retain" (SHF_GNU_RETAIN), which keeps all of them in a program that asks for --gc-sections:
here the marks go, 0.8 MB with them. What is kept besides what is called are the tables by which the runtime finds types and
conformances, and what their records name; records of types that nothing here uses (SIMD vectors, 128-bit integers, coding,
differences of collections, …) get another section name, so that they are no part of the tables and go too. What one section holds stays
as a whole: split_functions.py, which goes before, gives most things one of their own, and what is left of unused types loses its references.
The 64 kB of zeros that the runtime keeps for backtraces (it is told to make none) are no part of the file.
"""
import bisect
import re
import struct
import subprocess
import sys

TABLES = {b"swift5_protocol_conformances", b"swift5_type_metadata", b"swift5_type_metadata_2", b"swift5_protocols"}
# Neither used here nor inside the library by anything but themselves.
UNUSED_TYPES = re.compile(
    rb"SIMD|Float80V|20CollectionDifference|18DiscontiguousSlice|ss8RangeSet|[Kk]eyed\w*Container|CodingKey|EncodingError|DecodingError|8DurationV|15InstantProtocol|16_DebuggerSupport")
# Conformances that only casts look up (mirrors, playgrounds, debuggers' descriptions of what is no text, number or collection).
UNUSED_CONFORMANCES = rb"s(17CustomReflectable|30_CustomPlaygroundQuickLookable|25LosslessStringConvertible)sMc$" \
    rb"|s\w*CVarArg\w*sMc$|^\$s(?!S[SsJqaDhdfN]|Sny)\w*s28CustomDebugStringConvertibles\w*Mc$"
UNUSED = re.compile(UNUSED_TYPES.pattern + rb"|" + UNUSED_CONFORMANCES)
# And what is used, but looked up by nobody: integers of 128 bits, coding of what is kept, what mirrors have inside.
UNUSED_RECORDS = re.compile(UNUSED.pattern + rb"|U?Int128V|S[Ee]s.*Mc$|8AnyIndexV|11AnySequence|13AnyCollection|CollectionBox")
USED = re.compile(rb"U?Int128V|AnyIndex|AnySequence|AnyCollection|CollectionBox")
CODE = (b".text", b".rodata", b".data", b".bss")
RETAIN = 0x200000  # SHF_GNU_RETAIN
HEADER = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr


def text(data, at):
    return bytes(data[at:data.index(b"\0", at)])


def slim(data, base):
    """One object file at `base`; returns how many records are no part of the tables any more."""
    sections_at, = struct.unpack_from("<Q", data, base + 40)
    count, names_index = struct.unpack_from("<HH", data, base + 60)
    first = HEADER.unpack_from(data, base + sections_at)
    count, names_index = count or first[5], first[6] if names_index == 0xFFFF else names_index
    headers = [HEADER.unpack_from(data, base + sections_at + 64 * i) for i in range(count)]
    names = base + headers[names_index][4]
    for index, header in enumerate(headers):
        if header[2] & RETAIN and text(data, names + header[0]).startswith(CODE):
            headers[index] = (*header[:2], header[2] & ~RETAIN, *header[3:])
            HEADER.pack_into(data, base + sections_at + 64 * index, *headers[index])
        if text(data, names + header[0]) == b"swift5_backtrace" and not any(data[base + header[4]:base + header[4] + header[5]]):
            headers[index] = (header[0], 8, *header[2:])  # SHT_NOBITS
            HEADER.pack_into(data, base + sections_at + 64 * index, *headers[index])
    dropped = 0
    for kind, offset, size, link, target in ((h[1], h[4], h[5], h[6], h[7]) for h in headers):
        if kind != 4:  # SHT_RELA
            continue
        section = text(data, names + headers[target][0])
        if section in (b".rodata", b".data"):
            cut(data, base, headers, target, offset, size, link)
        if section not in TABLES:
            continue
        symbol = struct.unpack_from("<Q", data, base + offset + 8)[0] >> 32
        if UNUSED_RECORDS.search(symbol_name(data, base, headers, link, symbol)):
            record = headers[target]
            HEADER.pack_into(data, base + sections_at + 64 * target, record[0] + 1, record[1], record[2] & ~RETAIN, *record[3:])
            dropped += 1
    return dropped


def symbol_name(data, base, headers, table, index):
    symbols = headers[table]
    name, = struct.unpack_from("<I", data, base + symbols[4] + 24 * index)
    return text(data, base + headers[symbols[6]][4] + name)


def cut(data, base, headers, target, offset, size, table):
    """Descriptors and witness tables of what is unused, in a section with others, refer to nothing any more (R_X86_64_NONE)."""
    symbols, unused = headers[table], []
    for index in range(symbols[5] // 24):
        _, kind, _, section, value, length = struct.unpack_from("<IBBHQQ", data, base + symbols[4] + 24 * index)
        name = symbol_name(data, base, headers, table, index) if section == target and kind & 15 == 1 else b""  # STT_OBJECT
        if UNUSED.search(name) and not USED.search(name):
            unused.append((value, value + length))
    unused.sort()
    starts = [start for start, _ in unused]
    for at in range(base + offset, base + offset + size, 24):
        place, = struct.unpack_from("<Q", data, at)
        index = bisect.bisect_right(starts, place) - 1
        if index >= 0 and place < unused[index][1]:
            struct.pack_into("<QQq", data, at, place, 0, 0)


def check(objects):
    """The types taken for unused must be."""
    undefined = subprocess.run(["nm", "-u", *objects], capture_output=True, check=True).stdout.split()
    wrong = sorted({name.decode() for name in undefined if name.startswith(b"$s") and UNUSED_TYPES.search(name)})
    if wrong:
        sys.exit(f"the library uses {len(wrong)} of what scripts/slim_runtime.py drops from Swift's runtime, such as {wrong[0]}: take it out of UNUSED_TYPES")


def main():
    if sys.argv[1] == "--check":
        return check(sys.argv[2:])
    with open(sys.argv[1], "rb") as file:
        data = bytearray(file.read())
    at, dropped = 8, 0
    while at + 60 <= len(data):  # members of an archive
        size = int(data[at + 48:at + 58])
        if data[at + 60:at + 64] == b"\x7fELF":
            dropped += slim(data, at + 60)
        at += 60 + size + size % 2
    if not dropped:  # the library is then larger, and works
        print(f"{sys.argv[1]}: none of the records that were to be dropped; another version of Swift?", file=sys.stderr)
    with open(sys.argv[1], "wb") as file:
        file.write(data)
    print(f"{dropped} records of unused types dropped from {sys.argv[1]}")


if __name__ == "__main__":
    main()
