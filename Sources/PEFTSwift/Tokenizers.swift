public import CPEFTSwift
internal import Models
internal import Platform
internal import Tensors
internal import Tokenizers

/// Behind a `peft_tokenizer`.
final class TokenizerObject: Sendable {
    let engine: Engine
    let tokenizer: Tokenizer

    init(_ engine: Engine, _ tokenizer: Tokenizer) {
        self.engine = engine
        self.tokenizer = tokenizer
    }
}

extension HandleTable {
    func tokenizer(_ handle: OpaquePointer?) throws(PEFTError) -> TokenizerObject {
        unsafe try find(handle, .tokenizer, as: TokenizerObject.self)
    }
}

@_cdecl("peft_tokenizer_open") @implementation
public func peft_tokenizer_open(
    _ tokenizer: UnsafeMutablePointer<OpaquePointer?>?, _ context: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(tokenizer, "tokenizer", error) { () throws(PEFTError) -> OpaquePointer? in
        let engine = unsafe try handles.context(context).engine
        return unsafe try handles.add(TokenizerObject(engine, try Tokenizer.open(path: unsafe text(path, "path"), budget: engine.budget)), .tokenizer)
    }
}

@_cdecl("peft_tokenizer_free") @implementation
public func peft_tokenizer_free(_ tokenizer: OpaquePointer?) { unsafe handles.remove(tokenizer, .tokenizer) }

@_cdecl("peft_tokenizer_describe") @implementation
public func peft_tokenizer_describe(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ tokenizer: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(buffer, capacity, needed, error) { () throws(PEFTError) -> String in
        let tokenizer = unsafe try handles.tokenizer(tokenizer).tokenizer
        let roles = tokenizer.specialTokens
        func id(_ id: Int32?) -> JSONValue { id.map { .integer(Int64($0)) } ?? .null }
        let description: JSONObject = [
            "vocabulary_size": .integer(Int64(tokenizer.vocabularySize)), "bos_token_id": id(roles.beginning), "eos_token_id": id(roles.end),
            "eos_token_ids": .array(roles.endOfTurn.map { id($0) }), "pad_token_id": id(roles.padding), "unk_token_id": id(roles.unknown),
            "chat_template": .bool(tokenizer.chatTemplate != nil),
        ]
        return JSONValue.object(description).text()
    }
}

@_cdecl("peft_tokenizer_encode") @implementation
public func peft_tokenizer_encode(
    _ ids: UnsafeMutablePointer<Int32>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ tokenizer: OpaquePointer?, _ text: UnsafePointer<CChar>?, _ size: Int,
    _ add_special_tokens: Int32, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(ids, capacity, needed, error) { () throws(PEFTError) -> [Int32] in
        let tokenizer = unsafe try handles.tokenizer(tokenizer).tokenizer
        return try tokenizer.encode(utf8: unsafe bytes(text, size, "text"), addSpecialTokens: add_special_tokens != 0)
    }
}

@_cdecl("peft_tokenizer_decode") @implementation
public func peft_tokenizer_decode(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ tokenizer: OpaquePointer?, _ ids: UnsafePointer<Int32>?,
    _ count: Int, _ skip_special_tokens: Int32, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(buffer, capacity, needed, error) { () throws(PEFTError) -> String in
        let tokenizer = unsafe try handles.tokenizer(tokenizer).tokenizer
        let list = unsafe try tokenIDs(ids, count)
        // The model's output may be wider than the vocabulary, a host's list may not.
        if let wrong = list.first(where: { $0 < 0 || Int($0) >= tokenizer.vocabularySize }) {
            throw PEFTError(.argument, "token id \(wrong); this tokenizer's are 0 to \(tokenizer.vocabularySize - 1)", detail: Int64(wrong))
        }
        return try tokenizer.decode(list, skipSpecialTokens: skip_special_tokens != 0)
    }
}

@_cdecl("peft_tokenizer_chat") @implementation
public func peft_tokenizer_chat(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ tokenizer: OpaquePointer?, _ messages_json: UnsafePointer<CChar>?,
    _ options_json: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(buffer, capacity, needed, error) { () throws(PEFTError) -> String in
        let tokenizer = unsafe try handles.tokenizer(tokenizer).tokenizer
        let messages = unsafe try messages(messages_json)
        var options = unsafe try options(options_json, "options_json", allowing: nil)
        let template = try options.text("chat_template")
        var variables = ChatTemplate.Variables()
        variables.addsGenerationPrompt = try options.boolean("add_generation_prompt") ?? true
        variables.tools = options["tools"] ?? .null
        variables.documents = options["documents"] ?? .null
        for key in ["chat_template", "add_generation_prompt", "tools", "documents"] { options[key] = nil }
        variables.others = options
        return try tokenizer.makeChatTemplate(template).render(messages, variables)
    }
}

/// A JSON array of chat messages.
func messages(_ pointer: UnsafePointer<CChar>?) throws(PEFTError) -> [JSONValue] {
    let json = unsafe try json(pointer, "messages_json")
    guard let messages = json.arrayValue else { throw PEFTError(.argument, "messages_json is \(json.kindName), not an array of {\"role\", \"content\"}") }
    if let wrong = messages.first(where: { $0.objectValue == nil }) {
        throw PEFTError(.argument, "messages_json holds \(wrong.kindName) where an object {\"role\", \"content\"} must be")
    }
    return messages
}
