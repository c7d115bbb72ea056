/// Several files that appear together in a folder.
///
/// A folder that does not exist yet is written under a temporary name beside it and renamed at the end: it is there
/// completely or not at all. In a folder that exists, each file is an `AtomicFile`; all of them are finished (written,
/// flushed, closed — what can fail for lack of space) before the first is renamed, and they are renamed in the order
/// of `publish`, so only a crash between two renames leaves new files beside old ones.
package struct AtomicFolder: ~Copyable {
    package let path: String
    /// Where the files are written: `path`, or the temporary folder.
    private let workingPath: String
    private let isNew: Bool
    private var isCommitted = false

    package init(_ path: String) throws(PEFTError) {
        let target = Files.withoutTrailingSlashes(path)
        switch try Files.kind(of: target) {
        case .folder:
            isNew = false
            workingPath = target
        case .some: throw PEFTError(.io, "cannot write the folder '\(path)': a file has this name")
        case nil:
            let parent = Files.parent(of: target)
            try Files.makeFolder(parent)
            let temporary = Files.join(parent, ".\(Files.name(of: target).prefix(64)).\(String(UInt64.random(in: .min ... .max), radix: 36)).tmp")
            try SystemCall.makeFolder(temporary)
            isNew = true
            workingPath = temporary
        }
        self.path = target
    }

    deinit {
        guard isNew, !isCommitted else { return }
        for name in (try? Files.names(in: workingPath)) ?? [] { SystemCall.removeFile(Files.join(workingPath, name)) }
        SystemCall.removeFolder(workingPath)
    }

    /// Starts a file of the folder: finish all, publish all, then `commit` the folder.
    package func file(_ name: String) throws(PEFTError) -> AtomicFile {
        try AtomicFile(Files.join(workingPath, name))
    }

    /// Makes the published files durable and, for a new folder, visible.
    package consuming func commit() throws(PEFTError) {
        try AtomicFile.synchronizeFolder(of: Files.join(workingPath, "file"))
        guard isNew else { return }
        try SystemCall.rename(workingPath, to: path)
        isCommitted = true
        try AtomicFile.synchronizeFolder(of: path)
    }
}
