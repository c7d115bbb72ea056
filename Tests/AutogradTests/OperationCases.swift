import Autograd
import Kernels
import Platform
import Tensors
import Testing

extension OperationCase {
    /// Every differentiable operation with each of its options.
    static let all: [OperationCase] = linear + lowRank + norms + rotary + attention + activations + elementwise + rows + columns + blocks + parameters + losses + factors + spectra

    static let linear: [OperationCase] = [
        OperationCase(name: "linear, frozen f32 with bias", inputs: [([3, 5], .activation)]) { tape, x in
            try tape.linear(x[0], frozen: tensor(tape.engine, [4, 5], seed: 1), bias: tensor(tape.engine, [4], seed: 2))
        },
        OperationCase(name: "linear, frozen transposed", inputs: [([3, 5], .activation)]) { tape, x in
            try tape.linear(x[0], frozen: tensor(tape.engine, [5, 4], seed: 1), bias: tensor(tape.engine, [4], seed: 2), transposed: true)
        },
        OperationCase(name: "linear, frozen q8_0", inputs: [([2, 32], .activation)]) { tape, x in
            try tape.linear(x[0], frozen: quantized(tape.engine, [6, 32], .q8_0, seed: 1))
        },
        OperationCase(name: "linear, frozen q4_1 transposed", inputs: [([2, 6], .activation)]) { tape, x in
            try tape.linear(x[0], frozen: quantized(tape.engine, [6, 32], .q4_1, seed: 1), transposed: true)
        },
        OperationCase(name: "linear, trainable", inputs: [([3, 5], .activation), ([4, 5], .parameter), ([4], .parameter)]) { tape, x in
            try tape.linear(x[0], x[1], bias: x[2])
        },
        OperationCase(name: "linear, trainable transposed", inputs: [([3, 5], .activation), ([5, 4], .parameter), ([4], .parameter)]) { tape, x in
            try tape.linear(x[0], x[1], bias: x[2], transposed: true)
        },
        OperationCase(name: "linear, f32 result", inputs: [([3, 5], .activation), ([4, 5], .parameter)]) { tape, x in
            try tape.linear(x[0], x[1], as: .f32)
        },
        OperationCase(name: "transposed product", inputs: [([4, 3], .parameter), ([4, 5], .parameter)]) { tape, x in
            try tape.transposedProduct(x[0], x[1])
        },
    ]

    static let lowRank: [OperationCase] = [
        OperationCase(name: "low rank", inputs: [([3, 4], .activation), ([3, 5], .activation), ([2, 5], .parameter), ([4, 2], .parameter)]) { tape, x in
            try tape.addLowRank(to: x[0], input: x[1], a: x[2], b: x[3], scale: 1.5)
        },
        OperationCase(
            name: "low rank with dropout", inputs: [([3, 4], .activation), ([3, 5], .activation), ([2, 5], .parameter), ([4, 2], .parameter)]
        ) { tape, x in
            try tape.addLowRank(to: x[0], input: x[1], a: x[2], b: x[3], scale: 1.5, dropout: 0.4)
        },
        OperationCase(
            name: "Kronecker product of low rank",
            inputs: [([67, 12], .activation), ([67, 10], .activation), ([3, 5], .parameter), ([4, 3], .parameter), ([3, 2], .parameter)]
        ) { tape, x in
            try tape.addKronecker(to: x[0], input: x[1], w: x[2], a: x[3], b: x[4], scale: 1.5)
        },
        OperationCase(name: "low-rank embedding", inputs: [([4, 3], .activation), ([2, 6], .parameter), ([3, 2], .parameter)]) { tape, x in
            let ids = try Tensor(tape.engine, [5, 0, 5, 2] as [Int32], shape: [4])
            return try tape.addLowRankEmbedding(to: x[0], ids: ids, a: x[1], b: x[2], scale: 0.5)
        },
        OperationCase(name: "embedding", inputs: [([6, 3], .parameter)]) { tape, x in
            try tape.embedding(Tensor(tape.engine, [5, 0, 5, 2] as [Int32], shape: [2, 2]), x[0], scale: 2)
        },
        OperationCase(name: "dropout", inputs: [([4, 6], .activation)]) { tape, x in try tape.dropout(x[0], 0.3) },
        OperationCase(name: "dropout of everything", inputs: [([2, 2], .activation)]) { tape, x in try tape.dropout(x[0], 1) },
    ]

