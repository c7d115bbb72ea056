#!/usr/bin/env python3
"""Gives each function of an object file's .text, and each object of its .data.rel.ro, a section of its own, so that a linker with
--gc-sections can drop them.

    split_functions.py Swift.o          changes the file in place (x86-64)

Swift's standard library comes with half of its functions in one section, which stays as a whole as soon as one of them is used: half a
megabyte of this library. Nothing is moved: the new sections are pieces of the old one. What pointed into it points to a piece now:

- references of other sections: a piece's symbol and an offset;
- branches and addresses that the assembler has resolved within the section (objdump finds them) become relocations; functions that a branch
  of two bytes joins stay together;
- jump tables, which lie side by side in .rodata and would keep every function that has one: each gets a section of its own, a copy.

Whatever is not understood ends this with an error and leaves the file as it was.
"""
import bisect
import re
import struct
import subprocess
import sys

HEADER, SYMBOL, RELOCATION = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ"), struct.Struct("<QQq")
PC32 = 2  # R_X86_64_PC32: symbol + addend − place
NAME, TYPE, FLAGS, OFFSET, SIZE, LINK, INFO = 0, 1, 2, 4, 5, 6, 7  # of a section header
CODE, RETAIN = 4, 0x200000  # SHF_EXECINSTR, SHF_GNU_RETAIN


