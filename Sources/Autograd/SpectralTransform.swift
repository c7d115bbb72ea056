internal import Glibc
internal import Kernels
package import Platform
package import Tensors

/// A linear map of a vector to a spectrum in which few values say much: Fourier's, one level of wavelets, or none.
package struct SpectralTransform: Sendable {
    /// Values of the vector.
    package let size: Int
    /// Places of the spectrum.
    package let places: Int
    private let kind: Int32
    private let block: Int
    private let factors: [Int]
    /// Angles of a block, or the filters: `[2, length]`.
    private let table: Tensor?
    private let shift: Int

    private init(size: Int, places: Int, kind: Int, block: Int = 1, factors: [Int] = [], table: Tensor? = nil, shift: Int = 0) {
        (self.size, self.places, self.kind, self.block) = (size, places, Int32(truncatingIfNeeded: kind), block)
        (self.factors, self.table, self.shift) = (factors, table, shift)
    }

    package static func none(_ size: Int) -> SpectralTransform {
        SpectralTransform(size: size, places: size, kind: Int(PK_IDENTITY))
    }

    /// `X_k = Σ_i x_i·e^(2πi·k·i/block)` in each block of the vector; `block` divides `size`.
    package static func fourier(_ engine: Engine, _ size: Int, block: Int) throws(PEFTError) -> SpectralTransform {
        try require(block > 0 && size % block == 0, "fourier: \(size) in blocks of \(block)")
        let angles = (0..<block).map { 2 * Double.pi * Double($0) / Double(block) }
        let table = try Tensor(
            engine, angles.map { Float(cos($0)) } + angles.map { Float(sin($0)) }, shape: [2, block], .adapters)
        return SpectralTransform(
            size: size, places: size, kind: Int(PK_FOURIER), block: block, factors: factors(of: block), table: table)
    }

    /// The adjoint of a reconstruction from `places` (even) coefficients, low-pass ones first: value i of the vector is what
    /// comes out at place i + shift.
    package static func wavelets(_ engine: Engine, _ size: Int, places: Int, low: [Float], high: [Float], shift: Int)
        throws(PEFTError) -> SpectralTransform
    {
        try require(places % 2 == 0 && places >= size && low.count == high.count, "wavelets: \(size) from \(places)")
        let table = try Tensor(engine, low + high, shape: [2, low.count], .adapters)
        return SpectralTransform(size: size, places: places, kind: Int(PK_WAVELETS), table: table, shift: shift)
    }

    /// Fours first: their passes are the fastest.
    private static func factors(of n: Int) -> [Int] {
        var (rest, factors, factor) = (n, [Int](), 2)
        while rest % 4 == 0 { (rest, factors) = (rest / 4, factors + [4]) }
        while rest > 1 {
            while rest % factor == 0 { (rest, factors) = (rest / factor, factors + [factor]) }
            factor += 1
            if factor * factor > rest, rest > 1 { return factors + [rest] }
        }
        return factors
    }

    package var isNone: Bool { kind == Int32(truncatingIfNeeded: Int(PK_IDENTITY)) }
    var isFourier: Bool { kind == Int32(truncatingIfNeeded: Int(PK_FOURIER)) }

    /// The opposite frequency of the same block.
    func opposite(_ place: Int32) -> Int32 {
        let own = Int(place) % block
        return own == 0 ? place : Int32(truncatingIfNeeded: Int(place) - 2 * own + block)
    }

    var kernel: pk_transform {
        var result = unsafe pk_transform()
        unsafe (result.kind, result.n, result.size) = (kind, Int64(size), Int64(places))
        guard let table else { return unsafe result }
        let (first, second) = unsafe (table.floatPointer, table.floatPointer + table.columns)
        if isFourier {
            unsafe result.block = Int64(block)
            unsafe (result.cosines, result.sines) = unsafe (UnsafePointer(first), UnsafePointer(second))
            unsafe result.factor_count = Int32(truncatingIfNeeded: factors.count)
            unsafe withUnsafeMutableBytes(of: &result.factors) { bytes in
                let places = unsafe bytes.bindMemory(to: Int32.self)
                // A length has at most 63 prime factors.
                for (index, factor) in factors.enumerated() where index < places.count {
                    unsafe places[index] = Int32(truncatingIfNeeded: factor)
                }
            }
        } else {
            unsafe (result.half, result.length, result.shift) = (Int64(places / 2), Int64(table.columns), Int64(shift))
            unsafe (result.low, result.high) = unsafe (UnsafePointer(first), UnsafePointer(second))
        }
        return unsafe result
    }
}

/// Where the values of a sparse matrix stand.
package struct SparsePlaces: Sendable {
    /// By rows.
    private let rows: Tensor
    private let columns: Tensor
    /// The opposite frequencies; without Fourier transforms the same places.
    private let opposite: (rows: Tensor, columns: Tensor)
    /// Which value each has; nil: they stand in this order.
    private let order: Tensor?
    package let count: Int

    /// - Throws: `.internal` for a place outside `[rows, columns]`.
    package init(_ engine: Engine, rows: [Int32], columns: [Int32], from: SpectralTransform, to: SpectralTransform) throws(PEFTError) {
        let count = rows.count
        let fits = rows.allSatisfy { $0 >= 0 && Int($0) < to.places } && columns.allSatisfy { $0 >= 0 && Int($0) < from.places }
        try require(fits && columns.count == count && count <= Int(Int32.max), "\(count) sparse values in \(to.places) × \(from.places)")
        func table(_ values: [Int32]) throws(PEFTError) -> Tensor { try Tensor(engine, values, shape: [count]) }
        var (rows, columns) = (rows, columns)
        if zip(rows, rows.dropFirst()).allSatisfy({ $0 <= $1 }) {
            order = nil
        } else {
            let order = (0..<count).sorted { (rows[$0], $0) < (rows[$1], $1) }
            (rows, columns) = (order.map { rows[$0] }, order.map { columns[$0] })
            self.order = try table(order.map { Int32(truncatingIfNeeded: $0) })
        }
        (self.rows, self.columns, self.count) = (try table(rows), try table(columns), count)
        opposite = from.isFourier ? (try table(rows.map(to.opposite)), try table(columns.map(from.opposite))) : (self.rows, self.columns)
    }

    var entries: pk_entries {
        unsafe pk_entries(
            rows: rows.int32Pointer, columns: columns.int32Pointer, order: unsafe order.map { unsafe UnsafePointer($0.int32Pointer) }, count: Int64(count))
    }

    /// Sets the places of an operation.
    func enter(_ op: inout pk_spectral) {
        unsafe op.entries = unsafe entries
        unsafe (op.opposite_rows, op.opposite_columns) = unsafe (UnsafePointer(opposite.rows.int32Pointer), UnsafePointer(opposite.columns.int32Pointer))
    }
}