    static let norms: [OperationCase] = [
        OperationCase(name: "rmsNorm", inputs: [([3, 6], .activation), ([6], .parameter)]) { tape, x in
            try tape.rmsNorm(x[0], weight: x[1], eps: 1e-5)
        },
        OperationCase(name: "rmsNorm with offset", inputs: [([3, 6], .activation), ([6], .parameter)]) { tape, x in
            try tape.rmsNorm(x[0], weight: x[1], offset: 1, eps: 1e-2)
        },
        OperationCase(name: "layerNorm", inputs: [([3, 6], .activation), ([6], .parameter), ([6], .parameter)]) { tape, x in
            try tape.layerNorm(x[0], weight: x[1], bias: x[2], eps: 1e-5)
        },
        OperationCase(name: "layerNorm without weights", inputs: [([3, 6], .activation)]) { tape, x in
            try tape.layerNorm(x[0], weight: nil, bias: nil, eps: 1e-5)
        },
    ]

    static let rotary: [OperationCase] = [(4, false), (4, true), (2, false), (2, true)].map { rotary, interleaved in
        OperationCase(name: "rope of \(rotary) of 4\(interleaved ? ", interleaved" : "")", inputs: [([3, 8], .activation)]) { tape, x in
            let angles = samples(5 * rotary / 2, seed: 3)
            let cos = try Tensor(tape.engine, angles.map { cosine($0) }, shape: [5, rotary / 2])
            let sin = try Tensor(tape.engine, angles.map { sine($0) }, shape: [5, rotary / 2])
            let positions = try Tensor(tape.engine, [4, 0, 2] as [Int32], shape: [3])
            return try tape.rope(x[0], heads: 2, headDim: 4, rotary: rotary, cos: cos, sin: sin, positions: positions, interleaved: interleaved)
        }
    }

    static func attentionCase(
        _ name: String, _ shape: AttentionShape, keyMask: [UInt8]? = nil, firstKey: [Int32]? = nil
    ) -> OperationCase {
        OperationCase(
            name: "attention, \(name)",
            inputs: [
                ([shape.batch * shape.queryLength, shape.heads * shape.headDim], .activation),
                ([shape.batch * shape.keyLength, shape.keyValueHeads * shape.headDim], .activation),
                ([shape.batch * shape.keyLength, shape.keyValueHeads * shape.headDim], .activation),
            ], bf16Tolerance: 0.05
        ) { tape, x in
            let mask = try keyMask.map { values in
                let mask = try Tensor(tape.engine, [shape.batch, shape.keyLength], .u8)
                for (index, value) in values.enumerated() { mask.pointer.storeBytes(of: value, toByteOffset: index, as: UInt8.self) }
                return mask
            }
            let first = try firstKey.map { try Tensor(tape.engine, $0, shape: [shape.batch, shape.queryLength]) }
            return try tape.attention(q: x[0], k: x[1], v: x[2], shape: shape, keyMask: mask, firstKey: first)
        }
    }

    /// With learned distances, `[heads, distances]`.
    static func distanceCase(_ name: String, _ shape: AttentionShape) -> OperationCase {
        let (width, distances) = (shape.heads * shape.headDim, DistanceBias.distances(shape).count)
        return OperationCase(
            name: "attention with distances, \(name)",
            inputs: [
                ([shape.batch * shape.queryLength, width], .activation), ([shape.batch * shape.keyLength, width], .activation),
                ([shape.batch * shape.keyLength, width], .activation), ([shape.heads, distances], .parameter),
            ], bf16Tolerance: 0.05
        ) { tape, x in
            try tape.attention(q: x[0], k: x[1], v: x[2], shape: shape, bias: DistanceBias(x[3].value, shape), distances: x[3])
        }
    }

