internal import Kernels
package import Platform
internal import Tensors

/// Where the taps of a convolution lie; one value for each of its one to three dimensions.
package struct PatchGeometry: Sendable, Equatable {
    package let kernel: [Int]
    package let stride: [Int]
    package let padding: [Int]
    package let dilation: [Int]

    package init(kernel: [Int], stride: [Int], padding: [Int], dilation: [Int]) {
        self.kernel = kernel
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
    }

    /// Sizes of the result; nil where the kernel does not fit in a picture of `size`.
    package func outputSize(_ size: [Int]) -> [Int]? {
        var result: [Int] = []
        for axis in kernel.indices {
            let (padded, wrong) = size[axis].addingReportingOverflow(2 * padding[axis])
            let reach = dilation[axis] * (kernel[axis] - 1) + 1
            guard !wrong, padded >= reach else { return nil }
            result.append((padded - reach) / stride[axis] + 1)
        }
        return result
    }
}

/// How a picture's values lie in memory.
package enum PictureLayout: Sendable {
    /// `[batch, channels, positions]`, as hosts give them.
    case channelsFirst
    /// `[batch·positions, channels]`, as products make them.
    case channelsLast
}

extension Tape {
    /// What each position of a convolution sees, as a row: `x` holds `batch` pictures of `channels` and `size`; the result is
    /// `[batch·positions, channels·taps]`, columns in the order of a convolution's weight `[out, channels, taps…]`.
    /// Keeps nothing: the derivative adds up where each value was seen.
    package func patches(
        _ x: Variable, batch: Int, channels: Int, size: [Int], layout: PictureLayout, _ geometry: PatchGeometry
    ) throws(PEFTError) -> Variable {
        let positions = size.reduce(1, *)
        guard let out = geometry.outputSize(size), size.count == geometry.kernel.count, (1...3).contains(size.count), x.value.count == batch * channels * positions else {
            throw PEFTError(.internal, "patches of \(geometry.kernel) in \(batch) pictures of \(channels) × \(size): x \(x.shape)")
        }
        var description = pk_patches()
        description.act = x.value.dtype.rawValue
        (description.batch, description.channels) = (Int64(batch), Int64(channels))
        func three(_ values: [Int], _ fill: Int) -> (Int64, Int64, Int64) {
            let all = Array(repeating: fill, count: 3 - values.count) + values
            return (Int64(all[0]), Int64(all[1]), Int64(all[2]))
        }
        description.`in` = three(size, 1)
        description.out = three(out, 1)
        description.kernel = three(geometry.kernel, 1)
        description.stride = three(geometry.stride, 1)
        description.padding = three(geometry.padding, 0)
        description.dilation = three(geometry.dilation, 1)
        description.batch_stride = Int64(channels * positions)
        let isFirst = layout == .channelsFirst
        (description.channel_stride, description.position_stride) = isFirst ? (Int64(positions), 1) : (1, Int64(channels))
        let width = channels * geometry.kernel.reduce(1, *)
        let y = try Tensor(engine, [batch * out.reduce(1, *), width], x.value.dtype)
        engine.parallel(engine.shares(y.count)) { part, parts in
            unsafe withUnsafePointer(to: description) { unsafe pk_unfold($0, x.value.pointer, y.pointer, part, parts) }
        }
        let output = result(y, of: x)
        record(output) { [engine, slot = x.slot] dY throws(PEFTError) in
            guard let slot else { return }
            let (dX, accumulate) = try slot.buffer(engine)
            engine.parallel(engine.shares(dY.count)) { part, parts in
                unsafe withUnsafePointer(to: description) { unsafe pk_fold($0, dY.pointer, dX.pointer, accumulate ? 1 : 0, part, parts) }
            }
        }
        return output
    }
}
