internal import Platform

/// BERT's cleaning of text: control characters vanish, white space becomes a space, CJK ideographs stand alone,
/// accents and case go.
struct BertNormalizer: Sendable {
    var cleansText = true
    var separatesIdeographs = true
    /// nil: as `lowercases`.
    var stripsAccents: Bool?
    var lowercases = true

    func apply(to text: AlignedText) throws(PEFTError) -> AlignedText {
        var text = text
        if cleansText { text = Normalizer.mapScalars(text, BertNormalizer.cleaned) }
        if separatesIdeographs {
            text = Normalizer.mapScalars(text) { BertNormalizer.isIdeograph($0) ? " \($0) " : nil }
        }
        if stripsAccents ?? lowercases {
            text = Normalizer.mapScalars(try Normalizer.normalize(text, .nfd)) {
                $0.properties.generalCategory == .nonspacingMark ? "" : nil
            }
        }
        return lowercases ? try Normalizer.lowercase.apply(to: text) : text
    }

    /// "" for what vanishes, nil for what stays.
    private static func cleaned(_ scalar: Unicode.Scalar) -> String? {
        if scalar == "\t" || scalar == "\n" || scalar == "\r" { return " " }
        if scalar.value == 0xFFFD { return "" }
        return switch scalar.properties.generalCategory {
        case .control, .format, .privateUse: ""
        default: scalar.properties.isWhitespace ? " " : nil
        }
    }

    private static func isIdeograph(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        case 0x4E00...0x9FFF, 0x3400...0x4DBF, 0x20000...0x2A6DF, 0x2A700...0x2B73F, 0x2B740...0x2B81F,
            0x2B920...0x2CEAF, 0xF900...0xFAFF, 0x2F800...0x2FA1F:
            true
        default: false
        }
    }
}
