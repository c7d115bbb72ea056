public import CPEFTSwift
internal import Adapters
internal import Generation
internal import Models
internal import Platform
internal import Synchronization
internal import Tensors
internal import Training

/// Behind a `peft_session`: the session, the adapters it was given, and the answer it is in the middle of.
final class SessionObject: @unchecked Sendable {
    // Sendable: `use` lets one call at a time in; `Session.cancel` is made for any thread.
    let session: Session
    let model: ModelObject
    let use = HandleUse()
    /// nil: those active in the model.
    private(set) var adapters: Composition?
    /// Of `peft_session_next`, until something else is done with the session.
    private var generator: TextGenerator?
    /// Text that did not fit the host's buffer.
    private var unsent = ""

    init(_ session: Session, _ model: ModelObject, _ adapters: Composition?) {
        self.session = session
        self.model = model
        self.adapters = adapters
    }

    func setAdapters(_ chosen: Composition) throws(PEFTError) {
        let set = model.adapters
        _ = try set.adaptation(of: chosen)
        // Asked anew for each pass, so that a changed scale or a merge is seen.
        session.chosen = { () throws(PEFTError) in try set.adaptation(of: chosen) }
        adapters = chosen
    }

    /// Whatever changes the session ends the answer that `next` was giving.
    func endAnswer() {
        generator = nil
        unsent = ""
    }

    /// One token and the text it completed, as far as it fits in `capacity` bytes; the rest comes with the next call.
    func next(capacity: Int) throws(PEFTError) -> (token: Int32, text: String, isEnd: Bool) {
        var token: Int32 = -1
        var isEnd = false
        if unsent.utf8.count < capacity {
            var answer = generator ?? TextGenerator(session)
            let piece = try answer.next()
            generator = answer
            unsent += piece.text
            (token, isEnd) = (piece.token ?? -1, piece.isEnd)
        }
        let text = SessionObject.split(&unsent, before: capacity)
        return (token, text, isEnd && unsent.isEmpty)
    }

    /// What a step of several sessions at once needs of this one, and gives back. Text that `next` still had to send comes first.
    var pending: (generator: TextGenerator, text: String) {
        get { (generator ?? TextGenerator(session), unsent) }
        set { (generator, unsent) = (newValue.generator, newValue.text) }
    }

    /// Takes whole characters from the start of `text`, less than `limit` bytes of UTF-8.
    private static func split(_ text: inout String, before limit: Int) -> String {
        let utf8 = text.utf8
        guard utf8.count >= limit else {
            defer { text = "" }
            return text
        }
        var end = utf8.index(utf8.startIndex, offsetBy: limit - 1)
        while end > utf8.startIndex, utf8[end] & 0xc0 == 0x80 { end = utf8.index(before: end) }
        let start = String(text[..<end])
        text = String(text[end...])
        return start
    }
}

extension HandleTable {
    func session(_ handle: OpaquePointer?) throws(PEFTError) -> SessionObject {
        unsafe try find(handle, .session, as: SessionObject.self)
    }
}

/// A call that needs a session to itself and ends the answer `peft_session_next` is in.
private func changing(_ session: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?, _ body: (SessionObject) throws(PEFTError) -> Int32) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Int32 in
        let object = unsafe try handles.session(session)
        return try object.use.alone(.session) { () throws(PEFTError) in
            object.endAnswer()
            return try body(object)
        }
    }
}

/// The session's option of that name.
private func composition(_ adapters: JSONObject) throws(PEFTError) -> Composition {
    do throws(PEFTError) { return try Composition(.object(adapters)) } catch { throw PEFTError(error.kind, "adapters: \(error.message)") }
}

@_cdecl("peft_session_create") @implementation
public func peft_session_create(
    _ session: UnsafeMutablePointer<OpaquePointer?>?, _ model: OpaquePointer?, _ options_json: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(session, "session", error) { () throws(PEFTError) -> OpaquePointer? in
        let model = unsafe try handles.model(model)
        let json = unsafe try options(options_json, "options_json", allowing: SessionOptions.keys.union(["adapters"]))
        let (options, adapters) = (try SessionOptions().updated(from: json), model.adapters)
        let chosen: Composition? =
            if let block = json["adapters"]?.objectValue { try composition(block) } else { try json.strings("adapters").map { (names) throws(PEFTError) in try Composition(names.map { ($0, 1) }) } }
        let session = try Session(model.model, tokenizer: model.opened.tokenizer, options: options) { () throws(PEFTError) in
            if let chosen { try adapters.adaptation(of: chosen) } else { try adapters.activeAdaptation() }
        }
        let object = SessionObject(session, model, nil)
        if let chosen { try object.setAdapters(chosen) }
        return unsafe try handles.add(object, .session)
    }
}

@_cdecl("peft_session_free") @implementation
public func peft_session_free(_ session: OpaquePointer?) { unsafe handles.remove(session, .session) }

