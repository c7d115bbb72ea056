internal import Autograd
internal import Models
internal import Platform
internal import Tensors

/// The weight of a layer taken apart, for methods that train what lies between or below its singular directions.
struct SingularDirections {
    /// `[out, k]`, `[k]` descending, `[k, in]`, k = min(in, out)
    let u: [Float]
    let s: [Float]
    let vh: [Float]
    let outputs: Int
    let inputs: Int

    init(_ linear: Linear, _ engine: Engine) throws(PEFTError) {
        let w = try linear.weight.converted(to: .f32, engine, .scratch)
        try self.init(linear.isTransposed ? try w.transposed(engine) : w, engine)
    }

    /// - Parameter w: f32 `[out, in]`, overwritten.
    init(_ w: Tensor, _ engine: Engine) throws(PEFTError) {
        (outputs, inputs) = (w.rows, w.columns)
        let (u, s, vh) = try Decompositions(engine).singularValues(w)
        (self.u, self.s, self.vh) = (try u.floats(engine), try s.floats(engine), try vh.floats(engine))
    }

    /// `U·diag(scale)` of some directions, `[out, count]`.
    func left(_ range: Range<Int>, scale: (Float) -> Float = { _ in 1 }) -> [Float] {
        let width = s.count
        let factors = s.map(scale)
        return (0..<outputs).flatMap { row in range.map { u[row * width + $0] * factors[$0] } }
    }

    /// `diag(scale)·Vᵀ` of some directions, `[count, in]`.
    func right(_ range: Range<Int>, scale: (Float) -> Float = { _ in 1 }) -> [Float] {
        range.flatMap { row in
            let factor = scale(s[row])
            return (0..<inputs).map { vh[row * inputs + $0] * factor }
        }
    }
}
