import Checkpoints
import Platform
import Tensors
import Testing

@Suite struct SafetensorsTests {
    let budget = MemoryBudget()

    func file(_ header: String, data: Int = 0, length: Int? = nil) -> MappedFile {
        var all: [UInt8] = []
        withUnsafeBytes(of: UInt64(length ?? header.utf8.count).littleEndian) { all += $0 }
        return mapped(all + Array(header.utf8) + [UInt8](repeating: 1, count: data))
    }

    @Test func readsEveryElementTypeOfTheReferenceImplementation() throws {
        let source = try Safetensors.open(path: fixture("all_types.safetensors"), budget: budget)
        #expect(source.metadata == ["format": "pt"])
        let expected: [(String, DType, [Int])] = [
            ("b.weight", .f32, [2, 3]), ("a.weight", .f32, [4]), ("half", .f16, [3]), ("brain", .bf16, [2, 2]), ("double", .f64, [2]),
            ("i8", .i8, [5]), ("i16", .i16, [3]), ("i32", .i32, [3]), ("i64", .i64, [2, 1]), ("scalar", .f32, []), ("empty", .f32, [0, 4]),
            ("z/ümläut \"quoted\" \\ \u{1} 名", .f32, [1]),
        ]
        for (name, dtype, shape) in expected {
            let tensor = try source.tensor(named: name)
            #expect(tensor.dtype == dtype && tensor.shape == shape, "\(name)")
            #expect(values(tensor) == ramp(tensor.count), "\(name)")
        }
        #expect(values(try source.tensor(named: "u8", shape: [3])) == [0, 1, 2])
        #expect(source.unusedNames == ["bool"])
        #expect(values(try source.tensor(named: "bool")) == [1, 0, 1])
        try source.requireAllTaken(by: "the test")
    }

    @Test func writesTheReferenceImplementationsBytes() throws {
        try withTemporaryFolder { folder in
            let source = try Safetensors.open(path: fixture("all_types.safetensors"), budget: budget)
            let path = Files.join(folder, "copy.safetensors")
            try Safetensors.write(source.all.shuffled(), to: path)
            #expect(try bytes(of: path) == bytes(of: fixture("all_types.safetensors")))
            #expect(try Files.names(in: folder) == ["copy.safetensors"])
        }
    }

    @Test func makesTensorsOneAtATime() throws {
        try withTemporaryFolder { folder in
            let path = Files.join(folder, "streamed.safetensors")
            var made: [Int] = []
            let descriptions = [TensorDescription("y", .f32, [2]), TensorDescription("x", .f32, [1, 3])]
            try Safetensors.write(descriptions, to: path) { (index) throws(PEFTError) -> Tensor in
                made.append(index)
                do { return try tensor([Float](repeating: Float(index), count: index + 2), descriptions[index].shape) } catch { throw PEFTError(.internal, "\(error)") }
            }
            #expect(made == [1, 0])
            let source = try Safetensors.open(path: path, budget: budget)
            #expect(values(try source.tensor(named: "x")) == [1, 1, 1])
            #expect(values(try source.tensor(named: "y")) == [0, 0])
            let wrong = failure { try Safetensors.write([.init("x", .f32, [2])], to: path) { (_) throws(PEFTError) -> Tensor in throw PEFTError(.numeric, "NaN") } }
            #expect(wrong?.kind == .numeric)
            #expect(try Files.names(in: folder) == ["streamed.safetensors"])
        }
    }

    @Test func copiesTensorsThatLieOnOddAddresses() throws {
        let header = "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"b\":{\"dtype\":\"I16\",\"shape\":[2],\"data_offsets\":[1,5]}}"
        let source = try Safetensors.open(file(header, data: 5), budget: budget)
        let tensor = try source.tensor(named: "b")
        #expect(UInt(bitPattern: tensor.pointer) % 2 == 0)
        #expect(values(tensor) == [257, 257])
    }

    @Test func tensorsOutliveTheSource() throws {
        let tensor = try Safetensors.open(path: fixture("all_types.safetensors"), budget: budget).tensor(named: "a.weight")
        #expect(values(tensor) == ramp(4))
    }

    @Test func survivesEveryTruncation() throws {
        let all = try bytes(of: fixture("all_types.safetensors"))
        for count in 0..<all.count {
            let error = failure { _ = try Safetensors.open(mapped(all.prefix(count)), budget: budget) }
            #expect(error?.kind == .format, "\(count) bytes: \(error?.message ?? "no error")")
        }
    }

    @Test func survivesEveryFlippedBitOfTheHeader() throws {
        let all = try bytes(of: fixture("all_types.safetensors"))
        for bit in 0..<all.count * 8 {
            var damaged = all
            damaged[bit / 8] ^= 1 << (bit % 8)
            #expect(survives { for item in try Safetensors.open(mapped(damaged), budget: budget).all { _ = values(item.tensor) } })
        }
    }

    @Test(arguments: [
        ("", "not a JSON object|begin with"), ("[]", "begin with '{'"), ("{", "JSON"),
        ("{\"a\":1}", "tensor 'a': an integer where an object"),
        ("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", "no \"dtype\""),
        ("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", "no \"shape\""),
        ("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", "data_offsets"),
        ("{\"a\":{\"dtype\":\"F8_E8M0\",\"shape\":[1],\"data_offsets\":[0,1]}}", "F8_E8M0"),
        ("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", "-1"),
        ("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", "1.5"),
        ("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", "-4"),
        ("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", "do not lie within"),
        ("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "do not lie within the 4 bytes"),
        ("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", "takes 8 bytes"),
        ("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,4]}}", "63 bits"),
        ("{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}", "1 bytes at the end"),
        ("{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[1,4]}}", "hole"),
        ("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}", "overlaps"),
        ("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", "duplicate"),
        ("{\"__metadata__\":{\"x\":1}}", "only strings"),
    ])
    func namesWhatIsWrong(header: String, words: String) {
        let error = failure { _ = try Safetensors.open(file(header, data: 4), budget: budget) }
        #expect(words.split(separator: "|").contains { error?.message.contains($0) == true }, "\(error?.message ?? "no error")")
        #expect(error?.message.hasPrefix("buffer: ") == true)
    }

    @Test func refusesHeaderLengthsThatOverflow() {
        for length in [Int.max, 1 << 40, 3] {
            #expect(failure { _ = try Safetensors.open(file("{}", length: length), budget: budget) }?.kind == .format)
        }
    }

    @Test func refusesQuantisedAndDuplicateTensorsWhenWriting() throws {
        try withTemporaryFolder { folder in
            let path = Files.join(folder, "x.safetensors")
            let blocks = try Tensor(Storage(byteCount: 20, budget: budget, category: .weights), dtype: .q4_1, shape: [32])
            #expect(failure { try Safetensors.write([NamedTensor("q", blocks)], to: path) }?.message.contains("q4_1") == true)
            let plain = try tensor([1], [1])
            #expect(failure { try Safetensors.write([NamedTensor("a", plain), NamedTensor("a", plain)], to: path) }?.kind == .argument)
            #expect(try Files.names(in: folder).isEmpty)
        }
    }
}
