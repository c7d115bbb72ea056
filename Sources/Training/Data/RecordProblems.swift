internal import Platform
internal import Synchronization

/// Records that could not be used: an error, or counted and named in a few warnings.
final class RecordProblems: Sendable {
    private struct State {
        var records: Set<Int> = []
        var first = ""
    }

    /// So that a file of another kind does not fill a host's log.
    private static let maximumWarnings = 10

    private let isFatal: Bool
    private let warn: @Sendable (String) -> Void
    private let state = Mutex(State())

    init(isFatal: Bool, warn: @escaping @Sendable (String) -> Void) {
        self.isFatal = isFatal
        self.warn = warn
    }

    var count: Int { state.withLock { $0.records.count } }
    /// What was wrong with the first one.
    var first: String { state.withLock { $0.first } }

    /// Remembers that a record is bad; each counts once, however often it comes up.
    /// - Throws: the error itself when bad records are not to be skipped, or when the file cannot be read at all.
    func note(_ error: PEFTError, _ record: Int) throws(PEFTError) {
        guard !isFatal, error.kind == .format || error.kind == .argument || error.kind == .unsupported else { throw error }
        let number = state.withLock { state in
            if state.records.isEmpty { state.first = error.message }
            return state.records.insert(record).inserted ? state.records.count : 0
        }
        if number >= 1, number <= RecordProblems.maximumWarnings { warn("skipped: \(error.message)") }
        if number == RecordProblems.maximumWarnings { warn("further bad records are counted, not named") }
    }
}
