package import Platform
package import Tensors

/// A weight format with its settings, as options name it: {"scheme": "nf4", "block_size": 64, "double_quant": false}, {"scheme": "int8",
/// "llm_int8_threshold": 6}.
package struct WeightFormat: Sendable, Equatable {
    package let dtype: DType
    package let scaling: BlockScaling

    package static let keys = ["scheme", "block_size", "double_quant", "llm_int8_threshold"]

    package init(_ dtype: DType, _ scaling: BlockScaling = .standard) { (self.dtype, self.scaling) = (dtype, scaling) }

    /// - Throws: `.argument` for a scheme that there is not, and for settings that it does not have.
    package init(_ options: JSONObject) throws(PEFTError) {
        guard let name = try options.text("scheme") else {
            throw PEFTError(.argument, "quantization has no \"scheme\"; \"nf4\", \"fp4\", \"int8\", \"q4_K\" and others are possible")
        }
        dtype = try DType.weightFormat(named: name)
        let (size, isDouble) = (try options.integer("block_size"), try options.boolean("double_quant") ?? false)
        if let threshold = try options.float("llm_int8_threshold") {
            guard dtype == .int8 else { throw PEFTError(.argument, "\(dtype.name) has no llm_int8_threshold; int8 does") }
            guard size == nil, !isDouble else { throw PEFTError(.argument, "int8 has no block_size and no double_quant; nf4 and fp4 do") }
            scaling = try BlockScaling(outlierThreshold: threshold)
            return
        }
        guard dtype.isCoded || (size == nil && !isDouble) else {
            throw PEFTError(.argument, "\(dtype.name) has no block_size and no double_quant; nf4, fp4 and blockwise8 do")
        }
        guard !(isDouble && dtype == .blockwise8) else { throw PEFTError(.argument, "blockwise8 has no double_quant; nf4 and fp4 do") }
        scaling = try BlockScaling(blockSize: size ?? (dtype == .blockwise8 ? 256 : 64), isDouble: isDouble)
    }

    package init(of tensor: Tensor) { (dtype, scaling) = (tensor.dtype, tensor.scaling) }

    /// As it is read.
    package var json: JSONObject {
        guard dtype.isCoded else {
            return scaling.outlierThreshold > 0 ? ["scheme": .string(dtype.name), "llm_int8_threshold": .number(Double(scaling.outlierThreshold))] : ["scheme": .string(dtype.name)]
        }
        return ["scheme": .string(dtype.name), "block_size": .integer(Int64(scaling.blockSize)), "double_quant": .bool(scaling.isDouble)]
    }
}
