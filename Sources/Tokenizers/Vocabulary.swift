internal import Glibc
internal import Platform

/// Tokens by id and ids by token, in flat memory: a vocabulary has 50,000 to 260,000 short entries.
struct Vocabulary: Sendable {
    private struct Place: Sendable {
        var start: UInt32 = 0
        var count: Int32 = -1  // -1: no token has this id
    }

    /// The upper half of a token's hash beside its id: other tokens in the way are told apart without looking at their text.
    private struct Slot: Sendable {
        var id: Int32 = -1  // -1: free
        var tag: UInt32 = 0
    }

    /// All tokens, one after the other.
    private var text: [UInt8] = []
    private var places: [Place] = []
    /// Open addressing with linear steps; at most half full.
    private var slots: [Slot]
    /// Some tokens are equal: an id's text does not tell whether it is the one that is found.
    private var hasEqualTokens = false
    /// Odd and random, so that nobody can prepare tokens that all fall into one slot.
    private let multiplier = UInt64.random(in: .min ... .max) | 1

    /// The largest id a file may use. Real vocabularies stay below 2^19.
    static let maximumID = 1 << 22

    /// One more than the largest id.
    var count: Int { places.count }

    /// Errors: `.format` for an id out of range or given twice. Of two equal tokens the later id is found.
    init(_ entries: [(token: ArraySlice<UInt8>, id: Int)]) throws(PEFTError) {
        var capacity = 16
        while capacity < entries.count * 2 { capacity *= 2 }
        slots = [Slot](repeating: Slot(), count: capacity)
        text.reserveCapacity(entries.reduce(0) { $0 + $1.token.count })
        let largest = entries.reduce(-1) { max($0, $1.id) }
        guard largest <= Vocabulary.maximumID else {
            throw PEFTError(.format, "vocabulary: token id \(largest) is larger than \(Vocabulary.maximumID)")
        }
        places = [Place](repeating: Place(), count: largest + 1)
        for (token, id) in entries {
            guard id >= 0 else {
                throw PEFTError(
                    .format, "vocabulary: token \"\(String(decoding: token, as: UTF8.self))\" has the negative id \(id)"
                )
            }
            guard places[id].count < 0 else { throw PEFTError(.format, "vocabulary: two tokens have the id \(id)") }
            guard let start = UInt32(exactly: text.count), let count = Int32(exactly: token.count) else {
                throw PEFTError(.format, "vocabulary: the tokens have more than 4 GiB of text")
            }
            text += token
            places[id] = Place(start: start, count: count)
            let (slot, tag) = unsafe token.withUnsafeBytes { unsafe self.slot(of: $0) }
            if slots[slot].id >= 0 { hasEqualTokens = true }
            slots[slot] = Slot(id: Int32(id), tag: tag)
        }
    }

    /// The token's bytes; nil for an id that no token has.
    func token(_ id: Int32) -> ArraySlice<UInt8>? {
        guard id >= 0, Int(id) < places.count, places[Int(id)].count >= 0 else { return nil }
        return bytes(of: places[Int(id)])
    }

    func id(of token: ArraySlice<UInt8>) -> Int32? { unsafe token.withUnsafeBytes { unsafe id(of: $0) } }

    func id(of token: UnsafeRawBufferPointer) -> Int32? {
        let id = slots[unsafe slot(of: token).index].id
        return id < 0 ? nil : id
    }

    /// Whether the token of two pieces is found as `id`, without looking for it.
    func finds(_ id: Int32, _ first: UnsafeRawBufferPointer, _ second: UnsafeRawBufferPointer) -> Bool {
        guard !hasEqualTokens, id >= 0, Int(id) < places.count else { return false }
        let place = places[Int(id)]
        guard Int(place.count) == first.count + second.count else { return false }
        // Safe: a place lies within the text.
        return unsafe text.withUnsafeBytes { text in
            guard let start = unsafe text.baseAddress.map({ unsafe $0 + Int(place.start) }) else { return false }
            return unsafe isEqual(first, start) && isEqual(second, start + first.count)
        }
    }

    func id(of token: String) -> Int32? { id(of: Array(token.utf8)[...]) }

    /// The slot that holds the token, or the free one where it belongs. Ends because half of the slots are free.
    private func slot(of token: UnsafeRawBufferPointer) -> (index: Int, tag: UInt32) {
        let mask = slots.count - 1
        let hash = unsafe hash(token)
        let tag = UInt32(truncatingIfNeeded: hash >> 32)
        var index = Int(truncatingIfNeeded: hash) & mask
        while slots[index].id >= 0 {
            if slots[index].tag == tag, unsafe isToken(slots[index].id, token) { break }
            index = (index + 1) & mask
        }
        return (index, tag)
    }

    private func isToken(_ id: Int32, _ token: UnsafeRawBufferPointer) -> Bool {
        let place = places[Int(id)]
        guard Int(place.count) == token.count else { return false }
        return unsafe text.withUnsafeBytes { text in unsafe text.baseAddress.map { unsafe isEqual(token, $0 + Int(place.start)) } ?? token.isEmpty }
    }

    /// `bytes` has as many as `token`.
    private func isEqual(_ token: UnsafeRawBufferPointer, _ bytes: UnsafeRawPointer) -> Bool {
        unsafe token.baseAddress.map { unsafe memcmp($0, bytes, token.count) == 0 } ?? true
    }

    /// Eight bytes at a time; all arithmetic wraps.
    private func hash(_ token: UnsafeRawBufferPointer) -> UInt64 {
        let count = token.count
        var hash = UInt64(truncatingIfNeeded: count) &+ multiplier
        func mix(_ word: UInt64) {
            hash = (hash ^ word) &* multiplier
            hash ^= hash >> 29
        }
        var offset = 0
        // Safe: all of what is read lies within the token; the last words may overlap those before.
        while offset + 8 < count {
            mix(unsafe token.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
            offset += 8
        }
        if count >= 8 {
            mix(unsafe token.loadUnaligned(fromByteOffset: count - 8, as: UInt64.self))
        } else if count >= 4 {
            mix(UInt64(unsafe token.loadUnaligned(as: UInt32.self)) << 32 | UInt64(unsafe token.loadUnaligned(fromByteOffset: count - 4, as: UInt32.self)))
        } else if count > 0 {
            mix(UInt64(unsafe token[0]) << 16 | UInt64(unsafe token[count / 2]) << 8 | UInt64(unsafe token[count - 1]))
        }
        hash = hash &* multiplier
        return hash ^ hash >> 32
    }

    private func bytes(of place: Place) -> ArraySlice<UInt8> {
        text[Int(place.start)..<Int(place.start) + Int(place.count)]
    }
}
