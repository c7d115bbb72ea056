public import CPEFTSwift
internal import Adapters
internal import Kernels
internal import Models
internal import Platform
internal import Tensors
internal import Training

// Group "results": version, status texts, features. The texts are StaticStrings, so their addresses hold for ever.

private let version: StaticString = "1.0.0"

private func constant(_ text: StaticString) -> UnsafePointer<CChar> {
    unsafe UnsafeRawPointer(text.utf8Start).assumingMemoryBound(to: CChar.self)
}

@_cdecl("peft_version") @implementation
public func peft_version() -> UnsafePointer<CChar>? { unsafe constant(version) }

@_cdecl("peft_version_number") @implementation
public func peft_version_number() -> Int32 { PEFT_VERSION_MAJOR * 10000 + PEFT_VERSION_MINOR * 100 + PEFT_VERSION_PATCH }

@_cdecl("peft_status_text") @implementation
public func peft_status_text(_ code: Int32) -> UnsafePointer<CChar>? {
    switch code {
    case PEFT_OK: unsafe constant("ok")
    case PEFT_DONE: unsafe constant("done")
    case PEFT_ERROR_ARGUMENT: unsafe constant("argument")
    case PEFT_ERROR_HANDLE: unsafe constant("handle")
    case PEFT_ERROR_MEMORY: unsafe constant("memory")
    case PEFT_ERROR_IO: unsafe constant("io")
    case PEFT_ERROR_FORMAT: unsafe constant("format")
    case PEFT_ERROR_UNSUPPORTED: unsafe constant("unsupported")
    case PEFT_ERROR_NOT_FOUND: unsafe constant("not found")
    case PEFT_ERROR_STATE: unsafe constant("state")
    case PEFT_ERROR_CANCELLED: unsafe constant("cancelled")
    case PEFT_ERROR_NUMERIC: unsafe constant("numeric")
    case PEFT_ERROR_CONTEXT_FULL: unsafe constant("context full")
    case PEFT_ERROR_MISMATCH: unsafe constant("mismatch")
    case PEFT_ERROR_INTERNAL: unsafe constant("internal")
    default: unsafe constant("unknown")
    }
}

@_cdecl("peft_features") @implementation
public func peft_features(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(buffer, capacity, needed, error) { () throws(PEFTError) -> String in
        func list(_ names: [String]) -> JSONValue { .array(names.map { .string($0) }) }
        let levels = ["portable", "avx2", "avx512", "avx512_bf16", "amx"]
        let best = Int(pk_best_level())
        let features: JSONObject = [
            "version": .string(version.description),
            "processor": .object(["level": .string(levels[min(best, levels.count - 1)]), "levels": list(Array(levels.prefix(best + 1)))]),
            "weight_formats": list(DType.allCases.filter(\.isWeightFormat).map(\.name)), "adapter_methods": list(AdapterMethods.all.map { $0.peftType }.sorted()),
            "architectures": list(Architectures.modelTypes.sorted()), "optimizers": list(OptimizerOptions.Rule.allCases.map(\.rawValue)),
            "schedules": list(LearningRateSchedule.Shape.allCases.map(\.rawValue)),
        ]
        return JSONValue.object(features).text()
    }
}
