import Platform
import Testing

@Suite struct UnicodeTextTests {
    /// Python's `unicodedata.normalize`.
    @Test(arguments: [
        (UnicodeForm.nfc, "e\u{301}\u{212B}\u{1112}\u{1161}\u{11AB}", "\u{E9}\u{C5}\u{D55C}"),
        (.nfd, "\u{E9}\u{D55C}", "e\u{301}\u{1112}\u{1161}\u{11AB}"),
        (.nfkc, "\u{FB01}\u{2460}\u{FF21}e\u{301}", "fi1A\u{E9}"), (.nfkd, "\u{FB01}\u{E9}", "fie\u{301}"),
        (.nfc, "plain", "plain"), (.nfc, "a\u{0}\u{E9}", "a\u{0}\u{E9}"), (.nfc, "", ""),
    ]) func forms(form: UnicodeForm, text: String, expected: String) throws {
        #expect(try normalized(Array(text.utf8), form) == Array(expected.utf8))
    }

    @Test func badBytes() throws {
        #expect(throws: PEFTError.self) { try normalized([0xC3], .nfc) }
        #expect(!isValidUTF8([0xC0, 0x80]) && isValidUTF8([]) && isValidUTF8(Array("é".utf8)))
        // As Python's bytes.decode("utf-8", "replace").
        #expect(repairedUTF8([0x61, 0xFF, 0xE2, 0x82, 0x62]) == Array("a\u{FFFD}\u{FFFD}b".utf8))
    }

    @Test func keysThatOnlyDifferInForm() throws {
        let json = try JSONValue(parsing: "{\"\u{E9}\": 1, \"e\u{301}\": 2}")
        #expect(json.objectValue?.count == 2)
        #expect(json["\u{E9}"]?.intValue == 1 && json["e\u{301}"]?.intValue == 2)
    }
}
