internal import Platform

/// Tokens by id and ids by token, in flat memory: a vocabulary has 50,000 to 260,000 short entries.
struct Vocabulary: Sendable {
    private struct Place: Sendable {
        var start: UInt32 = 0
        var count: Int32 = -1  // -1: no token has this id
    }

    /// All tokens, one after the other.
    private var text: [UInt8] = []
    private var places: [Place] = []
    /// Open addressing with linear steps; -1 is free. At most half full.
    private var slots: [Int32]
    /// Odd and random, so that nobody can prepare tokens that all fall into one slot.
    private let multiplier = UInt64.random(in: .min ... .max) | 1

    /// The largest id a file may use. Real vocabularies stay below 2^19.
    static let maximumID = 1 << 22

    /// One more than the largest id.
    var count: Int { places.count }

    /// Errors: `.format` for an id out of range or given twice. Of two equal tokens the later id is found.
    init(_ entries: [(token: [UInt8], id: Int)]) throws(PEFTError) {
        var capacity = 16
        while capacity < entries.count * 2 { capacity *= 2 }
        slots = [Int32](repeating: -1, count: capacity)
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
            slots[slot(of: token[...])] = Int32(id)
        }
    }

    /// The token's bytes; nil for an id that no token has.
    func token(_ id: Int32) -> ArraySlice<UInt8>? {
        guard id >= 0, Int(id) < places.count, places[Int(id)].count >= 0 else { return nil }
        return bytes(of: places[Int(id)])
    }

    func id(of token: ArraySlice<UInt8>) -> Int32? {
        let id = slots[slot(of: token)]
        return id < 0 ? nil : id
    }

    func id(of token: String) -> Int32? { id(of: Array(token.utf8)[...]) }

    /// The slot that holds the token, or the free one where it belongs. Ends because half of the slots are free.
    private func slot(of token: ArraySlice<UInt8>) -> Int {
        let mask = slots.count - 1
        // Safe to wrap: hash arithmetic.
        var hash = UInt64(truncatingIfNeeded: token.count) &+ multiplier
        for byte in token { hash = (hash ^ UInt64(byte)) &* multiplier; hash ^= hash >> 29 }
        var slot = Int(truncatingIfNeeded: hash >> 17) & mask
        while slots[slot] >= 0, !bytes(of: places[Int(slots[slot])]).elementsEqual(token) { slot = (slot + 1) & mask }
        return slot
    }

    private func bytes(of place: Place) -> ArraySlice<UInt8> {
        text[Int(place.start)..<Int(place.start) + Int(place.count)]
    }
}
