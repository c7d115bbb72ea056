internal import Models
internal import Platform
internal import Quantization
internal import Tensors

/// LoftQ (Li et al., arXiv:2310.08659): the layer's weight is quantised, and B·A begins as the best approximation of what that
/// loses. In turns, Q = quantised(W − B·A) and B·A = the r largest singular values of W − Q. As in PEFT s is not divided out.
///
/// PEFT leaves Q's values in the layer, to be quantised by whoever comes next; here the layer has Q itself.
///
/// QPiSSA (Meng et al., arXiv:2404.02948, algorithm 1) begins at the other end: s·B·A is the principal part of W, and what is left,
/// which has no large directions, is quantised: Q = quantised(W − s·B·A). With more turns s·B·A is then the principal part of W − Q, and
/// Q is made anew; it ends with Q where LoftQ ends with B·A.
struct QuantizedStart: Sendable, Equatable {
    let format: WeightFormat
    let turns: Int
    /// QPiSSA.
    let isPrincipal: Bool

    init(_ configuration: AdapterConfiguration, isPrincipal: Bool) throws(PEFTError) {
        self.isPrincipal = isPrincipal
        let given = configuration.values["loftq_config"]?.objectValue
        guard let options = isPrincipal ? given ?? [:] : given, isPrincipal || !options.isEmpty else {
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
        let share = start.isPrincipal ? Float(factor) : 1  // of B·A in W
        if start.isPrincipal { try begin(along: try weight(), share) }
        var turn = 1
        while true {
            let left = try linear.weight.converted(to: .f32, engine, .scratch)
            if start.isPrincipal || turn > 1 { try addProduct(to: left, scale: -share) }
            let stored = try left.encoded(as: start.format.dtype, scaling: start.format.scaling.following(followsCPU), engine, .weights)
            if start.isPrincipal, turn == start.turns { return stored }
            var lost = try linear.weight.converted(to: .f32, engine, .scratch)
            engine.axpby(-1, try stored.converted(to: .f32, engine, .scratch), 1, into: lost)
            if linear.isTransposed { lost = try lost.transposed(engine) }
            try begin(along: lost, share)
            if turn == start.turns { return stored }
            turn += 1
        }
    }

    /// `share`·B·A is the best approximation of a matrix `[out, in]`.
    private func begin(along matrix: Tensor, _ share: Float) throws(PEFTError) {
        let (u, s, vh) = try Decompositions(engine).singularValues(matrix)
        let roots = try s.floats(engine).prefix(rank).map { (max($0, 0) / share).squareRoot() }.enumerated().map { ($0, $1) }
        setFactors(a: roots, of: vh, b: roots, of: u)
    }
}
