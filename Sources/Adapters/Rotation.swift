internal import Autograd
internal import Platform
internal import Tensors

/// Orthogonal matrices from free parameters, as OFT and BOFT have them: blocks `[n, b, b]`.
enum Rotation {
    /// Cayley's form of skew-symmetric Q: `(I − Q)·(I + Q)⁻¹`.
    static func cayley(_ q: Variable, _ tape: Tape) throws(PEFTError) -> Variable {
        let identity = try identity(q.shape, tape)
        let numerator = try tape.add(identity, try tape.scaled(q, by: -1))
        return try tape.blockProducts(numerator, try tape.inverses(try tape.add(q, identity)))
    }

    /// The first terms of Neumann's series for `(I + Q)·(I − Q)⁻¹`, the last one with half its weight, as PEFT has them:
    /// `I + 2Q + 2Q² + … + Q^(terms−1)`; 3 terms are the same as 4.
    static func series(_ q: Variable, terms: Int, _ tape: Tape) throws(PEFTError) -> Variable {
        let identity = try identity(q.shape, tape)
        if terms <= 1 { return identity }
        if terms == 2 { return try tape.add(identity, try tape.scaled(q, by: 2)) }
        // Horner: I + Q(2I + Q(2I + … Q)).
        let double = try tape.scaled(identity, by: 2)
        var sum = q
        for _ in 0..<max(terms, 4) - 2 { sum = try tape.blockProducts(q, try tape.add(double, sum)) }
        return try tape.add(identity, sum)
    }

    static func identity(_ shape: [Int], _ tape: Tape) throws(PEFTError) -> Variable {
        let values = try Tensor.zeros(tape.engine, shape, .f32)
        let b = shape[2]
        unsafe values.withMutableFloats { values in
            for block in stride(from: 0, to: values.count, by: max(b * b, 1)) {
                for place in 0..<b { unsafe values[block + place * (b + 1)] = 1 }
            }
        }
        return Variable(values)
    }

    /// Columns of a flattened `[b, b]`, the other way round.
    static func transposition(_ b: Int, _ engine: Engine) throws(PEFTError) -> ColumnMap {
        try ColumnMap(engine, (0..<b * b).map { $0 % b * b + $0 / b }, of: b * b)
    }
}
