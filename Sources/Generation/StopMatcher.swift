/// Finds stop strings in text that arrives in pieces, and holds back what may become one.
struct StopMatcher: Sendable {
    /// UTF-8 of the stop strings.
    private let stops: [[UInt8]]
    private var held: [UInt8] = []

    init(_ stops: [String]) {
        self.stops = stops.map { Array($0.utf8) }.filter { !$0.isEmpty }
    }

    /// Takes in a piece.
    /// - Returns: the text that is certain not to belong to a stop string, and whether one was completed (then nothing
    ///   from its start on is returned).
    mutating func push(_ piece: String) -> (text: String, isStopped: Bool) {
        guard !stops.isEmpty else { return (piece, false) }
        held += Array(piece.utf8)
        for start in held.indices where stops.contains(where: { held[start...].starts(with: $0) }) {
            let text = String(decoding: held[..<start], as: UTF8.self)
            held = []
            return (text, true)
        }
        // The longest end of the text that a stop string begins with.
        let undecided = held.indices.first { start in stops.contains { $0.starts(with: held[start...]) } } ?? held.count
        let text = String(decoding: held[..<undecided], as: UTF8.self)
        held.removeSubrange(..<undecided)
        return (text, false)
    }

    /// What was held back, when no more text will come.
    mutating func flush() -> String {
        defer { held = [] }
        return String(decoding: held, as: UTF8.self)
    }
}
