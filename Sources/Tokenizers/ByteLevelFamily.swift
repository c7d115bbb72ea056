internal import Platform

/// How the byte-level tokenizers that GGUF files know by a name (`tokenizer.ggml.pre`) treat text.
struct ByteLevelFamily: Equatable {
    var pattern = TokenizerPatterns.gpt2
    /// Each digit is a piece of its own before the pattern is looked for.
    var isolatesDigits = false
    var ignoresMerges = false
    /// Text is brought to form NFC first.
    var composes = false

    /// Errors: `.unsupported` naming the value.
    init(pre: String?) throws(PEFTError) {
        switch pre ?? "gpt-2" {
        case "gpt-2", "default", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais", "trillion", "granite-docling":
            break
        case "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b": isolatesDigits = true
        case "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2":
            (pattern, ignoresMerges) = (TokenizerPatterns.llama3, true)
        case "dbrx", "smaug-bpe", "chatglm-bpe", "glm4": pattern = TokenizerPatterns.llama3
        case "qwen2", "deepseek-r1-qwen", "megrez": (pattern, composes) = (TokenizerPatterns.qwen2, true)
        case "stablelm2", "hunyuan": pattern = TokenizerPatterns.qwen2
        case "gpt-4o", "llama4": pattern = TokenizerPatterns.gpt4o
        case "tekken": (pattern, ignoresMerges) = (TokenizerPatterns.tekken, true)
        case let other:
            throw PEFTError(
                .unsupported,
                "pre-tokenizer \"\(other)\" is not supported; smollm, llama-bpe, qwen2, gpt-2, tekken and gpt-4o are")
        }
    }
}