// MARK: Reading

@_cdecl("peft_session_append") @implementation
public func peft_session_append(_ session: OpaquePointer?, _ ids: UnsafePointer<Int32>?, _ count: Int, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe changing(session, error) { (object) throws(PEFTError) in
        try object.session.append(unsafe tokenIDs(ids, count))
        return PEFT_OK
    }
}

@_cdecl("peft_session_append_text") @implementation
public func peft_session_append_text(
    _ session: OpaquePointer?, _ text: UnsafePointer<CChar>?, _ size: Int, _ add_special_tokens: Int32, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe changing(session, error) { (object) throws(PEFTError) in
        try object.session.append(utf8: unsafe bytes(text, size, "text"), addSpecialTokens: add_special_tokens != 0)
        return PEFT_OK
    }
}

@_cdecl("peft_session_read_source") @implementation
public func peft_session_read_source(_ session: OpaquePointer?, _ inputs: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe changing(session, error) { (object) throws(PEFTError) in
        let batch = try Batch(named: unsafe handles.tensors(inputs).all)
        try object.session.readSource(try ModelLoss.source(of: batch, object.session.model))
        return PEFT_OK
    }
}

@_cdecl("peft_session_append_chat") @implementation
public func peft_session_append_chat(_ session: OpaquePointer?, _ messages_json: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe changing(session, error) { (object) throws(PEFTError) in
        try object.session.append(chat: unsafe messages(messages_json))
        return PEFT_OK
    }
}

// MARK: Writing

@_cdecl("peft_session_next") @implementation
public func peft_session_next(
    _ token: UnsafeMutablePointer<Int32>?, _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ session: OpaquePointer?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    var result = PEFT_OK
    let code = unsafe guarded(buffer, capacity, needed, error) { () throws(PEFTError) -> String in
        unsafe token?.pointee = -1
        let object = unsafe try handles.session(session)
        let isTextWanted = unsafe buffer != nil
        guard !isTextWanted || capacity < 0 || capacity >= 256 else { throw PEFTError(.argument, "capacity is \(capacity); at least 256 bytes are needed") }
        let next = try object.use.alone(.session) { () throws(PEFTError) in try object.next(capacity: isTextWanted && capacity > 0 ? capacity : .max) }
        unsafe token?.pointee = next.token
        if next.isEnd { result = PEFT_DONE }
        return next.text
    }
    return code == PEFT_OK ? result : code
}

@_cdecl("peft_session_generate") @implementation
public func peft_session_generate(
    _ session: OpaquePointer?, _ max_tokens: Int64, _ callback: peft_text_fn?, _ user_data: UnsafeMutableRawPointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe changing(session, error) { (object) throws(PEFTError) in
        let answer = try object.session.generate(maxTokens: Int(clamping: max_tokens)) { piece in
            guard let callback = unsafe callback else { return true }
            var piece = piece
            return piece.withUTF8 { utf8 in
                let text = unsafe UnsafeRawPointer(utf8.baseAddress)?.assumingMemoryBound(to: CChar.self)
                return object.use.lending { unsafe callback(user_data, text, utf8.count) == 0 }
            }
        }
        return answer.isEnd ? PEFT_DONE : PEFT_OK
    }
}

@_cdecl("peft_sessions_next") @implementation
public func peft_sessions_next(
    _ tokens: UnsafeMutablePointer<Int32>?, _ sessions: UnsafePointer<OpaquePointer?>?, _ count: Int64, _ callback: peft_texts_fn?, _ user_data: UnsafeMutableRawPointer?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Int32 in
        guard count > 0, count <= 4096 else { throw PEFTError(.argument, "count is \(count); 1 to 4096 sessions can be stepped together") }
        guard let sessions = unsafe sessions else { throw PEFTError(.argument, "sessions is NULL") }
        var objects: [SessionObject] = []
        for index in 0..<Int(count) {
            unsafe tokens?[index] = -1
            let object = unsafe try handles.session(sessions[index])
            if objects.contains(where: { $0 === object }) { throw PEFTError(.argument, "sessions[\(index)] is there twice") }
            objects.append(object)
        }
        return try HandleUse.alone(objects.map(\.use), .session) { () throws(PEFTError) in
            var generators = objects.map(\.pending.generator)
            let pieces = try SessionGroup.next(&generators)
            var (isDone, isStopped) = (true, false)
            for (index, piece) in pieces.enumerated() {
                let text = objects[index].pending.text + piece.text
                objects[index].pending = (generators[index], "")
                unsafe tokens?[index] = piece.token ?? -1
                if !piece.isEnd { isDone = false }
                if !text.isEmpty, unsafe !send(text, Int64(index), callback, user_data, objects[index]) { isStopped = true }
            }
            if isStopped { throw PEFTError(.cancelled, "the host stopped the text; every session has read its token") }
            return isDone ? PEFT_DONE : PEFT_OK
        }
    }
}

