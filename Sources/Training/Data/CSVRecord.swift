internal import Platform

/// One record of a CSV file after RFC 4180: fields between commas, quoted with `"` if they hold commas, quotes (doubled)
/// or line ends.
enum CSVRecord {
    static func fields(_ record: String) throws(PEFTError) -> [String] {
        var fields: [String] = []
        var rest = Substring(record).unicodeScalars[...]
        repeat {
            let field = try next(&rest, number: fields.count + 1)
            fields.append(field)
        } while rest.popFirst() != nil  // the comma
        return fields
    }

    /// Takes a field off; what remains starts with a comma or is empty.
    private static func next(_ rest: inout Substring.UnicodeScalarView, number: Int) throws(PEFTError) -> String {
        var field = String.UnicodeScalarView()
        guard rest.first == "\"" else {
            while let scalar = rest.first, scalar != "," {
                guard scalar != "\"" else {
                    throw PEFTError(.format, "field \(number): a double quote inside a field that is not quoted (quote the field and double the quote)")
                }
                field.append(scalar)
                rest.removeFirst()
            }
            return String(field)
        }
        rest.removeFirst()
        while let scalar = rest.popFirst() {
            if scalar == "\"" {
                if rest.first == "\"" {
                    rest.removeFirst()
                } else {
                    guard rest.isEmpty || rest.first == "," else { throw PEFTError(.format, "field \(number): text behind the closing quote") }
                    return String(field)
                }
            }
            field.append(scalar)
        }
        throw PEFTError(.format, "field \(number): a double quote is opened and never closed")
    }
}

/// Which columns of a CSV file hold what is learned.
struct CSVColumns: Sendable {
    private enum Kind: Sendable {
        case text(Int)
        case completion(prompt: Int, completion: Int)
    }

    private let kind: Kind
    private let task: Int?
    private let count: Int

    /// From the header: a column `text`, or the columns `prompt` and `completion`; with a column `task_id` or without.
    init(header: [String]) throws(PEFTError) {
        count = header.count
        task = header.firstIndex(of: "task_id")
        if let prompt = header.firstIndex(of: "prompt"), let completion = header.firstIndex(of: "completion") {
            kind = .completion(prompt: prompt, completion: completion)
        } else if let text = header.firstIndex(of: "text") {
            kind = .text(text)
        } else {
            let found = header.prefix(8).map { "'\($0)'" }.joined(separator: ", ")
            throw PEFTError(.format, "the header has the columns \(found); it needs 'text', or 'prompt' and 'completion'")
        }
    }

    func example(_ fields: [String]) throws(PEFTError) -> (example: Example, task: Int32?) {
        guard fields.count == count else { throw PEFTError(.format, "\(fields.count) fields, the header has \(count)") }
        let task = try task.flatMap { (column) throws(PEFTError) in try Example.task(.string(fields[column])) }
        switch kind {
        case .text(let text): return (.text(fields[text]), task)
        case .completion(let prompt, let completion): return (.completion(prompt: fields[prompt], completion: fields[completion]), task)
        }
    }
}
