internal import Platform

/// The patterns that byte-level tokenizers cut text with. They are facts of the models, published with each of them.
enum TokenizerPatterns {
    static let gpt2 = #"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#
    static let llama3 =
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    static let qwen2 =
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    static let gpt4o =
        #"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    static let tekken =
        #"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"#

    /// Compiles a pattern written for Oniguruma, which HF `tokenizers` uses. The two dialects agree on what tokenizers
    /// write, but for `\s`: PCRE2 still counts U+180E as a space.
    static func compile(_ pattern: String) throws(PEFTError) -> Pattern {
        let space = #"\x{9}-\x{d}\x{85}\p{Z}"#
        var new = ""
        var scalars = Array(pattern.unicodeScalars)[...]
        var isInClass = false
        while let scalar = scalars.popFirst() {
            if scalar == "\\", let escaped = scalars.popFirst() {
                switch escaped {
                case "s": new += isInClass ? space : "[\(space)]"
                case "S" where !isInClass: new += "[^\(space)]"
                default: new += "\\\(escaped)"
                }
                continue
            }
            if isInClass, scalar == "&", scalars.first == "&" {
                throw PEFTError(
                    .unsupported, "tokenizer pattern \"\(pattern)\": the intersection of classes (&&) is not supported")
            }
            if isInClass, scalar == "[", scalars.first != ":" {
                throw PEFTError(
                    .unsupported,
                    "tokenizer pattern \"\(pattern)\": a class within a class is not supported; write \\[ for the character"
                )
            }
            if scalar == "[" { isInClass = true }
            if scalar == "]" { isInClass = false }
            new.unicodeScalars.append(scalar)
        }
        return try Pattern(new)
    }
}
