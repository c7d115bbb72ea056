package import Platform
internal import Synchronization
package import Tensors

/// Something made of a model's weights and its adapters' parameters, kept for as long as nothing is written into the model.
///
/// Asked for under the model's lock, by computations whose derivative does not pass through it. `Key` is what else it depends on, `Always` where that is nothing.
package final class Kept<Key: Equatable & Sendable, Value: Sendable>: Sendable {
    private let model: Model
    private let known = Mutex<(generation: UInt64, key: Key, value: Value)?>(nil)

    package init(_ model: Model) { self.model = model }

    /// - Parameters:
    ///   - key: that of the last one asked for is kept.
    ///   - engine: of the computation; one that plans has nothing to keep.
    package func callAsFunction(_ key: Key, _ engine: Engine, _ make: () throws(PEFTError) -> Value) throws(PEFTError) -> Value {
        if engine.isPlanning { return try make() }
        let generation = model.lock.generation
        if let known = known.withLock({ $0 }), known.generation == generation, known.key == key { return known.value }
        known.withLock { $0 = nil }  // Its memory first.
        let value = try make()
        known.withLock { $0 = (generation, key, value) }
        return value
    }
}

package struct Always: Equatable, Sendable {}

extension Kept where Key == Always {
    package func callAsFunction(_ engine: Engine, _ make: () throws(PEFTError) -> Value) throws(PEFTError) -> Value { try self(Always(), engine, make) }
}
