package import Adapters
package import Platform

extension Trainee {
    /// Adapters of a model, or (nil) those that are active.
    package init(_ set: AdapterSet, _ adapters: [String]? = nil) throws(PEFTError) {
        let selection = try AdapterSelection(set, adapters)
        let parameters = Dictionary(selection.entries) { first, _ in first }
        self.init(
            name: selection.name, entries: selection.entries,
            adaptation: { () throws(PEFTError) in try selection.adaptation() },
            routing: { (names) throws(PEFTError) in try selection.routing(samples: names) },
            rows: { (count) throws(PEFTError) in try selection.routing(rows: count) },
            configuration: selection.configuration,
            scaling: { key in parameters[key].flatMap { selection.scaling(of: $0) } }, companions: selection.companions)
    }
}
