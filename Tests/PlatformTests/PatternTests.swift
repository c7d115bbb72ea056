import Platform
import Testing

@Suite struct PatternTests {
    /// As Python's `re.fullmatch`: checked with it.
    @Test(arguments: [
        (#".*\.(q|k|v)_proj"#, "model.layers.0.self_attn.q_proj", true),
        (#".*\.(q|k|v)_proj"#, "model.layers.0.self_attn.o_proj", false),
        (#"a|ab"#, "ab", true), (#"a"#, "a\n", false), (#"a$"#, "a\n", false), (#"(?P<n>x)+"#, "xxx", true),
        (#"[^.]+"#, "a.b", false), (#""#, "", true), (#"x*"#, "", true),
        (#"\w+"#, "naïve_日本", true), (#"(?i)STRASSE"#, "strasse", true), (#"."#, "😀", true),
        (#".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$"#, "decoder.block.0.layer.0.SelfAttention.q", true),
    ]) func matchesWhole(regex: String, text: String, expected: Bool) throws {
        #expect(try Pattern(regex).matchesWhole(text) == expected)
    }

    @Test func prefixAndSearch() throws {
        let pattern = try Pattern("b+")
        #expect(try pattern.matchesPrefix("bba") && !pattern.matchesPrefix("abb"))
        #expect(try pattern.matchesSomewhere("abb") && !pattern.matchesSomewhere("a"))
    }

    @Test func rangesAreBytes() throws {
        #expect(try Pattern(#"\p{L}+"#).ranges(in: Array("é 日本 x".utf8)) == [0..<2, 3..<9, 10..<11])
        #expect(try Pattern("x*").ranges(in: Array("é".utf8)) == [0..<0, 2..<2])
        #expect(try Pattern("$").ranges(in: []) == [0..<0])
        // A part is a text of its own: the lookahead does not see what follows it.
        #expect(try Pattern(#"a(?!b)"#).ranges(in: Array("abab".utf8), part: 2..<3) == [2..<3])
        #expect(try Pattern("a").ranges(in: Array("aa".utf8), part: 1..<9) == [1..<2])
    }

    @Test(arguments: ["(", "[a", "a{2,1}", "*", "\\", "(?<n>a)(?<n>b)", #"\C"#, "(?P<1>a)"]) func badPatterns(
        regex: String
    ) {
        #expect(throws: PEFTError.self) { try Pattern(regex) }
    }

    @Test func badText() throws {
        #expect(throws: PEFTError.self) { try Pattern("a").ranges(in: [0x61, 0xFF]) }
        #expect(throws: PEFTError.self) { try Pattern("a").ranges(in: [0xED, 0xA0, 0x80]) }
    }

    /// Exponential in the length of the text without a limit.
    @Test func noPatternHangs() throws {
        let text = String(repeating: "a", count: 5000) + "b"
        #expect(throws: PEFTError.self) { try Pattern("(a+)+$").matchesWhole(text + "c") }
        #expect(throws: PEFTError.self) { try Pattern("(a|aa)+$").ranges(in: Array(text.utf8)) }
    }

    @Test func longTexts() throws {
        let text = [UInt8](repeating: 0x20, count: 3_000_000) + [0x61]
        #expect(try Pattern(#"\s+(?!\S)|\s+"#).ranges(in: text).count == 2)
        // More than the machine code's small stack holds.
        #expect(try Pattern(#"(?:ab|\s)+"#).ranges(in: Array(text.suffix(300_001))).first == 0..<300_000)
    }

    @Test func manyThreads() async throws {
        let pattern = try Pattern(#"\w+"#)
        try await withThrowingTaskGroup(of: Int.self) { group in
            for task in 0..<8 {
                let text = Array(String(repeating: "ab ", count: task + 1).utf8)
                group.addTask {
                    var found = 0
                    for _ in 0..<200 { found += try pattern.ranges(in: text).count }
                    return found
                }
            }
            let total = try await group.reduce(0, +)
            #expect(total == 200 * 36)
        }
    }
}
