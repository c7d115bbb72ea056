#!/usr/bin/env python3
"""Lets the linker drop what the library does not use of Swift's standard library.

    slim_runtime.py libswiftCore.a          changes the archive in place

Every function of it is marked "retain" (SHF_GNU_RETAIN), which keeps all of them in a program that asks for --gc-sections:
here the marks go, 0.8 MB with them. What is kept besides what is called are the tables by which the runtime finds types and
conformances, and what their records name; records of types that nothing here uses (SIMD vectors, 128-bit integers, coding,
differences of collections) get another section name, so that they are no part of the tables and go too. Such a type would
still work where it is used directly; only looking its conformances up at run time would not find them.
"""
import re
import struct
import sys

TABLES = {b"swift5_protocol_conformances", b"swift5_type_metadata", b"swift5_type_metadata_2"}
UNUSED = re.compile(rb"SIMD|U?Int128V|20CollectionDifference|S[Ee]s.*Mc$")
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
    dropped = 0
    for kind, offset, link, target in ((h[1], h[4], h[6], h[7]) for h in headers):
        if kind != 4 or text(data, names + headers[target][0]) not in TABLES:  # SHT_RELA
            continue
        symbol = struct.unpack_from("<Q", data, base + offset + 8)[0] >> 32
        symbols = headers[link]
        name, = struct.unpack_from("<I", data, base + symbols[4] + 24 * symbol)
        if UNUSED.search(text(data, base + headers[symbols[6]][4] + name)):
            record = headers[target]
            HEADER.pack_into(data, base + sections_at + 64 * target, record[0] + 1, record[1], record[2] & ~RETAIN, *record[3:])
            dropped += 1
    return dropped


def main():
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