class ObjectFile:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = bytearray(file.read())
        at, = struct.unpack_from("<Q", self.data, 40)
        count, names = struct.unpack_from("<HH", self.data, 60)
        self.headers = [list(HEADER.unpack_from(self.data, at + 64 * i)) for i in range(count)]
        names = self.headers[names][OFFSET]
        self.names = [bytes(self.data[names + h[NAME]:self.data.index(b"\0", names + h[NAME])]) for h in self.headers]
        self.table = next(i for i, h in enumerate(self.headers) if h[TYPE] == 2)
        table = self.headers[self.table]
        self.symbols = [list(SYMBOL.unpack_from(self.data, table[OFFSET] + 24 * i)) for i in range(table[SIZE] // 24)]
        self.local_count = table[INFO]
        self.new_symbols = []
        self.relocations = {h[INFO]: i for i, h in enumerate(self.headers) if h[TYPE] == 4}

    def relocations_of(self, section):
        h = self.headers[self.relocations[section]]
        return [RELOCATION.unpack_from(self.data, at) for at in range(h[OFFSET], h[OFFSET] + h[SIZE], 24)]

    def append(self, content):
        self.data += b"\0" * (-len(self.data) % 8)
        self.data += content
        return len(self.data) - len(content)

    def add_section(self, like, offset, size, alignment):
        name, kind, flags = self.headers[like][:3]
        self.headers.append([name, kind, flags & ~RETAIN, 0, offset, size, 0, 0, alignment, 0])
        return len(self.headers) - 1

    def add_relocations(self, section, like, entries):
        name, kind, flags = self.headers[self.relocations[like]][:3]
        content = b"".join(RELOCATION.pack(*entry) for entry in sorted(entries))
        self.headers.append([name, kind, flags, 0, self.append(content), len(content), self.table, section, 8, 24])

    def replace(self, section, starts, first):
        """The pieces from section `first` on, which begin at `starts`, take the section's place; nothing is left in it."""
        self.headers[section][SIZE] = self.headers[self.relocations[section]][SIZE] = 0
        for s in self.symbols:
            if s[3] == section and s[1] & 15 != 3:
                index = bisect.bisect_right(starts, s[4]) - 1
                s[3], s[4] = first + index, s[4] - starts[index]

    def add_section_symbol(self, section):
        """Its number for now; `write` puts it among the local symbols."""
        self.new_symbols.append([0, 3, 0, section, 0, 0])
        return len(self.symbols) + len(self.new_symbols) - 1

    def write(self, path):
        added = len(self.new_symbols)

        def renumbered(symbol):
            if symbol >= len(self.symbols):
                return symbol - len(self.symbols) + self.local_count
            return symbol + added if symbol >= self.local_count else symbol

        for h in self.headers:
            for at in range(h[OFFSET], h[OFFSET] + h[SIZE], 24) if h[TYPE] == 4 else ():
                place, info, addend = RELOCATION.unpack_from(self.data, at)
                RELOCATION.pack_into(self.data, at, place, renumbered(info >> 32) << 32 | info & 0xffffffff, addend)
        symbols = self.symbols[:self.local_count] + self.new_symbols + self.symbols[self.local_count:]
        table = self.headers[self.table]
        table[OFFSET], table[SIZE], table[INFO] = self.append(b"".join(SYMBOL.pack(*s) for s in symbols)), 24 * len(symbols), self.local_count + added
        if len(self.headers) >= 0xff00:
            sys.exit(f"{path}: {len(self.headers)} sections; {0xff00 - 1} can be numbered")
        at = self.append(b"".join(HEADER.pack(*h) for h in self.headers))
        struct.pack_into("<Q", self.data, 40, at)
        struct.pack_into("<H", self.data, 60, len(self.headers))
        with open(path, "wb") as file:
            file.write(self.data)


def resolved_references(path, file, text, places):
    """(place, target) of displacements in four bytes that have no relocation, (low, high) of branches in two bytes, places of computed jumps."""
    output = subprocess.run(["objdump", "-d", "-w", "--no-show-raw-insn", "-j", ".text", path], stdout=subprocess.PIPE, text=True, check=True).stdout
    lines = [(int(m[1], 16), m[2]) for m in re.finditer(r"^\s*([0-9a-f]+):\t(.*)$", output, re.M)]
    base, near, short, jumping = file.headers[text][OFFSET], [], [], []
    for (begin, body), (after, _) in zip(lines, lines[1:] + [(file.headers[text][SIZE], "")]):
        if re.match(r"(?:notrack )?jmp +\*%", body):
            jumping.append(begin)
        match = re.search(r"^(?:\S+ )*?(?:call|jmp|j[a-z]+)\s+([0-9a-f]+)(?: <|$)", body) or re.search(r"# ([0-9a-f]+)(?: <|$)", body)
        index = bisect.bisect_left(places, begin)
        if not match or index < len(places) and places[index] < after:
            continue
        target, opcode = int(match[1], 16), file.data[base + begin]
        if opcode in (0xeb, 0xe3) or 0x70 <= opcode < 0x80:
            short.append((min(begin, target), max(begin, target)))
        elif after + struct.unpack_from("<i", file.data, base + after - 4)[0] == target:
            near.append((after - 4, target))
        else:
            sys.exit(f"{path}: not understood at {begin:#x}: {body}")
    return near, short, jumping


def split(path):
    file = ObjectFile(path)
    text = max((i for i, name in enumerate(file.names) if name == b".text"), key=lambda i: file.headers[i][SIZE])
    functions = {}  # where they begin: a symbol
    for index, (_, info, _, section, value, _) in enumerate(file.symbols):
        if section == text and info & 15 == 2:
            functions.setdefault(value, index)
    starts, end = sorted(functions), file.headers[text][SIZE]

    def piece(offset):
        return bisect.bisect_right(starts, offset) - 1

    own = file.relocations_of(text)
    near, short, jumping = resolved_references(path, file, text, sorted(place for place, _, _ in own))
    joined = {start for low, high in short for start in starts[piece(low) + 1:piece(high) + 1]}
    starts = [start for start in starts if start not in joined]
    jumping = {piece(place) for place in jumping}
    section_symbols = {s[3]: i for i, s in enumerate(file.symbols) if s[1] & 15 == 3}

    def moved(target, bias):
        """Symbol and addend for what was .text + target."""
        start = starts[piece(target)]
        return functions[start], target - start + bias

    pieces = [[] for _ in starts]
    tables = {}  # section: {where its code's address is taken: pieces that take it}
    for place, info, addend in own:
        symbol, index = info >> 32, piece(place)
        section = file.symbols[symbol][3]
        if symbol == section_symbols.get(text):
            sys.exit(f"{path}: .text refers to itself at {place:#x}")
        if symbol == section_symbols.get(section) and info & 0xffffffff == PC32:
            tables.setdefault(section, {}).setdefault(addend + 4, set()).add(index)
        pieces[index].append((place - starts[index], info, addend))
    for place, target in near:
        index = piece(place)
        if index != piece(target):
            symbol, addend = moved(target, -4)
            pieces[index].append((place - starts[index], symbol << 32 | PC32, addend))

    jumps = {}  # (section, where, piece): entries
    for section, index in file.relocations.items():
        if section == text:
            continue
        kept = {place: (at, info, addend) for at, (place, info, addend) in enumerate(file.relocations_of(section)) if info >> 32 == section_symbols[text]}
        base = file.headers[index][OFFSET]
        for begin, owners in tables.get(section, {}).items():
            # A jump table: one function takes its address and jumps to what it computes; entry after entry counts from the table into
            # the middle of that function.
            (owner, *others), place, entries = owners, begin, []
            while owner in jumping and not others and place in kept and kept[place][1] & 0xffffffff == PC32 and (place == begin or place not in tables[section]):
                target = kept[place][2] - (place - begin)
                if piece(target) != owner or target in functions:
                    break
                entries.append((place - begin, functions[starts[owner]] << 32 | PC32, kept[place][2] - starts[owner]))
                place += 4
            for offset, _, _ in entries:
                RELOCATION.pack_into(file.data, base + 24 * kept.pop(begin + offset)[0], begin + offset, 0, 0)
            if entries:
                jumps[section, begin, owner] = entries
        bias = -4 if file.headers[section][FLAGS] & CODE else 0
        for place, (at, info, addend) in kept.items():
            target = addend - bias
            if target % 16 and target not in functions:
                sys.exit(f"{path}: {file.names[section].decode()} refers to {target:#x} in .text, where nothing begins")
            symbol, addend = moved(target, bias)
            RELOCATION.pack_into(file.data, base + 24 * at, place, symbol << 32 | info & 0xffffffff, addend)

    for (section, begin, owner), entries in jumps.items():
        size = entries[-1][0] + 4
        copy = file.add_section(section, file.append(bytes(size)), size, 4)
        file.add_relocations(copy, section, entries)
        symbol = file.add_section_symbol(copy)
        old = (section_symbols[section] << 32 | PC32, begin - 4)
        pieces[owner] = [(place, symbol << 32 | PC32, -4) if (info, addend) == old else (place, info, addend) for place, info, addend in pieces[owner]]
    first = len(file.headers)
    for start, after in zip(starts, starts[1:] + [end]):
        file.add_section(text, file.headers[text][OFFSET] + start, after - start, min(16, start & -start) or 16)
    for index, entries in enumerate(pieces):
        if entries:
            file.add_relocations(first + index, text, entries)
    file.replace(text, starts, first)
    objects = split_objects(file, b".data.rel.ro")
    file.write(path)
    print(f"{path}: {len(starts)} pieces with {len(jumps)} jump tables, {objects} of data")


def split_objects(file, name):
    """The same for a section of data that relocations alone connect (metadata, witness tables); returns the number of pieces."""
    section = max((i for i, n in enumerate(file.names) if n == name), key=lambda i: file.headers[i][SIZE])
    extents = sorted((s[4], s[4] + s[5]) for s in file.symbols if s[3] == section and s[1] & 15 == 1)
    starts, end, values = [0], 0, {start for start, _ in extents}
    for start, after in extents:
        if start >= end and start:
            starts.append(start)
        end = max(end, after)

    def piece(offset):
        return bisect.bisect_right(starts, offset) - 1

    symbol = next(i for i, s in enumerate(file.symbols) if s[3] == section and s[1] & 15 == 3)
    users = []
    for h in file.headers:
        bias = -4 if h[TYPE] == 4 and file.headers[h[INFO]][FLAGS] & CODE else 0
        for at in range(h[OFFSET], h[OFFSET] + h[SIZE], 24) if h[TYPE] == 4 else ():
            place, info, addend = RELOCATION.unpack_from(file.data, at)
            if info >> 32 == symbol:
                users.append((at, place, info & 0xffffffff, addend, addend - bias))
                if bias and addend - bias not in values:  # an immediate value follows the address: it is up to four bytes further on
                    starts = [start for start in starts if not addend - bias < start <= addend - bias + 4]
    first = len(file.headers)
    for start, after in zip(starts, starts[1:] + [file.headers[section][SIZE]]):
        file.add_section(section, file.headers[section][OFFSET] + start, after - start, min(16, start & -start) or 16)
    symbols = [file.add_section_symbol(first + index) for index in range(len(starts))]
    for at, place, kind, addend, target in users:
        RELOCATION.pack_into(file.data, at, place, symbols[piece(target)] << 32 | kind, addend - starts[piece(target)])
    pieces = [[] for _ in starts]
    for place, info, addend in file.relocations_of(section):
        pieces[piece(place)].append((place - starts[piece(place)], info, addend))
    for index, entries in enumerate(pieces):
        if entries:
            file.add_relocations(first + index, section, entries)
    file.replace(section, starts, first)
    return len(starts)


if __name__ == "__main__":
    split(sys.argv[1])
