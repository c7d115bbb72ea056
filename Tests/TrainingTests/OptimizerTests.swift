import Autograd
import Glibc
import Platform
import Tensors
import Testing

@testable import Training

/// Against torch, transformers and peft (Fixtures/make_fixtures.py).
struct OptimizerTests {
    let engine = Engine(threads: 2)

    /// Parameters with the case's start values, updated with its gradients.
    private func run(_ name: String, clip: Double? = nil, _ make: ([Parameter], JSONValue) throws -> any Optimizer) throws -> (result: [[Float]], expected: [[Float]], norms: [Double]) {
        let recorded = try #require(try Fixtures.json("optimizers.json")[name])
        var parameters: [Parameter] = []
        let names = recorded["names"]?.elements.compactMap(\.stringValue)
        for (index, shape) in try #require(recorded["shapes"]).elements.enumerated() {
            let value = try Tensor(engine, try #require(recorded["start"]).elements[index].floats, shape: shape.integers)
            parameters.append(Parameter(name: names?[index] ?? "p\(index)", value: value))
        }
        let optimizer = try make(parameters, recorded)
        var norms: [Double] = []
        for step in try #require(recorded["gradients"]).elements {
            let store = GradientStore(engine)
            for (parameter, gradient) in zip(parameters, step.elements) where !gradient.isNull {
                let values = gradient.floats
                try store.buffer(for: parameter).withMutableFloats { buffer in for index in values.indices { buffer[index] = values[index] } }
            }
            let norm = GradientClipping.norm(of: parameters, in: store, engine)
            norms.append(norm)
            optimizer.update(store, gradientScale: GradientClipping.factor(norm: norm, maximum: clip), rateFactor: 1)
        }
        return (try parameters.map { try $0.value.floats(engine) }, try #require(recorded["result"]).elements.map(\.floats), norms)
    }

    private func makeOptions(_ change: (inout OptimizerOptions) -> Void) -> OptimizerOptions {
        var options = OptimizerOptions()
        change(&options)
        return options
    }

    private func rates(_ parameters: [Parameter], _ options: OptimizerOptions) -> [ParameterRates] {
        parameters.map { ParameterRates(for: $0.name, dimensions: $0.value.shape.count, isLayerNorm: false, options) }
    }

