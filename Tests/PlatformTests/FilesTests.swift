import Glibc
import Platform
import Testing

@Suite struct FilesTests {
    private func withFolder(_ body: (String) throws -> Void) throws {
        let path = "/tmp/peftswift-test-\(UInt64.random(in: .min ... .max))"
        try Files.makeFolder(path)
        defer {
            for name in (try? Files.names(in: path)) ?? [] { if unlink(Files.join(path, name)) != 0 { rmdir(Files.join(path, name)) } }
            rmdir(path)
        }
        try body(path)
    }

    private func text(_ path: String) throws -> String {
        let file = try MappedFile(path: path)
        return String(decoding: file.bytes, as: UTF8.self)
    }

    private func failure(_ body: () throws -> Void) -> PEFTError? {
        do { try body() } catch { return error as? PEFTError }
        return nil
    }

    @Test func mapsReadsAndBorrows() throws {
        try withFolder { folder in
            let path = Files.join(folder, "x")
            try AtomicFile.write("hello", to: path)
            for access in [MappedFile.Access.map, .read] {
                let file = try MappedFile(path: path, access)
                #expect(Array(file.bytes) == Array("hello".utf8) && file.byteCount == 5 && file.name == path)
                file.advise(.willNeed)
                file.advise(.sequential, 3..<900)
                try file.checkUnchanged()
            }
            try AtomicFile.write("", to: path)
            #expect(try MappedFile(path: path).byteCount == 0)
            let bytes: [UInt8] = [1, 2, 3]
            bytes.withUnsafeBytes { #expect(MappedFile(borrowing: $0, name: "memory").byteCount == 3) }
        }
    }

    @Test func aReplacedFileKeepsItsOldBytesMapped() throws {
        try withFolder { folder in
            let path = Files.join(folder, "x")
            try AtomicFile.write("old", to: path)
            let old = try MappedFile(path: path)
            try AtomicFile.write("newer", to: path)
            #expect(Array(old.bytes) == Array("old".utf8))
            try old.checkUnchanged()
            #expect(try text(path) == "newer")
        }
    }

    @Test func noticesAFileThatWasCutShort() throws {
        try withFolder { folder in
            let path = Files.join(folder, "x")
            try AtomicFile.write("hello", to: path)
            let file = try MappedFile(path: path)
            truncate(path, 2)
            let error = failure { try file.checkUnchanged() }
            #expect(error?.kind == .io && error?.message.contains("5 bytes then, 2 now") == true)
        }
    }

    @Test func refusesWhatIsNoFile() throws {
        try withFolder { folder in
            #expect(failure { _ = try MappedFile(path: folder) }?.message.contains("is a folder") == true)
            #expect(failure { _ = try MappedFile(path: folder + "/none") }?.kind == .notFound)
            #expect(failure { _ = try MappedFile(path: "") }?.kind == .argument)
            #expect(failure { _ = try MappedFile(path: "a\0b") }?.kind == .argument)
            let pipe = Files.join(folder, "pipe")
            mkfifo(pipe, 0o600)
            #expect(failure { _ = try MappedFile(path: pipe) }?.message.contains("not a regular file") == true)
            #expect(failure { _ = try AtomicFile(pipe) }?.message.contains("not a regular file") == true)
            try AtomicFile.write("12345", to: folder + "/x")
            #expect(failure { _ = try MappedFile(path: folder + "/x", maximumBytes: 4) }?.kind == .format)
            #expect(failure { _ = try AtomicFile(folder) }?.message.contains("it is a folder") == true)
            #expect(failure { _ = try AtomicFile(folder + "/none/x") }?.kind == .notFound)
            #expect(failure { _ = try AtomicFile(folder + "/x/y") }?.kind != nil)
        }
    }

    @Test func writesAtomically() throws {
        try withFolder { folder in
            let path = Files.join(folder, "x")
            try AtomicFile.write("old", to: path)
            chmod(path, 0o640)
            do {
                var file = try AtomicFile(path)
                try file.write("half")
                #expect(try Files.names(in: folder).count == 2)
                // Dropped without commit.
            }
            #expect(try Files.names(in: folder) == ["x"])
            #expect(try text(path) == "old")
            var file = try AtomicFile(path)
            for index in 0..<30_000 { try file.write("\(index),") }
            try file.write([UInt8](repeating: 65, count: 200_000))
            let count = file.byteCount
            try file.commit()
            let all = try text(path)
            #expect(all.utf8.count == count && all.hasPrefix("0,1,2,") && all.hasSuffix(",29999," + String(repeating: "A", count: 200_000)))
            var status = stat()
            stat(path, &status)
            #expect(status.st_mode & 0o777 == 0o640)
        }
    }

    @Test func followsASymbolicLink() throws {
        try withFolder { folder in
            try AtomicFile.write("old", to: Files.join(folder, "real"))
            symlink("real", Files.join(folder, "link"))
            try AtomicFile.write("new", to: Files.join(folder, "link"))
            #expect(try text(Files.join(folder, "real")) == "new")
            var status = stat()
            lstat(Files.join(folder, "link"), &status)
            #expect(status.st_mode & S_IFMT == S_IFLNK)
        }
    }

    #if DEBUG
    @Test(arguments: [FailureInjection.Call.open, .write, .fsync, .rename, .close]) func leavesTheOldFileWhenAWriteFails(call: FailureInjection.Call) throws {
        try withFolder { folder in
            let path = Files.join(folder, "x")
            try AtomicFile.write("old", to: path)
            let error = failure {
                try FailureInjection.$current.withValue(FailureInjection(call, errno: ENOSPC)) { try AtomicFile.write("new", to: path) }
            }
            #expect(error?.kind == .io && error?.detail == Int64(ENOSPC) && error?.message.contains("no space left") == true)
            #expect(try text(path) == "old")
            #expect(try Files.names(in: folder) == ["x"])
        }
    }

    @Test func reportsAFailedReadOrMapping() throws {
        try withFolder { folder in
            let path = Files.join(folder, "x")
            try AtomicFile.write("old", to: path)
            for (call, access) in [(FailureInjection.Call.read, MappedFile.Access.read), (.mmap, .map), (.open, .map)] {
                let error = failure { try FailureInjection.$current.withValue(FailureInjection(call, errno: EIO)) { _ = try MappedFile(path: path, access) } }
                #expect(error?.message.contains("input/output error") == true)
            }
        }
    }
    #endif

    /// /dev/full takes an open and refuses every write, like a full disk; it is no regular file, so a small tmpfs is used
    /// where the tests may mount one.
    @Test func reportsAFullDisk() throws {
        try withFolder { folder in
            guard mount("tmpfs", folder, "tmpfs", 0, "size=64k") == 0 else { return }
            defer { umount(folder) }
            let path = Files.join(folder, "x")
            try AtomicFile.write("old", to: path)
            let error = failure {
                var file = try AtomicFile(path)
                for _ in 0..<64 { try file.write([UInt8](repeating: 1, count: 4096)) }
                try file.commit()
            }
            #expect(error?.message.contains("no space left") == true)
            #expect(try text(path) == "old")
            #expect(try Files.names(in: folder) == ["x"])
        }
    }

    @Test func takesPathsApart() {
        #expect(Files.parent(of: "a/b") == "a" && Files.parent(of: "a") == "." && Files.parent(of: "/a") == "/" && Files.parent(of: "a/b//") == "a")
        #expect(Files.name(of: "a/b") == "b" && Files.name(of: "b/") == "b")
        #expect(Files.join("a", "b") == "a/b" && Files.join("a/", "b") == "a/b")
    }

    @Test func readsJSON() throws {
        try withFolder { folder in
            let path = Files.join(folder, "x.json")
            try AtomicFile.write("{\"a\": 1}", to: path)
            #expect(try Files.jsonObject(at: path)["a"]?.intValue == 1)
            try AtomicFile.write("[1]", to: path)
            #expect(failure { _ = try Files.jsonObject(at: path) }?.message.contains("an array") == true)
            try AtomicFile.write("{\"a\":", to: path)
            #expect(failure { _ = try Files.json(at: path) }?.message.hasPrefix(path) == true)
        }
    }

    @Test func anAtomicFolderAppearsWholeOrNotAtAll() throws {
        try withFolder { folder in
            let path = Files.join(folder, "new")
            do {
                let unfinished = try AtomicFolder(path)
                var file = try unfinished.file("x")
                try file.write("x")
                try file.finish()
                try file.publish()
                #expect(Files.isFolder(path) == false)
            }
            #expect(try Files.names(in: folder).isEmpty)
            let whole = try AtomicFolder(path + "/")
            var file = try whole.file("x")
            try file.write("x")
            try file.finish()
            try file.publish()
            try whole.commit()
            #expect(try Files.names(in: path) == ["x"])
            #expect(try Files.names(in: folder) == ["new"])
            unlink(Files.join(path, "x"))
        }
    }
}
