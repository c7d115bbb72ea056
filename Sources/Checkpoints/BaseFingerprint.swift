package import Platform
internal import Tensors

/// What tells one base model from another, kept in checkpoints so that an adapter is not put on the wrong base silently.
///
/// Two 64-bit FNV-1a hashes (Fowler, Noll, Vo; parameters of RFC 9923): of the names and shapes of all weights, and of a
/// sample of their bytes — 4 windows of 64 bytes per tensor, so a 70-billion model takes milliseconds. The same model in
/// another format or quantisation has the same architecture and other bytes.
package struct BaseFingerprint: Sendable, Equatable {
    package let architecture: UInt64
    package let weights: UInt64

    package enum Match: Sendable, Equatable {
        case same
        /// Names and shapes agree, bytes differ: another quantisation, or a sibling such as base and instruct.
        case sameArchitecture
        case different
    }

    /// - Parameters:
    ///   - family: "llama"; whatever else decides how the weights are used belongs here too.
    ///   - tensors: under HF module names, so that a GGUF file and an HF folder agree. The order does not matter.
    package init(family: String, _ tensors: [NamedTensor]) {
        var architecture = FNV1a()
        var weights = FNV1a()
        architecture.add(family)
        for item in tensors.sorted(by: { $0.name.utf8.lexicographicallyPrecedes($1.name.utf8) }) {
            architecture.add(item.name)
            architecture.add(item.tensor.shape.count)
            for size in item.tensor.shape { architecture.add(size) }
            weights.add(Int(item.tensor.dtype.rawValue))
            weights.add(sampleOf: item.tensor)
        }
        self.architecture = architecture.value
        self.weights = weights.value
    }

    package func compare(_ other: BaseFingerprint) -> Match {
        if self == other { return .same }
        return architecture == other.architecture ? .sameArchitecture : .different
    }

    // MARK: As JSON: {"architecture": "16 hex digits", "weights": "16 hex digits"}

    package var json: JSONObject {
        JSONObject(["architecture": .string(BaseFingerprint.hex(architecture)), "weights": .string(BaseFingerprint.hex(weights))])
    }

    package init(_ json: JSONObject) throws(PEFTError) {
        guard let architecture = json["architecture"]?.stringValue, let weights = json["weights"]?.stringValue,
            let architecture = UInt64(architecture, radix: 16), let weights = UInt64(weights, radix: 16)
        else { throw PEFTError(.format, "a base fingerprint must have \"architecture\" and \"weights\" as hexadecimal numbers") }
        self.architecture = architecture
        self.weights = weights
    }

    private static func hex(_ value: UInt64) -> String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}

private struct FNV1a {
    private(set) var value: UInt64 = 0xcbf2_9ce4_8422_2325

    mutating func add(_ byte: UInt8) {
        value = (value ^ UInt64(byte)) &* 0x100_0000_01b3  // Safe: the hash is defined modulo 2^64.
    }

    mutating func add(_ text: String) {
        for byte in text.utf8 { add(byte) }
        add(UInt8(0xff))  // No UTF-8 text has this byte: "ab","c" differs from "a","bc".
    }

    mutating func add(_ number: Int) {
        var number = UInt64(bitPattern: Int64(number))
        for _ in 0..<8 {
            add(UInt8(truncatingIfNeeded: number))
            number >>= 8
        }
    }

    /// Windows at the begin, the end and between.
    mutating func add(sampleOf tensor: Tensor) {
        guard tensor.storage.isReal else { return }
        let windows = 4
        let window = min(64, tensor.byteCount)
        let bytes = unsafe UnsafeRawBufferPointer(start: tensor.pointer, count: tensor.byteCount)
        for index in 0..<windows {
            let start = (tensor.byteCount - window) / (windows - 1) * index  // Safe: at most byteCount - window.
            for offset in start..<start + window { unsafe add(bytes[offset]) }
        }
    }
}
