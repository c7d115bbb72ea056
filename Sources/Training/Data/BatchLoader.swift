package import Platform

/// Where a data set is read next: all the state there is, so that a resumed run goes on with the very next batch.
package struct DataPosition: Sendable, Equatable {
    package var epoch = 0
    /// Index in the epoch's order.
    package var record = 0
    /// Samples of that record already used.
    package var sample = 0

    package init(epoch: Int = 0, record: Int = 0, sample: Int = 0) {
        (self.epoch, self.record, self.sample) = (epoch, record, sample)
    }
}

/// Reads a data set batch by batch, epoch after epoch. One thread at a time.
package final class BatchLoader {
    package let dataSet: DataSet
    package private(set) var position: DataPosition
    /// The records of `position.epoch` in order.
    private var order: [Int]
    /// The samples of the record at `position`, tokenised once.
    private var current: [Sample]?

    package init(_ dataSet: DataSet, at position: DataPosition = DataPosition()) throws(PEFTError) {
        self.dataSet = dataSet
        self.position = DataPosition()
        order = []
        try move(to: position)
    }

    /// Goes on reading at `position`.
    /// - Throws: `.mismatch` for a position that the data set does not have.
    package func move(to position: DataPosition) throws(PEFTError) {
        guard position.epoch >= 0, position.sample >= 0, (0...dataSet.recordCount).contains(position.record) else {
            throw PEFTError(.mismatch, "epoch \(position.epoch), record \(position.record) is outside of \(dataSet.name) with \(dataSet.recordCount) records")
        }
        self.position = position
        order = dataSet.order(epoch: position.epoch)
        current = nil
    }

    /// The next batch; nil once at the end of each epoch (the following call begins the next). The last batch of an epoch
    /// may have fewer rows.
    /// - Throws: what reading and tokenising throw; `.format` when a whole epoch has nothing to learn. The position is then
    ///   as before.
    package func next() throws(PEFTError) -> Batch? {
        let before = (position, order)
        do throws(PEFTError) {
            return try read()
        } catch {
            (position, order) = before
            current = nil
            throw error
        }
    }

    private func read() throws(PEFTError) -> Batch? {
        let options = dataSet.options
        let startsEpoch = position.record == 0 && position.sample == 0
        var rows: [[Sample]] = []
        var used = 0  // tokens in the last row
        while let sample = try peek() {
            // A row is of one task.
            if options.packing, let last = rows.last?.last, last.task == sample.task, used + sample.ids.count <= options.maxLength {
                rows[rows.count - 1].append(sample)
                used += sample.ids.count
            } else if rows.count < options.batchSize {
                rows.append([sample])
                used = sample.ids.count
            } else {
                break
            }
            position.sample += 1
        }
        if rows.isEmpty {
            if startsEpoch {
                throw PEFTError(.format, "\(dataSet.name): its \(dataSet.recordCount) records have nothing to learn within max_length \(options.maxLength)")
            }
            position = DataPosition(epoch: position.epoch + 1)
            order = dataSet.order(epoch: position.epoch)
            return nil
        }
        let tasks = rows.map { $0.first?.task }
        guard tasks.allSatisfy({ ($0 == nil) == (tasks[0] == nil) }) else { throw PEFTError(.format, "\(dataSet.name): some records of a batch have a task_id and others have none") }
        return options.packing ? Batch(packing: rows, paddingID: dataSet.paddingID) : Batch(rows.joined().map { $0 }, paddingID: dataSet.paddingID)
    }

    /// The sample at `position`, which moves over used up records; nil at the end of the epoch.
    private func peek() throws(PEFTError) -> Sample? {
        while position.record < order.count {
            let samples: [Sample]
            if let current { samples = current } else { samples = try dataSet.samples(order[position.record]) }
            current = samples
            if position.sample < samples.count { return samples[position.sample] }
            position.record += 1
            position.sample = 0
            current = nil
        }
        return nil
    }
}

extension DataSet {
    /// Batches in an epoch. Where a record is a sample they follow from the number of records; else (packing, plain text,
    /// `split`, `drop`, skipped records) the first epoch is tokenised once to count them.
    package func countBatches() throws(PEFTError) -> Int {
        let loader = try BatchLoader(self)
        var count = 0
        while try loader.next() != nil { count += 1 }
        return count
    }
}
