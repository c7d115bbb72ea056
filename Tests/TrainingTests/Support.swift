import Autograd
import Glibc
import Platform
import Tensors
import Testing

@testable import Training

/// Files beside the tests.
enum Fixtures {
    static let folder = String(#filePath.dropLast("Support.swift".count)) + "Fixtures/"
    static func json(_ name: String) throws -> JSONValue { try Files.json(at: folder + name) }
}

extension JSONValue {
    var floats: [Float] { (arrayValue ?? []).compactMap { $0.doubleValue.map { Float($0) } } }
    var integers: [Int] { (arrayValue ?? []).compactMap(\.intValue) }
    var elements: [JSONValue] { arrayValue ?? [] }
}

/// A folder that is removed with the object.
final class TemporaryFolder {
    let path: String

    init() {
        var template = Array("/tmp/peftswift-training-XXXXXX".utf8CString)
        path = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
    }

    deinit {
        for name in (try? Files.names(in: path)) ?? [] { unlink(path + "/" + name) }
        rmdir(path)
    }

    func write(_ name: String, _ bytes: [UInt8]) throws -> String {
        let file = path + "/" + name
        var out = try AtomicFile(file)
        try out.write(bytes)
        try out.commit()
        return file
    }

    func write(_ name: String, _ text: String) throws -> String { try write(name, Array(text.utf8)) }
}

/// Largest difference, relative to the largest value of `b`.
func worst(_ a: [Float], _ b: [Float]) -> Float {
    guard a.count == b.count else { return .infinity }
    let scale = max(b.map(abs).max() ?? 0, 1e-12)
    return zip(a, b).map { abs($0 - $1) / scale }.max() ?? 0
}

/// The kind and message of what `body` throws.
func failure(_ body: () throws -> Void) -> PEFTError? {
    do {
        try body()
        return nil
    } catch {
        return error as? PEFTError
    }
}

/// A tokenizer whose tokens are bytes: 0 ends a text, 1 begins it; `<A>` and `</A>` of a conversation are 2 and 3.
struct ByteEncoder: TextEncoder {
    var paddingID: Int32 { 9 }
    var endOfText: Int32? { 0 }

    func ids(_ text: String, isStart: Bool) throws(PEFTError) -> [Int32] { (isStart ? [1] : []) + text.utf8.map { Int32($0) } }

    func conversation(_ messages: [JSONValue], learnedFrom first: Int) throws(PEFTError) -> (ids: [Int32], isAssistant: [Bool]) {
        var (ids, learned): ([Int32], [Bool]) = ([], [])
        for (index, message) in messages.enumerated() {
            guard let role = message["role"]?.stringValue, role != "unknown" else { throw PEFTError(.format, "unknown role") }
            let words = (message["content"]?.stringValue ?? "").utf8.map { Int32($0) }
            ids += [2] + words + [3]
            learned += [false] + Array(repeating: role == "assistant" && index >= first, count: words.count + 1)
        }
        return (ids, learned)
    }
}

/// Text of the byte tokens from 32 on.
func text(_ ids: [Int32]) -> String { String(decoding: ids.filter { $0 >= 32 }.map { UInt8(truncatingIfNeeded: $0) }, as: UTF8.self) }
