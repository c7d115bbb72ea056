public import CPEFTSwift
internal import Adapters
internal import Checkpoints
internal import Models
internal import Platform
internal import Quantization
internal import Tensors
internal import Tokenizers

@_cdecl("peft_model_quantize") @implementation
public func peft_model_quantize(
    _ report: UnsafeMutablePointer<CChar>?, _ capacity: Int, _ needed: UnsafeMutablePointer<Int>?, _ model: OpaquePointer?, _ options_json: UnsafePointer<CChar>?,
    _ progress: peft_progress_fn?, _ user_data: UnsafeMutableRawPointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(report, capacity, needed, error) { () throws(PEFTError) -> String in
        let object = unsafe try handles.model(model)
        let rules = try QuantizationRules(unsafe options(options_json, "options_json", allowing: nil))
        let made = try object.use.alone(.model) { () throws(PEFTError) in
            guard object.adapters.isEmpty else {
                throw PEFTError(.state, "the model has adapters, which were made for the weights as they are: quantise first, then add or load them")
            }
            let notify: LoadProgress? = unsafe progress.map { function in { done, total in object.use.lending { unsafe function(user_data, done, total) == 0 } } }
            let ids = try rules.calibrationText.map { (text) throws(PEFTError) -> [Int32] in
                guard let tokenizer = object.opened.tokenizer else { throw PEFTError(.state, "the model came without a tokenizer, so there is no calibration_text for it") }
                return try tokenizer.encode(text, addSpecialTokens: true)
            }
            if let ids, ids.count < 2 { throw PEFTError(.argument, "the calibration_text has \(ids.count) tokens; two or more are needed") }
            return try object.model.quantize(rules, comparingOn: ids ?? [], progress: notify)
        }
        return JSONValue.object(made).text()
    }
}

@_cdecl("peft_tensors_quantize") @implementation
public func peft_tensors_quantize(
    _ quantized: UnsafeMutablePointer<OpaquePointer?>?, _ tensors: OpaquePointer?, _ options_json: UnsafePointer<CChar>?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(quantized, "quantized", error) { () throws(PEFTError) -> OpaquePointer? in
        let object = unsafe try handles.tensors(tensors)
        let format = try WeightFormat(unsafe options(options_json, "options_json", allowing: Set(WeightFormat.keys)))
        var made: [(name: String, tensor: Tensor)] = []
        for (name, tensor) in object.all {
            do throws(PEFTError) {
                let encoded = try tensor.encoded(as: format.dtype, scaling: format.scaling, object.engine, .scratch)
                let parts = BitsAndBytes.has(format.dtype) ? try BitsAndBytes.parts(of: encoded, name, object.engine) : [NamedTensor(name, encoded)]
                made += parts.map { ($0.name, $0.tensor) }
            } catch { throw error.asArgument(name) }
        }
        return unsafe try handles.add(made, object.engine)
    }
}

@_cdecl("peft_tensors_dequantize") @implementation
public func peft_tensors_dequantize(
    _ values: UnsafeMutablePointer<OpaquePointer?>?, _ tensors: OpaquePointer?, _ error: UnsafeMutablePointer<peft_error>?
) -> Int32 {
    unsafe guarded(values, "values", error) { () throws(PEFTError) -> OpaquePointer? in
        let object = unsafe try handles.tensors(tensors)
        let source = try TensorSource(origin: "the arrays", object.all.map { NamedTensor($0.name, $0.tensor) })
        let restored = try BitsAndBytes.restored(source, object.engine).all
        let plain = try restored.map { (item) throws(PEFTError) in
            (item.name, item.tensor.dtype.isQuantized ? try item.tensor.converted(to: .f32, object.engine, .scratch) : item.tensor)
        }
        return unsafe try handles.add(plain, object.engine)
    }
}
