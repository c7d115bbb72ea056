internal import Glibc

/// Questions about the file system and small whole-file reads.
package enum Files {
    package enum Kind: Sendable { case file, folder, other }

    /// What is at `path` (symbolic links followed); nil when nothing is.
    package static func kind(of path: String) throws(PEFTError) -> Kind? {
        guard let status = try SystemCall.status(at: path) else { return nil }
        return status.isFolder ? .folder : (status.isRegularFile ? .file : .other)
    }

    package static func isFile(_ path: String) -> Bool { (try? kind(of: path)) == .file }
    package static func isFolder(_ path: String) -> Bool { (try? kind(of: path)) == .folder }

    /// Names in a folder, sorted, without "." and "..".
    package static func names(in folder: String) throws(PEFTError) -> [String] { try SystemCall.names(in: folder) }

    /// "folder/name", with one slash between.
    package static func join(_ folder: String, _ name: String) -> String { folder.hasSuffix("/") ? folder + name : folder + "/" + name }

    /// The folder a path lies in: "." for a bare name.
    package static func parent(of path: String) -> String {
        let path = withoutTrailingSlashes(path)
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }

    /// The last part of a path.
    package static func name(of path: String) -> String {
        let path = withoutTrailingSlashes(path)
        guard let slash = path.lastIndex(of: "/") else { return path }
        return String(path[path.index(after: slash)...])
    }

    static func withoutTrailingSlashes(_ path: String) -> String {
        var path = Substring(path)
        while path.count > 1, path.hasSuffix("/") { path = path.dropLast() }
        return String(path)
    }

    /// Creates a folder and the ones above it; no error when it exists.
    package static func makeFolder(_ path: String) throws(PEFTError) {
        switch try kind(of: path) {
        case .folder: return
        case .some: throw PEFTError(.io, "'\(path)' exists and is not a folder")
        case nil: break
        }
        let parent = parent(of: path)
        if parent != path, try kind(of: parent) == nil { try makeFolder(parent) }
        do throws(PEFTError) {
            try SystemCall.makeFolder(path)
        } catch {
            // Somebody else may have made it in between.
            guard error.detail == Int64(EEXIST), isFolder(path) else { throw error }
        }
    }

    /// A JSON document in a file. Texts of 64 MB and more are no configuration.
    package static func json(at path: String, maximumBytes: Int = 64 << 20) throws(PEFTError) -> JSONValue {
        let file = try MappedFile(path: path, .read, maximumBytes: maximumBytes)
        do throws(PEFTError) {
            return unsafe try JSONValue(parsing: file.bytes)
        } catch {
            throw error.within(path)
        }
    }

    /// A small text; what is not UTF-8 in it is repaired.
    package static func text(at path: String, maximumBytes: Int = 16 << 20) throws(PEFTError) -> String {
        unsafe String(decoding: try MappedFile(path: path, .read, maximumBytes: maximumBytes).bytes, as: UTF8.self)
    }

    /// A JSON object in a file.
    package static func jsonObject(at path: String) throws(PEFTError) -> JSONObject {
        let value = try json(at: path)
        guard let object = value.objectValue else { throw PEFTError(.format, "\(path): \(value.kindName) where a JSON object must be") }
        return object
    }
}
