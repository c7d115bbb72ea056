package import Adapters
package import Platform

extension Trainee {
    /// One adapter of a model, or (nil) those that are active.
    package init(_ set: AdapterSet, _ adapter: String? = nil) throws(PEFTError) {
        let selection = try AdapterSelection(set, adapter)
        let parameters = Dictionary(selection.entries) { first, _ in first }
        self.init(
            name: selection.name, entries: selection.entries,
            adaptation: { () throws(PEFTError) in try selection.adaptation() },
            configuration: selection.configuration,
            scaling: { key in parameters[key].flatMap { selection.scaling(of: $0) } }, companions: selection.companions)
    }
}