    private func expectEqual(_ a: [[Float]], _ b: [[Float]]) {
        for (got, expected) in zip(a, b) { #expect(worst(got, expected) < 2e-6) }
        #expect(a.count == b.count)
    }

    @Test func adamWFollowsTorch() throws {
        let options = makeOptions { ($0.learningRate, $0.beta2, $0.epsilon, $0.weightDecay) = (0.01, 0.95, 1e-6, 0.1) }
        let (result, expected, _) = try run("adamw") { parameters, _ in try AdamW(parameters, rates(parameters, options), options, engine) }
        expectEqual(result, expected)
    }

    @Test func adafactorFollowsTransformers() throws {
        let options = makeOptions { ($0.rule, $0.learningRate, $0.weightDecay) = (.adafactor, 0.05, 0.02) }
        let (result, expected, _) = try run("adafactor") { parameters, _ in try Adafactor(parameters, rates(parameters, options), engine) }
        expectEqual(result, expected)
    }

    @Test func lionFollowsBitsAndBytes() throws {
        let options = makeOptions { ($0.rule, $0.learningRate, $0.beta2, $0.weightDecay) = (.lion, 0.01, 0.99, 0.1) }
        let (result, expected, _) = try run("lion") { parameters, _ in try Lion(parameters, rates(parameters, options), options, engine) }
        expectEqual(result, expected)
    }

    /// bitsandbytes' rule on a processor rounds moments on a coarser grid: the first update is the same, later ones nearly so; and nothing is far from
    /// AdamW's with moments in f32.
    @Test func adamWOfEightBitsFollowsBitsAndBytes() throws {
        let count = 5120, expected = try #require(try Fixtures.json("optimizers.json")["adamw8bit"]?["result"]).floats
        let options = makeOptions { ($0.learningRate, $0.beta2, $0.epsilon, $0.weightDecay) = (0.01, 0.95, 1e-6, 0.1) }
        let start = (0..<count).map { Float(sin(Double($0) * 0.37)) }
        let results = try [true, false].map { isNarrow in
            let parameter = Parameter(name: "w", value: try Tensor(engine, start, shape: [80, 64]))
            let optimizer: any Optimizer =
                isNarrow ? try AdamW8bit([parameter], rates([parameter], options), options, engine) : try AdamW([parameter], rates([parameter], options), options, engine)
            for step in 0..<4 {
                let store = GradientStore(engine)
                try store.buffer(for: parameter).withMutableFloats { buffer in
                    for index in 0..<count {
                        let i = Double(index)
                        buffer[index] = Float(cos(i * 0.11 * Double(step + 1)) * (0.5 + Double(step)) * exp(3 * sin(i * 0.013)))
                    }
                }
                optimizer.update(store, gradientScale: 1, rateFactor: 1)
            }
            if isNarrow { #expect(optimizer.moments.flatMap(\.tensors).reduce(0) { $0 + $1.byteCount } == 2 * (count + 4 * 20)) }
            return try parameter.value.floats(engine)
        }
        func distance(_ a: [Float], _ b: [Float]) -> Double { zip(a, b).reduce(0) { $0 + pow(Double($1.0) - Double($1.1), 2) }.squareRoot() }
        let moved = distance(results[1], start), sampled = stride(from: 0, to: count, by: 64).map { results[0][$0] }
        #expect(distance(results[0], results[1]) < 0.03 * moved && distance(results[0], results[1]) > 0)
        #expect(distance(sampled, expected) < 0.06 * distance(sampled, stride(from: 0, to: count, by: 64).map { start[$0] }))
    }

    @Test func aParameterWithoutGradientIsLeftAlone() throws {
        let options = makeOptions { $0.learningRate = 0.01 }
        let (result, expected, _) = try run("adamw_skip") { parameters, _ in try AdamW(parameters, rates(parameters, options), options, engine) }
        expectEqual(result, expected)
    }

    @Test func clippingFollowsTorch() throws {
        let options = makeOptions { $0.learningRate = 0.01 }
        let (result, expected, norms) = try run("adamw_clip", clip: 1.5) { parameters, _ in try AdamW(parameters, rates(parameters, options), options, engine) }
        expectEqual(result, expected)
        let torch = try #require(try Fixtures.json("optimizers.json")["adamw_clip"]?["norms"]).elements.compactMap(\.doubleValue)
        #expect(zip(norms, torch).allSatisfy { abs($0 - $1) < 1e-5 * $1 })
        #expect(GradientClipping.factor(norm: 0.5, maximum: 1.5) == 1)
    }

    @Test(arguments: ["sgd", "sgd_momentum"]) func sgdFollowsTorch(_ name: String) throws {
        let options = makeOptions { ($0.rule, $0.learningRate, $0.momentum, $0.weightDecay) = (.sgd, 0.05, name == "sgd" ? 0 : 0.9, name == "sgd" ? 0 : 0.02) }
        let (result, expected, _) = try run(name) { parameters, _ in try SGD(parameters, rates(parameters, options), options, engine) }
        expectEqual(result, expected)
    }

    @Test func loraFAFollowsPEFT() throws {
        let options = makeOptions { ($0.rule, $0.learningRate, $0.weightDecay) = (.loraFA, 0.02, 0.01) }
        let (result, expected, _) = try run("lorafa") { parameters, _ in
            let trainee = Trainee(name: "a", entries: parameters.map { ($0.name, $0) }, adaptation: { .init(layerCount: 0) }, configuration: JSONObject()) { _ in 2 }
            trainee.fixForLoRAFA()
            let trained = trainee.trainableParameters
            #expect(trained.count == parameters.count - 1)  // A is fixed
            return try LoRAFA(trained, rates(trained, options), trainee, engine)
        }
        for (got, expected) in zip(result, expected) { #expect(worst(got, expected) < 2e-5) }
    }

    @Test func loraPlusGroupsFollowPEFT() throws {
        let options = makeOptions { ($0.learningRate, $0.loraPlusRatio, $0.loraPlusWeightDecay, $0.loraPlusEmbeddingRate) = (0.001, 8, 0.1, 5e-5) }
        let groups = try #require(try Fixtures.json("optimizers.json")["loraplus_groups"]).elements
        #expect(groups.count == 9)
        for group in groups {
            let name = try #require(group["name"]?.stringValue)
            let rates = ParameterRates(for: name, dimensions: try #require(group["dimensions"]?.intValue), isLayerNorm: name.firstRange(ofText: "norm") != nil, options)
            #expect(rates.learningRate == group["lr"]?.doubleValue, "\(name)")
            #expect(rates.weightDecay == group["weight_decay"]?.doubleValue, "\(name)")
        }
    }

    @Test func schedulesFollowTransformers() throws {
        let recorded = try Fixtures.json("schedules.json").elements
        #expect(recorded.count == 7)
        for entry in recorded {
            let shape = try #require(LearningRateSchedule.Shape(rawValue: entry["name"]?.stringValue ?? ""))
            let schedule = LearningRateSchedule(shape, warmupSteps: try #require(entry["warmup"]?.intValue), totalSteps: try #require(entry["total"]?.intValue))
            for (step, rate) in try #require(entry["rates"]).elements.enumerated() {
                #expect(abs(schedule.factor(step) - (rate.doubleValue ?? .nan)) < 1e-12, "\(shape) step \(step)")
            }
        }
    }

    @Test func anUpdateDoesNotDependOnThreads() throws {
        var results: [[Float]] = []
        for threads in [1, 2, 5] {
            let engine = Engine(threads: threads)
            var stream = RandomStream(seed: 3)
            let parameter = Parameter(name: "w", value: try Tensor(engine, (0..<70001).map { _ in stream.normal() }, shape: [70001]))
            let store = GradientStore(engine)
            try store.buffer(for: parameter).withMutableFloats { for index in $0.indices { $0[index] = stream.normal() } }
            let adam = try AdamW([parameter], rates([parameter], OptimizerOptions()), OptimizerOptions(), engine)
            for _ in 0..<3 { adam.update(store, gradientScale: 0.7, rateFactor: 1) }
            results.append(try parameter.value.floats(engine))
        }
        #expect(results[0] == results[1] && results[0] == results[2])
    }

    @Test(arguments: [
        #"{"lr": -1}"#, #"{"betas": [1, 0.9]}"#, #"{"betas": 3}"#, #"{"optimizer": "lamb"}"#, #"{"momentum": 0.9}"#, #"{"max_steps": 0}"#,
        #"{"max_grad_norm": 0}"#, #"{"gradient_checkpointing": "maybe"}"#, #"{"lr_scheduler": "step"}"#, #"{"loraplus_lr_ratio": 2, "optimizer": "lorafa"}"#,
        #"{"epochs": 1.5}"#, #"{"seed": -1}"#, #"[1]"#, #"{"lr": 1e999}"#, #"{"nonsense": 1}"#, #"{"adapter": "a"}"#,
    ]) func wrongOptionsAreNamed(_ text: String) throws {
        let error = failure { _ = try TrainerOptions(try JSONValue(parsing: text)) { _ in } }
        #expect(error != nil, "\(text)")
    }

    @Test func optionsFromJSON() throws {
        var warnings: [String] = []
        let json = #"{"optimizer": "adamw", "lr": 0.01, "max_grad_norm": null, "lr_scheduler": "cosine", "max_steps": 5, "gradient_checkpointing": true, "lorafa": {}, "adapter": "a"}"#
        let options = try TrainerOptions(try JSONValue(parsing: json), otherKeys: ["adapter"]) { warnings.append($0) }
        #expect(options.optimizer.learningRate == 0.01 && options.maximumGradientNorm == nil && options.schedule == .cosine && options.recomputation == .on)
        #expect(warnings.count == 1 && warnings[0].firstRange(ofText: "lorafa") != nil)
    }
}