    static let attention: [OperationCase] = [
        distanceCase("all see all", AttentionShape(batch: 2, queryLength: 3, heads: 2, keyValueHeads: 2, headDim: 4, scale: 1, isCausal: false)),
        distanceCase("causal", AttentionShape(batch: 1, queryLength: 4, heads: 2, keyValueHeads: 2, headDim: 4, scale: 1, isCausal: true)),
        attentionCase("causal, grouped heads", AttentionShape(batch: 2, queryLength: 3, heads: 4, keyValueHeads: 2, headDim: 4, isCausal: true)),
        attentionCase("all see all", AttentionShape(batch: 1, queryLength: 3, heads: 2, keyValueHeads: 2, headDim: 4, isCausal: false)),
        attentionCase("prefix in front", AttentionShape(batch: 2, queryLength: 2, keyLength: 5, heads: 2, keyValueHeads: 1, headDim: 4, isCausal: true)),
        attentionCase("window", AttentionShape(batch: 1, queryLength: 5, heads: 1, keyValueHeads: 1, headDim: 4, isCausal: true, window: 2)),
        attentionCase("softcap", AttentionShape(batch: 1, queryLength: 3, heads: 2, keyValueHeads: 1, headDim: 4, scale: 0.7, softcap: 1.5, isCausal: true)),
        attentionCase(
            "padding", AttentionShape(batch: 2, queryLength: 3, heads: 2, keyValueHeads: 1, headDim: 4, isCausal: true), keyMask: [1, 0, 1, 1, 1, 0]),
        attentionCase(
            "packed", AttentionShape(batch: 1, queryLength: 5, heads: 2, keyValueHeads: 2, headDim: 4, isCausal: true), firstKey: [0, 0, 2, 2, 2]),
    ]

    static let activations: [OperationCase] =
        ActivationKind.allCases.map { kind in
            OperationCase(name: "\(kind)", inputs: [([3, 4], .activation)]) { tape, x in try tape.activation(x[0], kind) }
        }
        + [ActivationKind.silu, .gelu, .geluTanh].map { kind in
            OperationCase(name: "glu \(kind)", inputs: [([3, 4], .activation), ([3, 4], .activation)]) { tape, x in try tape.glu(x[0], x[1], kind) }
        }

    static let elementwise: [OperationCase] = [
        OperationCase(name: "add", inputs: [([3, 4], .activation), ([3, 4], .activation)]) { tape, x in try tape.add(x[0], x[1]) },
        OperationCase(name: "x + x", inputs: [([3, 4], .activation)]) { tape, x in try tape.add(x[0], x[0]) },
        OperationCase(name: "multiply", inputs: [([3, 4], .activation), ([3, 4], .activation)]) { tape, x in try tape.multiply(x[0], x[1]) },
        OperationCase(name: "x · x", inputs: [([3, 4], .activation)]) { tape, x in try tape.multiply(x[0], x[0]) },
        OperationCase(name: "x used four times", inputs: [([3, 4], .activation)]) { tape, x in
            let doubled = try tape.add(x[0], tape.scaled(x[0], by: 3))
            return try tape.add(tape.multiply(x[0], x[0]), doubled)
        },
        OperationCase(name: "scaled", inputs: [([3, 4], .activation)]) { tape, x in try tape.scaled(x[0], by: -1.5) },
        OperationCase(name: "scaleColumns", inputs: [([3, 4], .activation), ([4], .parameter), ([4], .parameter)]) { tape, x in
            try tape.scaleColumns(x[0], scale: x[1], shift: x[2])
        },
        OperationCase(name: "scaleColumns by m/n", inputs: [([3, 4], .activation), ([4], .parameter)]) { tape, x in
            let inverse = try tensor(tape.engine, [4], seed: 8)
            return try tape.scaleColumns(x[0], scale: tape.multiply(x[1], Variable(inverse)))
        },
        OperationCase(name: "shift only", inputs: [([3, 4], .activation), ([4], .parameter)]) { tape, x in
            try tape.scaleColumns(x[0], scale: nil, shift: x[1])
        },
        OperationCase(name: "scaleRows", inputs: [([3, 4], .activation), ([3], .parameter)]) { tape, x in try tape.scaleRows(x[0], x[1]) },
        OperationCase(name: "cast there and back", inputs: [([3, 4], .parameter)], bf16Tolerance: 0.01) { tape, x in
            try tape.cast(tape.scaled(tape.cast(x[0], to: tape.precision.activation), by: 2), to: .f32)
        },
        OperationCase(name: "reshaped", inputs: [([3, 4], .activation)]) { tape, x in try tape.multiply(tape.reshaped(x[0], [4, 3]), tape.reshaped(x[0], [4, 3])) },
    ]

