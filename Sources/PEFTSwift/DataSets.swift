public import CPEFTSwift
internal import Platform
internal import Synchronization
internal import Tensors
internal import Training

/// Behind a `peft_dataset`: a data set and where it is read next.
final class DatasetObject: @unchecked Sendable {
    // Sendable: `use` lets one call at a time move the loader.
    let engine: Engine
    let loader: BatchLoader
    let use = HandleUse()
    /// Counting goes through all the data: done once.
    private let batchCount = Mutex<Int?>(nil)

    init(_ engine: Engine, _ dataSet: DataSet) throws(PEFTError) {
        self.engine = engine
        loader = try BatchLoader(dataSet)
    }

    var dataSet: DataSet { loader.dataSet }

    func batchesPerEpoch() throws(PEFTError) -> Int {
        if let known = batchCount.withLock({ $0 }) { return known }
        let count = try dataSet.countBatches()
        batchCount.withLock { $0 = count }
        return count
    }
}

extension HandleTable {
    func dataset(_ handle: OpaquePointer?) throws(PEFTError) -> DatasetObject {
        unsafe try find(handle, .dataset, as: DatasetObject.self)
    }
}

/// A host's options, read and checked, and the tokenizer they go with.
private struct OpenOptions {
    let options: DataSetOptions
    let part: DataSetPart
    let encoder: TokenizerEncoder
    let engine: Engine

    init(_ tokenizer: OpaquePointer?, _ options_json: UnsafePointer<CChar>?) throws(PEFTError) {
        let object = unsafe try handles.tokenizer(tokenizer)
        let json = unsafe try PEFTSwift.options(options_json, "options_json", allowing: nil)
        options = try DataSetOptions(.object(json), otherKeys: ["chat_template"])
        part = try DataSetPart(.object(json))
        encoder = try TokenizerEncoder(object.tokenizer, template: try json.text("chat_template"))
        engine = object.engine
    }

    func handle(_ open: (@escaping @Sendable (String) -> Void) throws(PEFTError) -> DataSet) throws(PEFTError) -> OpaquePointer? {
        let engine = engine
        let dataSet = try part.of(try open { engine.warn($0) })
        return unsafe try handles.add(try DatasetObject(engine, dataSet), .dataset)
    }
}

@_cdecl("peft_dataset_open") @implementation
public func peft_dataset_open(
    _ dataset: UnsafeMutablePointer<OpaquePointer?>?, _ tokenizer: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ options_json: UnsafePointer<CChar>?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(dataset, "dataset", error) { () throws(PEFTError) -> OpaquePointer? in
        let options = unsafe try OpenOptions(tokenizer, options_json)
        let path = unsafe try text(path, "path")
        return unsafe try options.handle { (warn) throws(PEFTError) in try DataSet(path: path, options.encoder, options.options, warn: warn) }
    }
}

@_cdecl("peft_dataset_open_memory") @implementation
public func peft_dataset_open_memory(
    _ dataset: UnsafeMutablePointer<OpaquePointer?>?, _ tokenizer: OpaquePointer?, _ data: UnsafePointer<CChar>?, _ size: Int, _ options_json: UnsafePointer<CChar>?,
    _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(dataset, "dataset", error) { () throws(PEFTError) -> OpaquePointer? in
        let options = unsafe try OpenOptions(tokenizer, options_json)
        let source = MemoryBytes(unsafe try bytes(data, size, "data"), name: "the data in memory")
        return unsafe try options.handle { (warn) throws(PEFTError) in try DataSet(source, options.encoder, options.options, warn: warn) }
    }
}

@_cdecl("peft_dataset_free") @implementation
public func peft_dataset_free(_ dataset: OpaquePointer?) { unsafe handles.remove(dataset, .dataset) }

@_cdecl("peft_dataset_describe") @implementation
public func peft_dataset_describe(
    _ buffer: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ dataset: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(buffer, capacity, needed, error) { () throws(PEFTError) -> String in
        let object = unsafe try handles.dataset(dataset)
        return try object.use.looking(.dataset) { () throws(PEFTError) in
            let (dataSet, position) = (object.dataSet, object.loader.position)
            let description: JSONObject = [
                "records": .integer(Int64(dataSet.recordCount)), "batches_per_epoch": .integer(Int64(try object.batchesPerEpoch())),
                "epoch": .integer(Int64(position.epoch)), "position": .integer(Int64(position.record)), "skipped_lines": .integer(Int64(dataSet.skippedCount)),
            ]
            return JSONValue.object(description).text()
        }
    }
}

@_cdecl("peft_dataset_next") @implementation
public func peft_dataset_next(_ batch: UnsafeMutablePointer<OpaquePointer?>?, _ dataset: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?) -> Int32 {
    unsafe guarded(error) { () throws(PEFTError) -> Int32 in
        guard let batch = unsafe batch else { throw PEFTError(.argument, "batch (where the handle goes) is NULL") }
        unsafe batch.pointee = nil
        let object = unsafe try handles.dataset(dataset)
        return try object.use.alone(.dataset) { () throws(PEFTError) in
            let before = object.loader.position
            guard let next = try object.loader.next() else { return PEFT_DONE }
            do throws(PEFTError) {
                unsafe batch.pointee = try handles.add(try next.named(object.engine), object.engine)
            } catch {
                // A batch that could not be handed over comes again.
                try object.loader.move(to: before)
                throw error
            }
            return PEFT_OK
        }
    }
}
