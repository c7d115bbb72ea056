package import Autograd
package import Platform
internal import Tensors

/// An invertible change of states: done to what goes into the first block, undone before a language model's head (MAD-X's invertible
/// adapters, Pfeiffer et al., arXiv:2005.00052).
package protocol Coupling: AnyObject, Sendable {
    func entering(_ x: Variable, _ tape: Tape) throws(PEFTError) -> Variable
    func leaving(_ x: Variable, _ tape: Tape) throws(PEFTError) -> Variable
}

extension ForwardContext {
    func entered(_ x: consuming Variable) throws(PEFTError) -> Variable {
        try coupled(x) { (coupling, x, tape) throws(PEFTError) in try coupling.entering(x, tape) }
    }

    func left(_ x: consuming Variable) throws(PEFTError) -> Variable {
        try coupled(x) { (coupling, x, tape) throws(PEFTError) in try coupling.leaving(x, tape) }
    }

    private func coupled(_ x: consuming Variable, _ change: (any Coupling, Variable, Tape) throws(PEFTError) -> Variable) throws(PEFTError) -> Variable {
        guard let groups, groups.contains(where: { $0.adaptation.coupling != nil }) else {
            guard let coupling = commonAdaptation?.coupling else { return x }
            return try change(coupling, x, tape)
        }
        let x = x
        return try tape.concatenateRows(try groups.map { (group) throws(PEFTError) in
            let part = try tape.rows(x, try rows(of: group.range, in: x.value.rows))
            return try group.adaptation.coupling.map { (coupling) throws(PEFTError) in try change(coupling, part, tape) } ?? part
        })
    }
}