    static let rows: [OperationCase] = [
        OperationCase(name: "overlapping rows", inputs: [([5, 3], .activation)]) { tape, x in
            try tape.multiply(tape.rows(x[0], 0..<3), tape.rows(x[0], 2..<5))
        },
        OperationCase(name: "rows, the rest unused", inputs: [([4, 3], .activation)]) { tape, x in try tape.rows(x[0], 1..<2) },
        OperationCase(name: "concatenateRows", inputs: [([2, 3], .activation), ([1, 3], .activation)]) { tape, x in
            try tape.concatenateRows([x[0], x[1], x[0]])
        },
        OperationCase(name: "patches of pictures", inputs: [([2, 3, 4, 5], .activation)]) { tape, x in
            try tape.patches(
                x[0], batch: 2, channels: 3, size: [4, 5], layout: .channelsFirst,
                PatchGeometry(kernel: [3, 2], stride: [2, 1], padding: [1, 0], dilation: [1, 2]))
        },
        OperationCase(name: "patches of rows", inputs: [([7, 2], .activation)]) { tape, x in
            try tape.patches(x[0], batch: 1, channels: 2, size: [7], layout: .channelsLast, PatchGeometry(kernel: [3], stride: [1], padding: [1], dilation: [2]))
        },
        OperationCase(name: "gatherRows", inputs: [([4, 3], .activation)]) { tape, x in try tape.gatherRows(x[0], [3, 1, 3, 3, 0]) },
        OperationCase(name: "topShares", inputs: [([2, 5], .parameter)]) { tape, x in
            // Far enough apart that a difference does not change who is chosen.
            let apart = try Tensor(tape.engine, [0, 2, 0.5, 1, 1.5, 1, 0, 2, 1.5, 0.5] as [Float], shape: [2, 5])
            return try tape.topShares(tape.add(tape.scaled(x[0], by: 0.1), Variable(apart)), 3).shares
        },
        OperationCase(name: "meanRows", inputs: [([6, 3], .activation)]) { tape, x in try tape.meanRows(x[0], [0..<2, 3..<6]) },
        OperationCase(name: "splitColumns", inputs: [([3, 6], .activation)]) { tape, x in
            let parts = try tape.splitColumns(x[0], [2, 2, 2])
            return try tape.multiply(parts[0], parts[2])
        },
        OperationCase(name: "concatenateColumns", inputs: [([3, 2], .activation), ([3, 1], .activation)]) { tape, x in
            try tape.concatenateColumns([x[0], x[1], x[0]])
        },
    ]

    static let columns: [OperationCase] = [
        OperationCase(name: "gatherColumns", inputs: [([3, 4], .activation)]) { tape, x in
            try tape.gatherColumns(x[0], ColumnMap(tape.engine, [3, 0, 3, 3, 1], of: 4))
        },
        OperationCase(name: "scatterColumns", inputs: [([3, 5], .activation)]) { tape, x in
            try tape.scatterColumns(x[0], ColumnMap(tape.engine, [3, 0, 3, 3, 1], of: 4))
        },
        OperationCase(name: "turnedRows", inputs: [([2, 54], .activation)]) { tape, x in try tape.turnedRows(x[0], 9, 6) },
        OperationCase(name: "turnColumns", inputs: [([3, 4], .activation), ([4], .parameter), ([4], .parameter)]) { tape, x in
            try tape.turnColumns(x[0], cosine: x[1], sine: x[2], partners: ColumnMap(tape.engine, [2, 3, 0, 1], of: 4))
        },
        OperationCase(name: "leftColumns", inputs: [([3, 2], .activation)]) { tape, x in
            try tape.linear(x[0], tape.leftColumns(of: tensor(tape.engine, [4, 5], seed: 1), 2))
        },
        OperationCase(name: "remade, used twice", inputs: [([3, 4], .activation), ([2, 4], .parameter), ([2, 4], .parameter)]) { tape, x in
            let a = try tape.remade([x[1], x[2]]) { (tape, w) throws(PEFTError) in try tape.multiply(w[0], w[1]) }
            return try tape.addLowRank(to: try tape.linear(x[0], a), input: x[0], a: a, b: try tape.linear(a, a), scale: 0.5)
        },
    ]

