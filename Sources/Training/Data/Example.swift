package import Platform

/// One record of a data set as its author wrote it.
package enum Example: Sendable, Equatable {
    /// All of it is to be learned.
    case text(String)
    /// The completion is to be learned.
    case completion(prompt: String, completion: String)
    /// A conversation, objects with `role` and `content`. What the assistant says from message `learnedFrom` on is to be
    /// learned.
    case conversation([JSONValue], learnedFrom: Int)
}

extension Example {
    /// The task a record is of, its member `task_id`; nil: it has none.
    static func task(_ json: JSONValue?) throws(PEFTError) -> Int32? {
        guard let json, !json.isNull, json != .string("") else { return nil }
        guard let number = json.intValue ?? json.stringValue.flatMap({ Int($0) }), number >= 0, let task = Int32(exactly: number) else {
            throw PEFTError(.format, "'task_id' is \(json.text()); it must be 0 or a positive integer")
        }
        return task
    }

    /// A line of JSON: `{"messages": […]}`, `{"prompt": …, "completion": …}` (both texts or both lists of messages) or
    /// `{"text": …}`. `task_id` is the task's; other members (ids, sources) are data about the record and left alone.
    package init(_ json: JSONValue) throws(PEFTError) {
        guard let object = json.objectValue else {
            throw PEFTError(.format, "\(json.kindName) where an object with 'messages', 'prompt' and 'completion', or 'text' must be")
        }
        if let messages = object["messages"] {
            self = .conversation(try Example.messages(messages, "messages"), learnedFrom: 0)
        } else if let prompt = object["prompt"] {
            guard let completion = object["completion"] else { throw PEFTError(.format, "'prompt' without 'completion'") }
            if let prompt = prompt.stringValue, let completion = completion.stringValue {
                self = .completion(prompt: prompt, completion: completion)
            } else if prompt.arrayValue != nil, completion.arrayValue != nil {
                let first = try Example.messages(prompt, "prompt")
                self = .conversation(first + (try Example.messages(completion, "completion")), learnedFrom: first.count)
            } else {
                throw PEFTError(.format, "'prompt' is \(prompt.kindName) and 'completion' \(completion.kindName); both must be strings, or both lists of messages")
            }
        } else if let text = object["text"] {
            guard let text = text.stringValue else { throw PEFTError(.format, "'text' is \(text.kindName), it must be a string") }
            self = .text(text)
        } else {
            let found = object.isEmpty ? "nothing" : object.keys.prefix(8).map { "'\($0)'" }.joined(separator: ", ")
            throw PEFTError(.format, "has \(found); it needs 'messages', 'prompt' and 'completion', or 'text'")
        }
    }

    private static func messages(_ json: JSONValue, _ name: String) throws(PEFTError) -> [JSONValue] {
        guard let messages = json.arrayValue, !messages.isEmpty else {
            throw PEFTError(.format, "'\(name)' is \(json.arrayValue == nil ? json.kindName : "empty"); it must be a list of messages")
        }
        for (index, message) in messages.enumerated() {
            guard message["role"]?.stringValue != nil, message["content"] != nil else {
                throw PEFTError(.format, "'\(name)'[\(index)] must be an object with 'role' (a string) and 'content'")
            }
        }
        return messages
    }
}
