import Kernels
import Platform
import Quantization
import Tensors
import Testing

@Suite struct QuantizationTests {
    private let engine = Engine(threads: 2)
    static let formats = DType.allCases.filter(\.isWeightFormat)

    private func normal(_ shape: [Int], seed: UInt64 = 3) throws -> Tensor {
        var stream = RandomStream(seed: seed)
        return try Tensor(engine, (0..<shape.reduce(1, *)).map { _ in stream.normal() }, shape: shape)
    }

    /// Expected relative error of normal values: about step/√12 of the block's range, or half a unit of the mantissa.
    private static let losses: [DType: ClosedRange<Double>] = [
        .f32: 0...0, .f16: 1e-4...3e-4, .bf16: 1e-3...3e-3, .q4_0: 0.06...0.11, .q4_1: 0.06...0.10, .q5_0: 0.03...0.06, .q5_1: 0.03...0.05, .q8_0: 0.003...0.008,
        .q2_K: 0.2...0.32, .q3_K: 0.1...0.18, .q4_K: 0.04...0.09, .q5_K: 0.02...0.05, .q6_K: 0.01...0.03, .iq4_nl: 0.06...0.10, .tq1_0: 0.7...0.9,
        .tq2_0: 0.7...0.9, .f8_e4m3: 0.02...0.04, .f8_e5m2: 0.04...0.07, .nf4: 0.08...0.11, .fp4: 0.1...0.16, .blockwise8: 0.005...0.02, .int8: 0.005...0.012,
    ]

    @Test("what a format loses is what its bits allow, and the report is the truth", arguments: formats)
    func report(_ dtype: DType) throws {
        let tensor = try normal([12, 512]), values = try tensor.floats(engine)
        let encoded = try tensor.encoded(as: dtype, engine)
        let report = try EncodingReport(of: tensor, stored: encoded, engine)
        #expect(report.dtype == dtype)
        #expect(try report.byteCount == dtype.byteCount(shape: [12, 512]))
        #expect(try #require(QuantizationTests.losses[dtype]).contains(report.relative), "\(report)")
        let stored = try encoded.floats(engine)
        let errors = zip(values, stored).map { Double($0) - Double($1) }
        #expect(abs(report.rootMeanSquare - (errors.reduce(0) { $0 + $1 * $1 } / Double(errors.count)).squareRoot()) < 1e-12)
        #expect(report.maximum == errors.reduce(0) { max($0, abs($1)) })
        #expect(encoded.dtype == dtype && encoded.shape == tensor.shape)
    }

    @Test("any number of threads writes the same bytes; bands meet without a seam", arguments: formats)
    func threads(_ dtype: DType) throws {
        let tensor = try normal([9, 131072])  // more than one band
        let bytes = try [1, 2, 3].map { threads in
            let engine = Engine(threads: threads)
            let encoded = try tensor.encoded(as: dtype, engine)
            return Array(UnsafeRawBufferPointer(start: encoded.pointer, count: encoded.byteCount))
        }
        #expect(bytes[0] == bytes[1] && bytes[0] == bytes[2])
        if dtype.isCoded { return }  // (a row by itself has its place in no other matrix)
        let last = try tensor.rows(8..<9).encoded(as: dtype, engine)
        #expect(Array(UnsafeRawBufferPointer(start: last.pointer, count: last.byteCount)) == Array(bytes[0].suffix(last.byteCount)))
    }

    @Test("from one quantised format to another, and again to the same", arguments: [DType.q4_1, .q8_0, .q6_K])
    func fromQuantised(_ dtype: DType) throws {
        let blocks = try normal([4, 256]).encoded(as: .q8_0, engine)
        let plain = try blocks.converted(to: .f32, engine)
        #expect(try blocks.encoded(as: dtype, engine).floats(engine) == plain.encoded(as: dtype, engine).floats(engine))
        #expect(try EncodingReport(of: blocks, stored: blocks.encoded(as: .q8_0, engine), engine).relative < 1e-3)
    }

    @Test("zeros and nothing lose nothing")
    func zeros() throws {
        for dtype in QuantizationTests.formats {
            let zeros = try Tensor.zeros(engine, [2, 256]), report = try EncodingReport(of: zeros, stored: zeros.encoded(as: dtype, engine), engine)
            #expect(report.maximum == 0 && report.relative == 0 && report.rootMeanSquare == 0, "\(dtype)")
            #expect(try Tensor.zeros(engine, [0, 256]).encoded(as: dtype, engine).byteCount == 0)
        }
    }

    @Test("a NaN shows in the report")
    func nan() throws {
        let tensor = try normal([1, 256])
        tensor.withMutableFloats { $0[7] = .nan }
        let report = try EncodingReport(of: tensor, stored: tensor.encoded(as: .q8_0, engine), engine)
        #expect(report.maximum.isNaN && report.rootMeanSquare.isNaN && report.relative.isNaN)
    }

    @Test("what cannot be encoded is refused by name")
    func refusals() throws {
        #expect(throws: PEFTError.self) { try normal([2, 33]).encoded(as: .q4_1, engine) }
        #expect(throws: PEFTError.self) { try normal([2, 32]).encoded(as: .q4_K, engine) }
        #expect(throws: PEFTError.self) { try normal([2, 32]).encoded(as: .i32, engine) }
        #expect(throws: PEFTError.self) { try Tensor(engine, [1, 2, 3] as [Int32], shape: [3]).encoded(as: .f16, engine) }
    }

    @Test("schemes by name")
    func schemes() throws {
        for dtype in QuantizationTests.formats { #expect(try DType.weightFormat(named: dtype.name.uppercased()) == dtype) }
        #expect(try DType.weightFormat(named: "bfloat16") == .bf16)
        let error = #expect(throws: PEFTError.self) { try DType.weightFormat(named: "nf3") }
        #expect(error?.kind == .argument && error?.message.contains("q4_K") == true)
        #expect(throws: PEFTError.self) { try DType.weightFormat(named: "i32") }
    }
}