    static let blocks: [OperationCase] = [
        OperationCase(name: "blockLinear", inputs: [([3, 6], .activation), ([3, 2, 4], .parameter)]) { tape, x in try tape.blockLinear(x[0], x[1]) },
        OperationCase(name: "blockLinear of long columns", inputs: [([33, 8], .activation), ([2, 4, 4], .parameter)]) { tape, x in
            try tape.blockLinear(x[0], x[1])
        },
        OperationCase(name: "blockProducts", inputs: [([2, 3, 4], .parameter), ([2, 4, 2], .parameter)]) { tape, x in try tape.blockProducts(x[0], x[1]) },
        OperationCase(name: "inverses", inputs: [([2, 3, 3], .parameter)], step: 0.005) { tape, x in
            let four = try Tensor(tape.engine, (0..<18).map { $0 % 9 % 4 == 0 ? Float(4) : 0 }, shape: [2, 3, 3])
            return try tape.inverses(tape.add(x[0], Variable(four)))
        },
        OperationCase(
            name: "computed weight", inputs: [([3, 4], .activation), ([3, 5], .activation), ([4, 2], .parameter), ([2, 5], .parameter), ([4, 5], .parameter)]
        ) { tape, x in
            try tape.addProduct(to: x[0], input: x[1], scale: 1.5, of: [x[2], x[3], x[4]]) { (tape, w) throws(PEFTError) in
                try tape.multiply(try tape.linear(w[0], w[1], transposed: true), w[2])
            }
        },
    ]

    static let parameters: [OperationCase] = [
        OperationCase(name: "cosine", inputs: [([5], .parameter)]) { tape, x in try tape.cosine(x[0]) },
        OperationCase(name: "sine", inputs: [([5], .parameter)]) { tape, x in try tape.sine(x[0]) },
        OperationCase(name: "arctangent", inputs: [([5], .parameter)]) { tape, x in try tape.arctangent(x[0]) },
        OperationCase(name: "inverse norms of rows", inputs: [([3, 4], .parameter)]) { tape, x in try tape.inverseNorms(x[0], ofColumns: false, floor: 1e-4) },
        OperationCase(name: "inverse norms of columns", inputs: [([3, 4], .parameter)]) { tape, x in try tape.inverseNorms(x[0], ofColumns: true, floor: 1e-4) },
        OperationCase(name: "norm", inputs: [([3, 4], .parameter)]) { tape, x in try tape.norm(x[0]) },
    ]

    static let losses: [OperationCase] = [
        OperationCase(name: "crossEntropy", inputs: [([4, 5], .activation)]) { tape, x in
            try tape.crossEntropy(x[0], labels: Tensor(tape.engine, [3, -100, 0, 4] as [Int32], shape: [4])).variable
        },
        OperationCase(name: "crossEntropy, softcap and divisor", inputs: [([2, 5], .activation)]) { tape, x in
            try tape.crossEntropy(x[0], labels: Tensor(tape.engine, [3, 0] as [Int32], shape: [2]), divisor: 7, softcap: 2).variable
        },
        OperationCase(name: "meanSquaredError", inputs: [([3, 2], .activation)]) { tape, x in
            try tape.meanSquaredError(x[0], target: tensor(tape.engine, [3, 2], seed: 4)).variable
        },
        OperationCase(name: "binaryCrossEntropyWithLogits", inputs: [([3, 2], .activation)]) { tape, x in
            try tape.binaryCrossEntropyWithLogits(x[0], target: Tensor(tape.engine, [0, 1, 1, 0, 0.5, 1], shape: [3, 2])).variable
        },
    ]
}

/// Taylor series, good beyond f32 for |x| < 3: the tests need no library for it.
func sine(_ x: Float) -> Float {
    var (term, sum) = (Double(x), Double(x))
    for n in 1..<20 {
        term *= -Double(x) * Double(x) / Double((2 * n) * (2 * n + 1))
        sum += term
    }
    return Float(sum)
}

func cosine(_ x: Float) -> Float { sine(x + Float.pi / 2) }
