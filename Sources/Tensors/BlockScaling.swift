package import Platform

/// How the values of a coded format (nf4, fp4, blockwise8) share scales, and of int8 what products round. Other formats have theirs
/// fixed, and ignore it.
package struct BlockScaling: Sendable, Hashable {
    /// Values of the flattened matrix that have a scale together.
    package let blockSize: Int
    /// The scales are codes of eight bits themselves (QLoRA's double quantisation, arXiv:2305.14314).
    package let isDouble: Bool
    /// Rows shorter than a block all have the first block's scale. So decodes the AVX-512 kernel of bitsandbytes (0.50), whatever the
    /// scales say; it costs accuracy, and is there to compare numbers with PEFT on a processor.
    package let followsCPU: Bool
    /// Of int8: products round activations to eight bits but in columns where one reaches this magnitude (LLM.int8); 0: they do not.
    package let outlierThreshold: Float

    package static let sizes = [32, 64, 128, 256, 512, 1024, 2048, 4096]
    package static let standard = BlockScaling()

    private init(_ blockSize: Int = 64, _ isDouble: Bool = false, _ followsCPU: Bool = false, outlierThreshold: Float = 0) {
        (self.blockSize, self.isDouble, self.followsCPU, self.outlierThreshold) = (blockSize, isDouble, followsCPU, outlierThreshold)
    }

    package init(blockSize: Int, isDouble: Bool = false) throws(PEFTError) {
        guard BlockScaling.sizes.contains(blockSize) else {
            throw PEFTError(.argument, "block_size is \(blockSize); \(BlockScaling.sizes.map(String.init).joined(separator: ", ")) are accepted")
        }
        self.init(blockSize, isDouble)
    }

    package init(outlierThreshold: Float) throws(PEFTError) {
        guard outlierThreshold >= 0, outlierThreshold.isFinite else { throw PEFTError(.argument, "llm_int8_threshold is \(outlierThreshold); 0 (none) or more is accepted") }
        self.init(64, false, false, outlierThreshold: outlierThreshold)
    }

    /// The same as the kernel of bitsandbytes has it.
    package func following(_ cpu: Bool) -> BlockScaling { BlockScaling(blockSize, isDouble, cpu, outlierThreshold: outlierThreshold) }

    /// `followsCPU` makes a difference for rows of so many values.
    package func sharesFirst(columns: Int) -> Bool { followsCPU && columns < blockSize && columns % 16 == 0 && blockSize < 2048 }

    /// log2 of the block size.
    package var shift: Int { blockSize.trailingZeroBitCount }
    package func blocks(of count: Int) -> Int { (count + blockSize - 1) >> shift }
}
