internal import Autograd
internal import Models
package import Platform
internal import Synchronization
internal import Tensors

extension AdapterSet {
    /// As `peft_adapter_status` has it.
    package func status() -> JSONObject {
        let table = table.withLock { $0 }
        var adapters = JSONObject()
        for name in table.names {
            guard let adapter = table.entries[name]?.adapter else { continue }
            adapters[name] = .object([
                "peft_type": .string(adapter.configuration.method.peftType), "trainable": .bool(adapter.isTrainable),
                "parameters": .integer(Int64(adapter.parameterCount)),
                "layers": .array(adapter.modules.map { .string($0.layer.name) }),
            ])
        }
        let active = table.active.map {
            JSONValue.object(["name": .string($0.name), "weight": .number(Double($0.weight))])
        }
        let merged = table.names.filter { table.entries[$0]?.isMerged == true }
        let trainable = ((try? trainableParameters()) ?? []).reduce(0) { $0 + $1.parameter.value.count }
        let base = model.lock.read { model.parameters.reduce(0) { $0 + $1.tensor.count } }
        let all = base + table.entries.values.reduce(0) { $0 + $1.adapter.parameterCount }
        return [
            "enabled": .bool(table.isEnabled), "active": .array(active), "composition": table.composition.isPlain ? .null : table.composition.json, "merged": .array(merged.map { .string($0) }),
            "trainable_parameters": .integer(Int64(trainable)), "all_parameters": .integer(Int64(all)),
            "adapters": .object(adapters),
        ]
    }
}
