import Kernels
import Platform
import Quantization
import Tensors
import Testing

/// Coded formats and row-wise int8. That the bytes are bitsandbytes' is what the golden cases quant_* show; here: rows, blocks that
/// run across them, products, and what is refused.
@Suite struct CodedTests {
    private let engine = Engine(threads: 2)
    static let coded: [DType] = [.nf4, .fp4, .blockwise8]
    /// Rows that are whole blocks, parts of blocks, odd, and several blocks with a rest.
    static let shapes = [[6, 128], [5, 32], [7, 40], [9, 13], [3, 200], [4, 4096], [1, 100]]

    private func normal(_ shape: [Int], seed: UInt64 = 3) throws -> Tensor {
        var stream = RandomStream(seed: seed)
        return try Tensor(engine, (0..<shape.reduce(1, *)).map { _ in stream.normal() }, shape: shape)
    }

    private func bytes(_ tensor: Tensor?) -> [UInt8] {
        guard let tensor else { return [] }
        return Array(UnsafeRawBufferPointer(start: tensor.pointer, count: tensor.byteCount))
    }

    /// By the definition: table[code]·scale, scale = table8[code]·nested + offset.
    private func values(of matrix: CodedMatrix) throws -> [Float] {
        let table = try matrix.values(engine).floats(engine), table8 = try CodedMatrix.values(of: .blockwise8, engine).floats(engine)
        let codes = bytes(matrix.codes), count = matrix.shape.reduce(1, *)
        let scales: [Float] =
            if let nested = matrix.nested {
                try zip(bytes(matrix.scales).indices, bytes(matrix.scales)).map { try table8[Int($1)] * nested.floats(engine)[$0 / 256] + matrix.offset }
            } else {
                try matrix.scales.floats(engine)
            }
        return (0..<count).map { index in
            let code = matrix.dtype == .blockwise8 ? codes[index] : index % 2 == 0 ? codes[index / 2] >> 4 : codes[index / 2] & 15
            return table[Int(code)] * scales[index / matrix.scaling.blockSize]
        }
    }

    @Test("rows hold the values and give back the parts, at every level", arguments: coded, [32, 64, 4096])
    func rows(_ dtype: DType, _ size: Int) throws {
        for shape in CodedTests.shapes {
            for isDouble in dtype == .blockwise8 ? [false] : [false, true] {
                let scaling = try BlockScaling(blockSize: size, isDouble: isDouble)
                let matrix = try CodedMatrix(encoding: normal(shape), as: dtype, scaling, engine)
                let expected = try values(of: matrix), tensor = try matrix.tensor(engine)
                for level: Int32 in [0, 1, 2, 3] {
                    #expect(try tensor.floats(Engine(threads: 2, level: level)) == expected, "\(shape), level \(level)")
                }
                let again = try CodedMatrix(tensor, engine)
                #expect(bytes(again.codes) == bytes(matrix.codes) && bytes(again.scales) == bytes(matrix.scales) && bytes(again.nested) == bytes(matrix.nested))
                #expect(again.offset == matrix.offset)
                // A row seen by itself.
                let row = try tensor.rows(shape[0] - 1..<shape[0]).floats(engine)
                #expect(row == Array(expected.suffix(shape[1])))
            }
        }
    }

    @Test("double quantisation costs little, and saves what it promises")
    func doubled() throws {
        let tensor = try normal([64, 4096]), plain = try tensor.encoded(as: .nf4, engine)
        let doubled = try tensor.encoded(as: .nf4, scaling: BlockScaling(blockSize: 64, isDouble: true), engine)
        let losses = try [plain, doubled].map { try EncodingReport(of: tensor, stored: $0, engine).relative }
        #expect(losses[1] < losses[0] * 1.02)
        let bits = [plain, doubled].map { Double($0.byteCount) * 8 / Double(tensor.count) }
        #expect(bits[0] < 4.53 && bits[1] < 4.2, "\(bits)")
    }

    @Test("products in every direction are those of the decoded weights", arguments: [DType.nf4, .fp4, .blockwise8, .int8], [Compute.f32, .bf16, .int8])
    func products(_ dtype: DType, _ compute: Compute) throws {
        for (n, k) in [(96, 128), (40, 72), (33, 45), (200, 64)] {
            let w = try normal([n, k], seed: 5).encoded(as: dtype, engine), plain = try w.converted(to: .f32, engine)
            for m in [1, 3, 20] {
                for mode in [Engine.ProductMode.forward, .inputGradient] {
                    let isForward = mode == .forward
                    let x = try normal([m, isForward ? k : n], seed: 7)
                    let results = try [w, plain].map { weight in
                        let y = try Tensor(engine, [m, isForward ? n : k])
                        try engine.multiply(mode, x, weight, into: y, compute: compute == .int8 ? .bf16 : compute)
                        return try y.floats(engine)
                    }
                    #expect(results[0] == results[1] || zip(results[0], results[1]).allSatisfy { abs($0 - $1) < 1e-4 * Float(k) }, "\(mode) \(m) \(n) \(k)")
                }
                let (x, y) = (try normal([m, k], seed: 9), try Tensor(engine, [m, n]))
                try engine.multiply(.forward, x, w, into: y, compute: compute)
                #expect(try y.floats(engine).allSatisfy(\.isFinite))
            }
        }
    }

    @Test("what does not fit is refused")
    func refusals() throws {
        let matrix = try CodedMatrix(encoding: normal([4, 64]), as: .nf4, BlockScaling(blockSize: 64, isDouble: true), engine)
        func remade(
            shape: [Int] = [4, 64], scaling: BlockScaling? = nil, codes: Tensor? = nil, scales: Tensor? = nil, nested: Tensor? = nil, offset: Float = 0
        ) -> PEFTError? {
            do throws(PEFTError) {
                _ = try CodedMatrix(
                    dtype: .nf4, shape: shape, scaling: scaling ?? matrix.scaling, codes: codes ?? matrix.codes, scales: scales ?? matrix.scales,
                    nested: nested ?? matrix.nested, offset: offset, engine)
                return nil
            } catch { return error }
        }
        #expect(remade() == nil)
        #expect(remade(shape: [4, 66])?.kind == .format)
        #expect(remade(shape: [Int.max, 64])?.kind == .format)
        #expect(try remade(scaling: BlockScaling(blockSize: 32, isDouble: true))?.kind == .format)
        #expect(remade(scaling: .standard)?.kind == .format)
        #expect(try remade(codes: matrix.codes.rows(0..<1).reshaped([128]))?.kind == nil)
        #expect(try remade(codes: Tensor.zeros(engine, [127], .u8))?.kind == .format)
        #expect(try remade(scales: Tensor.zeros(engine, [4]))?.kind == .format)
        #expect(try remade(nested: Tensor(engine, [Float.nan], shape: [1]))?.kind == .numeric)
        #expect(remade(offset: .infinity)?.kind == .numeric)
        for size in [0, 16, 63, 8192, -64] { #expect(throws: PEFTError.self) { try BlockScaling(blockSize: size) } }
        let wrong = try normal([2, 64])
        wrong.withMutableFloats { $0[3] = .nan }
        #expect(throws: PEFTError.self) { try wrong.encoded(as: .nf4, engine) }
        #expect(throws: PEFTError.self) { try normal([2, 64]).encoded(as: .nf4, engine).reshaped([4, 32]) }
    }
}