private func send(_ text: String, _ index: Int64, _ callback: peft_texts_fn?, _ user_data: UnsafeMutableRawPointer?, _ object: SessionObject) -> Bool {
    guard let callback = unsafe callback else { return true }
    var text = text
    return text.withUTF8 { utf8 in
        let pointer = unsafe UnsafeRawPointer(utf8.baseAddress)?.assumingMemoryBound(to: CChar.self)
        return object.use.lending { unsafe callback(user_data, index, pointer, utf8.count) == 0 }
    }
}

// MARK: Changing

@_cdecl("peft_session_set_adapters") @implementation
public func peft_session_set_adapters(
    _ session: OpaquePointer?, _ names: UnsafePointer<UnsafePointer<CChar>?>?, _ weights: UnsafePointer<Float>?, _ count: Int64, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in
        let object = unsafe try handles.session(session)
        let list = unsafe try weighted(names, weights, count)
        try object.use.alone(.session) { () throws(PEFTError) in try object.setAdapters(try Composition(list)) }
    }
}

@_cdecl("peft_session_configure") @implementation
public func peft_session_configure(_ session: OpaquePointer?, _ options_json: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe changing(session, error) { (object) throws(PEFTError) in
        let json = unsafe try options(options_json, "options_json", allowing: SessionOptions.keys.subtracting(["context_length", "kv_cache_type"]))
        object.session.configure(try object.session.options.updated(from: json))
        return PEFT_OK
    }
}

@_cdecl("peft_session_rewind") @implementation
public func peft_session_rewind(_ session: OpaquePointer?, _ keep: Int64, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe changing(session, error) { (object) throws(PEFTError) in
        try object.session.rewind(to: Int(clamping: keep))
        return PEFT_OK
    }
}

@_cdecl("peft_session_cancel") @implementation
public func peft_session_cancel(_ session: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Void in unsafe try handles.session(session).session.cancel() }
}

// MARK: Looking

@_cdecl("peft_session_fork") @implementation
public func peft_session_fork(_ copy: UnsafeMutablePointer<OpaquePointer?>?, _ session: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe guarded(copy, "copy", error) { () throws(PEFTError) -> OpaquePointer? in
        let object = unsafe try handles.session(session)
        let fork = try object.use.looking(.session) { () throws(PEFTError) in SessionObject(try object.session.fork(), object.model, object.adapters) }
        return unsafe try handles.add(fork, .session)
    }
}

@_cdecl("peft_session_logits") @implementation
public func peft_session_logits(_ logits: UnsafeMutablePointer<OpaquePointer?>?, _ session: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe guarded(logits, "logits", error) { () throws(PEFTError) -> OpaquePointer? in
        let object = unsafe try handles.session(session)
        let (values, engine) = (try object.use.looking(.session) { () throws(PEFTError) in try object.session.nextLogits() }, object.model.model.engine)
        return unsafe try handles.add([("logits", try Tensor(engine, values, shape: [values.count], .scratch))], engine)
    }
}

@_cdecl("peft_session_describe") @implementation
public func peft_session_describe(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ session: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(buffer, capacity, needed, error) { () throws(PEFTError) -> String in
        let object = unsafe try handles.session(session)
        return try object.use.looking(.session) {
            let (session, statistics) = (object.session, object.session.statistics)
            func speed(_ count: Int, _ seconds: Double) -> JSONValue { .number(seconds > 0 ? Double(count) / seconds : 0) }
            let own = object.adapters.map { chosen in JSONValue.array(chosen.adapters.map { .object(["name": .string($0.name), "weight": .number(Double($0.weight))]) }) }
            let description: JSONObject = [
                "tokens": .integer(Int64(session.tokens.count)), "context_length": .integer(Int64(session.contextLength)),
                "generated": .integer(Int64(statistics.tokensGenerated)), "prompt_tokens_per_second": speed(statistics.tokensRead, statistics.secondsReading),
                "tokens_per_second": speed(statistics.tokensGenerated, statistics.secondsGenerating), "cache_bytes": .integer(Int64(session.cacheBytes)),
                "kv_cache_type": .string(session.cacheType),
                "adapters": own ?? object.model.adapters.status()["active"] ?? .array([]), "follows_model": .bool(own == nil),
                "composition": object.adapters.map { $0.isPlain ? .null : $0.json } ?? object.model.adapters.status()["composition"] ?? .null,
            ]
            return JSONValue.object(description).text()
        }
    }
}

@_cdecl("peft_session_tokens") @implementation
public func peft_session_tokens(
    _ ids: UnsafeMutablePointer<Int32>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ session: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(ids, capacity, needed, error) { () throws(PEFTError) -> [Int32] in
        let object = unsafe try handles.session(session)
        return try object.use.looking(.session) { object.session.tokens }
    }
}
