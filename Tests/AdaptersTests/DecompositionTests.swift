import Adapters
import Platform
import Tensors
import Testing

@Suite struct DecompositionTests {
    private let engine = Engine(threads: 1)

    private func matrix(_ values: [Float], _ rows: Int) throws -> Tensor { try Tensor(engine, values, shape: [rows, values.count / rows]) }

    @Test("eigenvectors of a symmetric matrix with a value three times: orthonormal, and each is only stretched")
    func eigenvectors() throws {
        // Q·diag(5, 2, 2, 2)·Qᵀ with Q a reflection: 2·I + 3·q·qᵀ, q = (1, 2, 2, 4)/5.
        let q: [Float] = [0.2, 0.4, 0.4, 0.8]
        let values = (0..<16).map { (place: Int) -> Float in
            let diagonal: Float = place % 5 == 0 ? 2 : 0
            return 3 * q[place / 4] * q[place % 4] + diagonal
        }
        let z = try Decompositions(engine).eigenvectors(of: matrix(values, 4)).floats(engine)
        func column(_ j: Int) -> [Float] { (0..<4).map { z[$0 * 4 + j] } }
        func dot(_ a: [Float], _ b: [Float]) -> Float { zip(a, b).reduce(0) { $0 + $1.0 * $1.1 } }
        for (j, stretch) in [Float(5), 2, 2, 2].enumerated() {
            for i in 0..<4 {
                let product = dot(Array(values[i * 4..<i * 4 + 4]), column(j))
                #expect(abs(product - stretch * column(j)[i]) < 1e-5)
                let expected: Float = i == j ? 1 : 0
                #expect(abs(dot(column(i), column(j)) - expected) < 1e-5)
            }
        }
        #expect(throws: PEFTError.self) { try Decompositions(engine).eigenvectors(of: matrix([1, .nan, .nan, 1], 2)) }
    }

    @Test("equations with several right sides; a singular matrix has no solution")
    func solutions() throws {
        let a = try matrix([2, 1, 0, 1, 3, 1, 0, 0, 4], 3)
        let x = try #require(try Decompositions(engine).solutions(of: a, rows: matrix([4, 10, 12, 2, 1, 0], 2))).floats(engine)
        // a·(1, 2, 3) = (4, 10, 12), a·(1, 0, 0) = (2, 1, 0)
        #expect(zip(x, [1, 2, 3, 1, 0, 0] as [Float]).allSatisfy { abs($0 - $1) < 1e-6 })
        #expect(try Decompositions(engine).solutions(of: matrix([1, 2, 2, 4], 2), rows: matrix([1, 1], 1)) == nil)
    }
}
