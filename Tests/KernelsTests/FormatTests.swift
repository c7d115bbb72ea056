import Glibc
import Kernels
import Testing

/// The formats against what the `gguf` package and ggml make of the same bytes (Fixtures/make_formats.py).
@Suite struct FormatTests {
    struct Record {
        let type: Int32
        let isEncoded: Bool
        let values: [Float]
        let blocks: [UInt8]
        let decoded: [Float]
    }

    static let records: [Record] = {
        guard let file = fopen(String(#filePath.dropLast("FormatTests.swift".count)) + "Fixtures/formats.bin", "rb") else { return [] }
        defer { fclose(file) }
        func read<T: BitwiseCopyable>(_ count: Int, _ zero: T) -> [T]? {
            var items = [T](repeating: zero, count: count)
            return fread(&items, MemoryLayout<T>.stride, count, file) == count ? items : nil
        }
        var records: [Record] = []
        while let head = read(3, Int32(0)) {
            let count = Int(head[1]), format = format(head[0])
            guard let values = read(count, Float(0)), let blocks = read(count / Int(format.block_values) * Int(format.block_bytes), UInt8(0)),
                let decoded = read(count, Float(0))
            else { return [] }
            records.append(Record(type: head[0], isEncoded: head[2] == 1, values: values, blocks: blocks, decoded: decoded))
        }
        return records
    }()

    @Test("the fixtures hold every format but f32")
    func complete() {
        var count: Int32 = 0
        let table = pk_formats(&count)!
        let types = Set((0..<Int(count)).map { table[$0]!.pointee.type })
        #expect(types == Set(FormatTests.records.map(\.type)).union([PK_F32]))
        #expect(pk_format_of(5) == nil && pk_format_of(-1) == nil)
    }

    @Test("decoding gives the reference's values, the same bits at every level and in any parts")
    func decoding() {
        for record in FormatTests.records {
            let expected = record.decoded.map(\.bitPattern), count = record.decoded.count
            for level in levels {
                for (parts, rows) in [(Int32(1), 1), (3, 1), (3, 6)] {
                    var values = [Float](repeating: .nan, count: count)
                    inParts(parts) { pk_decode(level, record.type, record.blocks, Int64(record.blocks.count / rows), Int64(rows), Int64(count / rows), &values, $0, $1) }
                    #expect(values.map(\.bitPattern) == expected, "\(name(record.type)), level \(level)")
                }
            }
        }
    }

    @Test("encoding gives the reference's bytes")
    func encoding() {
        for record in FormatTests.records where record.isEncoded {
            var blocks = [UInt8](repeating: 0xEE, count: record.blocks.count)
            format(record.type).encode(record.values, &blocks, record.values.count)
            let size = Int(format(record.type).block_bytes)
            let wrong = stride(from: 0, to: blocks.count, by: size).filter { blocks[$0..<$0 + size] != record.blocks[$0..<$0 + size] }
            #expect(wrong.isEmpty, "\(name(record.type)): blocks at \(wrong.map { $0 / size }) of \(blocks.count / size)")
        }
    }

    @Test("blocks of NaN and infinity are encoded and decoded without harm")
    func specialValues() {
        for type in Set(FormatTests.records.map(\.type)) {
            for special in [Float.nan, .infinity, -.infinity, .greatestFiniteMagnitude, .leastNonzeroMagnitude] {
                var values = [Float](repeating: 0.5, count: 256)
                values[3] = special
                _ = Buffer(type, values).values
            }
        }
    }

    @Test("the search of the K formats makes the same bytes at every level, those of the plain loops it was once written in", arguments: [
        (PK_Q2_K, 0x2c33bfd1f0122e61), (PK_Q3_K, 0xbb8ad61ef6f8594c), (PK_Q4_K, 0xb15fa8db57aff099), (PK_Q5_K, 0xabf7272091146dd0), (PK_Q6_K, 0x0b1d440ec5564f43),
    ] as [(Int32, UInt64)])
    func searches(_ type: Int32, _ hash: UInt64) {
        var state: UInt64 = 1
        let values = (0..<256 * 64).map { index in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Float(Int32(truncatingIfNeeded: state >> 32)) * 0x1p-31 / Float(1 + index % 7) * Float(index / 256 % 5)
        }
        var special = values
        for (index, value) in [Float.nan, .infinity, -.infinity, .greatestFiniteMagnitude, .leastNonzeroMagnitude, 1e30, -0.0].enumerated() {
            for place in 0...index { special[2048 + 512 * index + 37 * place] = value }
        }
        let expected = Buffer(type, special).bytes, size = Buffer(type, values).bytes.count
        #expect(Buffer(type, values).bytes.reduce(14_695_981_039_346_656_037) { ($0 ^ UInt64($1)) &* 1_099_511_628_211 } == hash)
        for level in levels {
            for parts: Int32 in [1, 3] {
                var made = [UInt8](repeating: 0xEE, count: size)
                inParts(parts) { pk_encode(level, type, special, 4, 256 * 16, &made, Int64(size / 4), $0, $1) }
                #expect(made == expected, "level \(level), \(parts) parts")
            }
        }
    }

    @Test("conversions between plain types, at every level", arguments: levels)
    func conversions(_ level: Int32) {
        var values: [Float] = [0, -0.0, .infinity, -.infinity, .nan, 65504, 65519, 65520, 1e-8, 6e-8, 6.1e-5, 0x1p-130, 3.4e38, 1 + 0x1p-8, 1 + 0x1.8p-7]
        var random = Random(3)
        values += random.values(600, scale: 3)
        for from in [PK_F32, PK_F16, PK_BF16] {
            for to in [PK_F32, PK_F16, PK_BF16] {
                let source = Buffer(from, values)
                let result = sameBits(to, [Float](repeating: 0, count: values.count)) { y, part, parts in
                    pk_convert(level, source.bytes, from, y, to, values.count, part, parts)
                }
                let expected = Buffer(to, source.values).values
                #expect(zip(result, expected).allSatisfy { $0.bitPattern == $1.bitPattern || ($0.isNaN && $1.isNaN) }, "\(name(from)) to \(name(to))")
            }
        }
    }

    @Test("sums of squares of rows in any format", arguments: levels)
    func rowSums(_ level: Int32) {
        var random = Random(4)
        for type in FormatTests.records.map(\.type) + [PK_F32] {
            let (rows, k) = (5, 768), w = Buffer(type, random.values(rows * k))
            let bytes = Int64(w.bytes.count / rows)
            let sums = sameBits(PK_F32, [Float](repeating: 0, count: rows)) { y, part, parts in
                pk_row_sumsq(level, type, w.bytes, bytes, Int64(rows), Int64(k), y.floats, part, parts)
            }
            let values = w.doubles
            expectClose(sums, (0..<rows).map { row in values[row * k..<(row + 1) * k].reduce(0) { $0 + $1 * $1 } }, relative: 1e-6, name(type))
        }
    }

    @Test("rows gathered from a table in any format", arguments: levels)
    func gather(_ level: Int32) {
        var random = Random(5)
        for type in FormatTests.records.map(\.type) + [PK_F32] {
            let (rows, n) = (6, format(type).block_values == 1 ? 301 : 512), table = Buffer(type, random.values(rows * n))
            let ids: [Int32] = [5, 0, 0, 3]
            for act in activationTypes {
                let y = sameBits(act, [Float](repeating: 0, count: ids.count * n)) { y, part, parts in
                    pk_gather_rows(level, type, table.bytes, Int64(table.bytes.count / rows), Int64(n), ids, Int64(ids.count), 0.5, act, y, part, parts)
                }
                let values = table.doubles
                expectClose(y, ids.flatMap { id in values[Int(id) * n..<(Int(id) + 1) * n].map { $0 / 2 } }, act, relative: 0, absolute: 0, name(type))
            }
        }
    }
}
