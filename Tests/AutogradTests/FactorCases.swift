import Autograd
import Platform
import Tensors

extension OperationCase {
    /// What adapters compute their factors with.
    static let factors: [OperationCase] = [
        OperationCase(name: "exponential", inputs: [([3, 4], .activation)]) { tape, x in try tape.exponential(x[0]) },
        OperationCase(name: "sampled", inputs: [([3, 8], .activation)]) { tape, x in try tape.sampled(x[0], try tensor(tape.engine, [3, 4], seed: 5)) },
        OperationCase(name: "changed weight", inputs: [([3, 6], .activation), ([5, 2], .parameter), ([2, 6], .parameter)]) { tape, x in
            let frozen = try tensor(tape.engine, [5, 6], seed: 4)
            return try tape.linear(x[0], try tape.remade([x[1], x[2]]) { (tape, w) throws(PEFTError) in try tape.changedWeight(frozen, times: LowRankChange(b: w[0], a: w[1]), scale: 1.5) })
        },
        OperationCase(
            name: "changed weight and an addition",
            inputs: [([3, 6], .activation), ([5, 2], .parameter), ([2, 6], .parameter), ([5, 3], .parameter), ([3, 6], .parameter)]
        ) { tape, x in
            let frozen = try tensor(tape.engine, [5, 6], seed: 4)
            let changed = try tape.remade(Array(x[1...])) { (tape, w) throws(PEFTError) in
                try tape.changedWeight(frozen, times: LowRankChange(b: w[0], a: w[1]), plus: LowRankChange(b: w[2], a: w[3]), scale: 1.5)
            }
            return try tape.linear(x[0], changed)
        },
        sparseWeight("sparse weight", isTransposed: false), sparseWeight("sparse weight, transposed", isTransposed: true),
        // Three users of one projection; outputs that are made again for what follows.
        OperationCase(name: "a common product", inputs: [([8, 4], .activation), ([8], .parameter), ([8], .parameter)]) { tape, x in
            let a = try tensor(tape.engine, [8, 4], seed: 6)
            let owner = GradientStore(tape.engine)
            func product() throws(PEFTError) -> Variable { try tape.common(of: x[0], owner) { () throws(PEFTError) in try tape.linear(x[0], frozen: a) } }
            let gate = try tape.scaleColumns(try product(), scale: x[1]), up = try tape.scaleColumns(try product(), scale: x[2])
            return try tape.add(try tape.glu(gate, up, .silu), try product())
        },
        OperationCase(name: "turned, and used by attention", inputs: [([3, 8], .activation), ([8], .parameter), ([8], .parameter)], bf16Tolerance: 0.05) { tape, x in
            let partners = try ColumnMap(tape.engine, [1, 0, 3, 2, 5, 4, 7, 6], of: 8)
            let turned = try tape.turnColumns(x[0], cosine: x[1], sine: x[2], partners: partners)
            let scaled = try tape.scaleColumns(x[0], scale: x[1], shift: x[2])
            return try tape.attention(q: turned, k: scaled, v: turned, shape: AttentionShape(batch: 1, queryLength: 3, heads: 2, keyValueHeads: 2, headDim: 4, isCausal: true))
        },
        OperationCase(name: "scaled bases", inputs: [([2, 3], .parameter), ([3, 5], .parameter)]) { tape, x in
            try tape.scaledBases(try tensor(tape.engine, [2, 5], seed: 4), x[0], x[1])
        },
        OperationCase(name: "mixtures of the bank", inputs: [([2, 5], .parameter), ([5, 4], .parameter)]) { tape, x in
            // Far enough apart that a step does not change which are the largest.
            let apart = try Tensor(tape.engine, [0, 4, -8, -4, 8, 4, 8, -4, 0, -8] as [Float], shape: [2, 5])
            return try tape.topMixture(try tape.scaled(try tape.add(x[0], Variable(apart)), by: 0.5), x[1], 2)
        },
        // Where x lies along the direction nothing is lost, and the derivative is the true one.
        OperationCase(name: "remembered along a direction", inputs: [([3, 2], .activation), ([4, 6], .parameter)]) { tape, x in
            let direction = try Tensor(tape.engine, [0.6, 0, 0.8] as [Float], shape: [3])
            let spread = try Tensor(tape.engine, [0.6, 0, 0.8, 0, 0, 0, 0, 0, 0, 0.6, 0, 0.8] as [Float], shape: [2, 6])
            let input = try tape.linear(x[0], frozen: spread, transposed: true)
            return try tape.linear(input, x[1], rememberedAlong: direction, groups: 2, scale: 1)
        },
        OperationCase(name: "mean softmax", inputs: [([4, 3], .parameter)]) { tape, x in try tape.meanSoftmax(x[0]) },
        OperationCase(name: "orthonormalized", inputs: [([5, 3], .parameter)], step: 0.005) { tape, x in
            try tape.orthonormalized(x[0])
        },
        OperationCase(name: "orthonormalized square", inputs: [([3, 3], .parameter)], step: 0.005) { tape, x in
            try tape.orthonormalized(x[0])
        },
    ]
}

extension OperationCase {
    /// More rows than are taken at a time; an entry twice.
    private static func sparseWeight(_ name: String, isTransposed: Bool) -> OperationCase {
        OperationCase(name: name, inputs: [([70, 12], .activation), ([5], .parameter), ([10], .parameter)]) { tape, x in
            let frozen = try tensor(tape.engine, isTransposed ? [12, 10] : [10, 12], seed: 4)
            let places = try SparsePlaces(tape.engine, rows: [9, 3, 0, 3, 3], columns: [7, 0, 5, 11, 0], from: .none(12), to: .none(10))
            return try tape.linear(x[0], frozen: frozen, plus: x[1], at: places, scale: 0.7, bias: x[2], transposed: isTransposed, as: nil)
        }
    }

    /// Sparse matrices between transforms; lengths with factors 2, 3, 4 and 5.
    static let spectra: [OperationCase] = [
        spectral("nothing", complex: false) { engine in (.none(12), .none(10)) },
        spectral("Fourier", complex: false) { engine in (try .fourier(engine, 12, block: 12), try .fourier(engine, 10, block: 10)) },
        spectral("Fourier in blocks, complex", complex: true) { engine in
            (try .fourier(engine, 12, block: 4), try .fourier(engine, 10, block: 5))
        },
        spectral("wavelets", complex: false) { engine in
            let filters = (low: [0.5, 0.8, 0.2, -0.1] as [Float], high: [-0.1, -0.2, 0.8, -0.5] as [Float])
            return (
                try .wavelets(engine, 12, places: 14, low: filters.low, high: filters.high, shift: 2),
                try .wavelets(engine, 10, places: 12, low: filters.low, high: filters.high, shift: 2)
            )
        },
    ]

    private static func spectral(
        _ name: String, complex: Bool, _ transforms: @escaping @Sendable (Engine) throws -> (SpectralTransform, SpectralTransform)
    ) -> OperationCase {
        OperationCase(
            name: "sparse between transforms: \(name)",
            inputs: [([70, 10], .activation), ([70, 12], .activation), (complex ? [2, 4] : [4], .parameter)]
        ) { tape, x in
            let (from, to) = try transforms(tape.engine)
            let places = try SparsePlaces(tape.engine, rows: [0, 3, 3, 9], columns: [5, 0, 11, 7], from: from, to: to)
            return try tape.addSpectral(to: x[0], input: x[1], x[2], at: places, from: from, to: to, scale: 0.7)
        }
    }
}
