/// UTF-8 text on its way through the normalizers, which knows where each byte came from when somebody asks for that.
struct AlignedText {
    private(set) var bytes: [UInt8]

    /// For each byte the offset in the caller's text where the part it stands for begins, and one more entry for the
    /// end; never decreasing. nil when the caller did not ask for positions: most do not, and it costs memory.
    private(set) var origins: [Int32]?

    /// `source[range]`; positions are offsets in `source`.
    init(_ source: [UInt8], _ range: Range<Int>, tracking: Bool) {
        bytes = range.count == source.count ? source : Array(source[range])
        origins = tracking ? (range.lowerBound...range.upperBound).map { Int32(clamping: $0) } : nil
    }

    private init(bytes: [UInt8], origins: [Int32]?) {
        self.bytes = bytes
        self.origins = origins
    }

    /// The part `range` as a text of its own.
    func slice(_ range: Range<Int>) -> AlignedText {
        if range.count == bytes.count { return self }
        return AlignedText(
            bytes: Array(bytes[range]), origins: origins.map { Array($0[range.lowerBound...range.upperBound]) })
    }

    /// Where `range` lies in the caller's text; empty at 0 without tracking.
    func source(of range: Range<Int>) -> Range<Int> {
        guard let origins else { return 0..<0 }
        return Int(origins[range.lowerBound])..<Int(origins[range.upperBound])
    }

    /// Builds a changed text from copied and replaced parts of this one, from left to right.
    struct Rewriter {
        private let old: AlignedText
        private var bytes: [UInt8] = []
        private var origins: [Int32]?

        init(_ old: AlignedText) {
            self.old = old
            bytes.reserveCapacity(old.bytes.count)
            origins = old.origins == nil ? nil : []
        }

        mutating func copy(_ range: Range<Int>) {
            bytes += old.bytes[range]
            if let from = old.origins { origins?.append(contentsOf: from[range]) }
        }

        /// Puts `new` where `range` was. What is inserted at an empty range takes no room in the caller's text. The
        /// bytes in between are laid out one by one; that is exact where both have the same length.
        mutating func replace(_ range: Range<Int>, with new: some Collection<UInt8>) {
            bytes += new
            guard let from = old.origins else { return }
            for index in 0..<new.count {
                origins?.append(from[min(range.lowerBound + index, max(range.lowerBound, range.upperBound - 1))])
            }
        }

        consuming func finish() -> AlignedText {
            if let last = old.origins?.last { origins?.append(last) }
            return AlignedText(bytes: bytes, origins: origins)
        }
    }
}
