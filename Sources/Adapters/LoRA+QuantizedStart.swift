internal import Models
internal import Platform
internal import Quantization
internal import Tensors

/// LoftQ (Li et al., arXiv:2310.08659): the layer's weight is quantised, and B·A begins as the best approximation of what that
/// loses. In turns, Q = quantised(W − B·A) and B·A = the r largest singular values of W − Q. As in PEFT s is not divided out.
///
/// PEFT leaves Q's values in the layer, to be quantised by whoever comes next; here the layer has Q itself.
struct QuantizedStart: Sendable, Equatable {
    let format: WeightFormat
    let turns: Int

    init(_ configuration: AdapterConfiguration) throws(PEFTError) {
        guard let options = configuration.values["loftq_config"]?.objectValue, !options.isEmpty else {
            throw PEFTError(.argument, "init_lora_weights 'loftq' needs a loftq_config: {\"loftq_bits\": 4, \"loftq_iter\": 1}")
        }
        try options.check(["loftq_bits", "loftq_iter"], "loftq_config")
        switch try options.integer("loftq_bits") ?? 4 {
        case 4: format = WeightFormat(.nf4)
        case 8: format = WeightFormat(.int8)
        case let bits: throw PEFTError(.argument, "loftq_bits is \(bits); 4 and 8 are possible")
        }
        turns = try options.integer("loftq_iter") ?? 1
        guard (1...100).contains(turns) else { throw PEFTError(.argument, "loftq_iter is \(turns); 1 to 100 are possible") }
    }
}

extension LinearLoRA {
    /// Sets A and B.
    /// - Returns: the quantised weight.
    func begin(beside start: QuantizedStart) throws(PEFTError) -> Tensor {
        let left = try linear.weight.converted(to: .f32, engine, .scratch)
        var turns = 0
        while true {
            let stored = try left.encoded(as: start.format.dtype, scaling: start.format.scaling.following(followsCPU), engine, .weights)
            var lost = try linear.weight.converted(to: .f32, engine, .scratch)
            engine.axpby(-1, try stored.converted(to: .f32, engine, .scratch), 1, into: lost)
            if linear.isTransposed { lost = try lost.transposed(engine) }
            let (u, s, vh) = try Decompositions(engine).singularValues(lost)
            let roots = try s.floats(engine).prefix(rank).map { max($0, 0).squareRoot() }.enumerated().map { ($0, $1) }
            setFactors(a: roots, of: vh, b: roots, of: u)
            turns += 1
            if turns == start.turns { return stored }
            engine.axpby(1, try linear.weight.converted(to: .f32, engine, .scratch), 0, into: left)
            try addProduct(to: left, scale: -1)
        }
    }
}
