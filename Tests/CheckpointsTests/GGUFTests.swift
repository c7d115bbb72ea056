import Checkpoints
import Platform
import Tensors
import Testing

/// Builds GGUF bytes by hand.
private struct Maker {
    var bytes: [UInt8] = []

    mutating func put<T: FixedWidthInteger>(_ value: T) { withUnsafeBytes(of: value.littleEndian) { bytes += $0 } }
    mutating func put(_ text: String) {
        put(UInt64(text.utf8.count))
        bytes += Array(text.utf8)
    }

    init(version: UInt32 = 3, tensors: UInt64 = 0, pairs: UInt64 = 0) {
        bytes = GGUF.magic
        put(version)
        put(tensors)
        put(pairs)
    }

    mutating func tensor(_ name: String, _ dimensions: [UInt64], type: UInt32, offset: UInt64) {
        put(name)
        put(UInt32(dimensions.count))
        for size in dimensions { put(size) }
        put(type)
        put(offset)
    }

    mutating func data(_ count: Int) {
        while bytes.count % 32 != 0 { bytes.append(0) }
        bytes += [UInt8](repeating: 0, count: count)
    }
}

@Suite struct GGUFTests {
    let budget = MemoryBudget()

    private func open(_ bytes: some Collection<UInt8>) throws -> GGUF { try GGUF(mapped(bytes), budget: budget) }

    private func message(_ maker: Maker) -> String {
        failure { _ = try open(maker.bytes) }?.message ?? "no error"
    }

    @Test func readsEveryKindOfMetadata() throws {
        let gguf = try GGUF(path: fixture("all_kinds.gguf"), budget: budget)
        #expect(gguf.version == 3)
        #expect(try gguf.string("general.architecture") == "test")
        let integers = ["u8": 200, "i8": -5, "u16": 60000, "i16": -30000, "u32": 4_000_000_000, "i32": -2_000_000_000, "i64": -(1 << 62)]
        for (name, value) in integers { #expect(try gguf.integer("k." + name) == value, "\(name)") }
        if case .unsigned(let large)? = gguf["k.u64"] { #expect(large == (UInt64(1) << 63) + 1) } else { Issue.record("k.u64") }
        #expect(failure { _ = try gguf.integer("k.u64") }?.message.contains("k.u64") == true)
        #expect(try gguf.number("k.f32") == 0.5)
        #expect(try gguf.number("k.f64") == 1e-5)
        #expect(gguf["k.bool"]?.boolValue == true)
        #expect(try gguf.string("k.string") == "Grüße")
        #expect(try Array(gguf.strings("k.strings")) == ["a", "", "ĠĊ", "名前"])
        #expect(try gguf.strings("k.strings").slices() == ["a", "", "ĠĊ", "名前"].map { Array($0.utf8)[...] })
        #expect(try gguf.strings("k.strings")[99] == "")
        #expect(gguf["k.ints"]?.numbersValue?.integers() == [3, -1, 7])
        #expect(gguf["k.floats"]?.numbersValue?.floats() == [0.25, -2.5])
        #expect(gguf["k.floats"]?.numbersValue?.integers() == nil)
        #expect(gguf.keys.first == "general.architecture" || gguf.keys.first == "GGUF.version")
    }

    @Test func readsTensorsRowMajor() throws {
        let source = try GGUF(path: fixture("all_kinds.gguf"), budget: budget).tensors
        #expect(source.names == ["f32.weight", "f16.weight", "Q8_0.weight", "Q4_1.weight"])
        #expect(values(try source.tensor(named: "f32.weight", shape: [2, 3])) == ramp(6))
        #expect(values(try source.tensor(named: "f16.weight", shape: [4])) == ramp(4))
        let eight = try source.tensor(named: "Q8_0.weight", shape: [4, 64])
        #expect(eight.dtype == .q8_0 && eight.byteCount == 4 * 2 * 34)
        let four = try source.tensor(named: "Q4_1.weight", shape: [4, 64])
        #expect(four.dtype == .q4_1 && four.byteCount == 4 * 2 * 20)
    }

    /// Copying every pair and tensor of the reference implementation's file gives its bytes.
    @Test func writesTheReferenceImplementationsBytes() throws {
        try withTemporaryFolder { folder in
            let source = try GGUF(path: fixture("all_kinds.gguf"), budget: budget)
            let path = Files.join(folder, "copy.gguf")
            let tensors = source.tensors.all
            let pairs = source.keys.map { (key: $0, field: GGUF.Field.copy(of: source, key: $0)) }
            try GGUF.write(pairs, tensors.map { .init($0.name, $0.tensor.dtype, $0.tensor.shape) }, to: path) { (index) throws(PEFTError) -> Tensor in tensors[index].tensor }
            #expect(try bytes(of: path) == bytes(of: fixture("all_kinds.gguf")))
        }
    }

    @Test func writesEveryKindOfField() throws {
        try withTemporaryFolder { folder in
            let path = Files.join(folder, "x.gguf")
            let fields: [(key: String, field: GGUF.Field)] = [
                ("u32", .u32(7)), ("i32", .i32(-7)), ("u64", .u64(1 << 40)), ("f32", .f32(0.5)), ("bool", .bool(true)), ("string", .string("né")),
                ("strings", .strings(["a", ""])), ("i32s", .i32s([1, -2])), ("f32s", .f32s([0.25])),
            ]
            let weight = try tensor([1, 2, 3], [1, 3])
            try GGUF.write(fields, [.init("w", .f32, [1, 3])], to: path) { (_) throws(PEFTError) -> Tensor in weight }
            let read = try GGUF(path: path, budget: budget)
            #expect(try read.integer("u32") == 7 && read.integer("i32") == -7 && read.integer("u64") == 1 << 40 && read.number("f32") == 0.5)
            #expect(try read["bool"]?.boolValue == true && read.string("string") == "né" && Array(read.strings("strings")) == ["a", ""])
            #expect(read["i32s"]?.numbersValue?.integers() == [1, -2] && read["f32s"]?.numbersValue?.floats() == [0.25])
            #expect(values(try read.tensors.tensor(named: "w", shape: [1, 3])) == [1, 2, 3])
            let twice = failure { try GGUF.write([("a", .u32(1)), ("a", .u32(2))], [], to: path) { (_) throws(PEFTError) -> Tensor in weight } }
            #expect(twice?.message.contains("'a'") == true)
        }
    }

    @Test func survivesEveryTruncation() throws {
        let all = try bytes(of: fixture("all_kinds.gguf"))
        // The writer pads the last tensor to the alignment; what follows its last byte may be missing.
        let end = all.count - (32 - (4 * 2 * 20) % 32) % 32
        for count in 0..<end {
            let error = failure { _ = try open(all.prefix(count)) }
            #expect(error?.kind == .format, "\(count) bytes: \(error?.message ?? "no error")")
        }
    }

    @Test func survivesEveryFlippedBit() throws {
        let all = try bytes(of: fixture("all_kinds.gguf"))
        for bit in 0..<all.count * 8 {
            var damaged = all
            damaged[bit / 8] ^= 1 << (bit % 8)
            #expect(survives { _ = try open(damaged) })
        }
    }

    @Test func refusesCountsThatCannotBe() {
        #expect(message(Maker(tensors: .max)).contains("number of tensors"))
        #expect(message(Maker(pairs: 1 << 60)).contains("number of metadata pairs"))
        var long = Maker(pairs: 1)
        long.put(UInt64.max)
        long.bytes += [UInt8](repeating: 0, count: 32)
        #expect(message(long).contains("key of metadata pair 0"))
        for (type, size) in [(UInt32(8), UInt64.max / 2), (4, 1 << 62), (9, 1 << 50)] {
            var array = Maker(pairs: 1)
            array.put("list")
            array.put(UInt32(9))
            array.put(type)
            array.put(size)
            array.bytes += [UInt8](repeating: 0, count: 64)
            #expect(message(array).contains("list"), "\(message(array))")
        }
    }

    @Test func refusesStringArraysThatLeaveTheFile() {
        var array = Maker(pairs: 1)
        array.put("words")
        array.put(UInt32(9))
        array.put(UInt32(8))
        array.put(UInt64(2))
        array.put("one")
        array.put(UInt64(1) << 63)
        array.bytes += [1, 2, 3]
        #expect(message(array).contains("a string of 9223372036854775808 bytes"))
    }

    @Test func namesUnknownTensorTypes() {
        for (type, name) in [(UInt32(16), "iq2_xxs (16)"), (29, "iq1_m"), (1000, "1000"), (777, "777"), (.max, "4294967295")] {
            var maker = Maker(tensors: 1)
            maker.tensor("blk.0.weight", [256], type: type, offset: 0)
            maker.data(4096)
            #expect(message(maker).contains("'blk.0.weight'") && message(maker).contains(name), "\(message(maker))")
        }
    }

    @Test func checksWhereTensorsLie() {
        func place(_ dimensions: [UInt64], offset: UInt64, type: UInt32 = 0, second: UInt64? = nil) -> String {
            var maker = Maker(tensors: second == nil ? 1 : 2)
            maker.tensor("x", dimensions, type: type, offset: offset)
            if let second { maker.tensor("y", [8], type: 0, offset: second) }
            maker.data(64)
            return message(maker)
        }
        #expect(place([16], offset: 0) == "no error")
        #expect(place([0], offset: 0) == "no error")
        #expect(place([17], offset: 0).contains("cut short"))
        #expect(place([16], offset: 8).contains("multiple of the alignment"))
        #expect(place([16], offset: .max).contains("offset"))
        #expect(place([16], offset: 1 << 62).contains("cut short"))
        #expect(place([1 << 62, 4], offset: 0).contains("63 bits"))
        #expect(place([.max], offset: 0).contains("dimension"))
        #expect(place([33], offset: 0, type: 3).contains("whole number of blocks"))
        #expect(place([1, 1, 1, 1, 1], offset: 0).contains("5 dimensions"))
        #expect(place([16], offset: 0, second: 32).contains("overlaps"))
        #expect(place([8], offset: 0, second: 32) == "no error")
    }

    @Test func refusesDuplicatesAndOtherVersions() {
        var twice = Maker(tensors: 2)
        twice.tensor("x", [8], type: 0, offset: 0)
        twice.tensor("x", [8], type: 0, offset: 32)
        twice.data(64)
        #expect(message(twice).contains("'x' is there twice"))
        var keys = Maker(pairs: 2)
        for _ in 0..<2 {
            keys.put("k")
            keys.put(UInt32(0))
            keys.put(UInt8(1))
        }
        #expect(message(keys).contains("'k' is there twice"))
        #expect(message(Maker(version: 1)).contains("version 1"))
        #expect(message(Maker(version: 4)).contains("version 4"))
        #expect(message(Maker(version: UInt32(3).byteSwapped)).contains("big-endian"))
        #expect(message(Maker(version: 2)) == "no error")
        #expect(failure { _ = try open(Array("GGML".utf8) + [UInt8](repeating: 0, count: 60)) }?.message.contains("GGUF") == true)
    }

    @Test func namesASplitModel() {
        var part = Maker(pairs: 2)
        for (key, value) in [("split.no", UInt16(1)), ("split.count", 3)] {
            part.put(key)
            part.put(UInt32(2))
            part.put(value)
        }
        #expect(message(part).contains("part 2 of a model split into 3 files"))
    }

    @Test func readsNestedArraysAndLimitsTheirDepth() throws {
        var nested = Maker(pairs: 1)
        nested.put("n")
        nested.put(UInt32(9))
        nested.put(UInt32(9))
        nested.put(UInt64(2))
        for value in [UInt8(7), 9] {
            nested.put(UInt32(0))
            nested.put(UInt64(1))
            nested.put(value)
        }
        guard case .arrays(let arrays)? = try open(nested.bytes)["n"] else {
            Issue.record("not nested")
            return
        }
        #expect(arrays.map { $0.numbersValue?.integers() } == [[7], [9]])
        var deep = Maker(pairs: 1)
        deep.put("n")
        deep.put(UInt32(9))
        for _ in 0..<1000 {
            deep.put(UInt32(9))
            deep.put(UInt64(1))
        }
        #expect(message(deep).contains("nested deeper"))
        var many = Maker(pairs: 1)
        many.put("n")
        many.put(UInt32(9))
        many.put(UInt32(9))
        many.put(UInt64(70_000))
        many.bytes += [UInt8](repeating: 0, count: 70_000 * 12)
        #expect(message(many).contains("70000 nested arrays"))
    }
}
