// swift-tools-version: 6.2
import PackageDescription

// The rooms of the house and what each may lean on; arrows point downwards only (ARCHITECTURE.md).
// `Kernels` is C; everything else is Swift. The C header in include/ is the public API: Swift symbols are `package`.

/// Every Swift target gets these. A warning is an error, so that they stay true.
let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .strictMemorySafety(),  // SE-0458: each use of an unsafe construct is marked `unsafe`
    .enableUpcomingFeature("ExistentialAny"),  // SE-0335
    .enableUpcomingFeature("MemberImportVisibility"),  // SE-0444
    .enableUpcomingFeature("InternalImportsByDefault"),  // SE-0409
    .treatAllWarnings(as: .error),
    // Swift decides what is done; what is done to every number is C. So Swift is compiled for size (a tenth less), each
    // function in a section of its own, which the linker drops or folds; accesses are exclusive by construction (locks, values).
    .unsafeFlags(["-Osize", "-enforce-exclusivity=unchecked", "-Xfrontend", "-function-sections"], .when(configuration: .release)),
    // Neither async functions nor Swift's Regex are used (threads are the Tensors room's, patterns are PCRE2's); unasked,
    // each module would import both libraries and the release library would carry 4 MB of them.
    .unsafeFlags(["-Xfrontend", "-disable-implicit-concurrency-module-import", "-Xfrontend", "-disable-implicit-string-processing-module-import"]),
]

/// The kernels are useless unoptimised, so they are -O2 in debug builds too (-O3 is 0.4 MB more and no faster: what must be
/// unrolled says so itself); nothing here may change results (no -ffast-math). Instruction sets are chosen per function in the sources, never by a flag.
let kernelFlags: [CSetting] = [.unsafeFlags(["-O2", "-std=c11", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"])]

/// Names of cases and properties are left out of the library where nothing prints an enumeration that has no `description` (144 kB; it would say
/// the type's name instead). Only Tensors and PEFTSwift do.
let nameless: SwiftSetting = .unsafeFlags(["-Xfrontend", "-disable-reflection-metadata"], .when(configuration: .release))

func room(_ name: String, _ dependencies: [Target.Dependency], printsCases: Bool = false) -> Target {
    .target(name: name, dependencies: dependencies, swiftSettings: printsCases ? strict : strict + [nameless])
}

/// Tests read their fixtures from where they lie in the tree (`#filePath`): they are no resources.
func test(_ name: String, _ dependencies: [Target.Dependency], exclude: [String] = []) -> Target {
    .testTarget(name: name, dependencies: dependencies, path: "Tests/\(name)", exclude: exclude, swiftSettings: [.swiftLanguageMode(.v6)])
}

let package = Package(
    name: "peftswift",
    products: [.library(name: "peftswift", type: .dynamic, targets: ["PEFTSwift"])],
    targets: [
        .systemLibrary(name: "CPEFTSwift", path: "include"),
        .systemLibrary(name: "COpenBLAS", path: "Sources/COpenBLAS"),
        .target(name: "CHDF5", path: "Sources/CHDF5", cSettings: [.unsafeFlags(["-std=c11", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"])]),
        .systemLibrary(name: "CPCRE2", path: "Sources/CPCRE2"),
        .systemLibrary(name: "CUTF8Proc", path: "Sources/CUTF8Proc"),
        .systemLibrary(name: "CJansson", path: "Sources/CJansson"),
        .target(name: "StaticRuntime", path: "Sources/StaticRuntime"),  // only for the release library's size
        .target(name: "Kernels", path: "Sources/Kernels", cSettings: kernelFlags),

        room("Platform", ["CJansson", "CPCRE2", "CUTF8Proc"]),
        room("Tensors", ["Kernels", "Platform"], printsCases: true),
        room("Autograd", ["Kernels", "Tensors", "Platform"]),
        room("Quantization", ["Kernels", "Tensors", "Platform"]),
        room("Checkpoints", ["CHDF5", "Tensors", "Platform"]),
        room("Tokenizers", ["Platform"]),
        room("Models", ["Kernels", "Autograd", "Tensors", "Quantization", "Checkpoints", "Tokenizers", "Platform"]),
        room("Adapters", ["COpenBLAS", "Kernels", "Models", "Autograd", "Tensors", "Quantization", "Checkpoints", "Tokenizers", "Platform"]),
        room("Merging", ["Adapters", "Models", "Tensors", "Checkpoints", "Platform"]),
        room("Training", ["Adapters", "Models", "Autograd", "Tensors", "Checkpoints", "Tokenizers", "Platform"]),
        room("Generation", ["Kernels", "Adapters", "Models", "Autograd", "Tensors", "Tokenizers", "Platform"]),
        room("PEFTSwift", ["CPEFTSwift", "StaticRuntime", "Kernels", "Generation", "Training", "Merging", "Adapters", "Models", "Quantization", "Checkpoints", "Tokenizers", "Autograd", "Tensors", "Platform"], printsCases: true),

        test("PlatformTests", ["Platform"]),
        test("KernelsTests", ["Kernels"], exclude: ["Fixtures"]),
        test("TensorsTests", ["Tensors", "Kernels", "Platform"]),
        test("AutogradTests", ["Autograd", "Tensors", "Kernels", "Platform"]),
        test("QuantizationTests", ["Quantization", "Tensors", "Kernels", "Platform"]),
        test("CheckpointsTests", ["Checkpoints", "Tensors", "Platform"], exclude: ["Fixtures"]),
        test("TokenizersTests", ["Tokenizers", "Platform"]),
        test("ModelsTests", ["Models", "Autograd", "Tensors", "Checkpoints", "Platform"]),
        test("AdaptersTests", ["Merging", "Adapters", "Models", "Autograd", "Tensors", "Quantization", "Checkpoints", "Platform"]),
        test("TrainingTests", ["Training", "Adapters", "Models", "Autograd", "Tensors", "Checkpoints", "Tokenizers", "Platform"], exclude: ["Fixtures"]),
        test("GenerationTests", ["Generation", "Training", "Adapters", "Models", "Autograd", "Tensors", "Tokenizers", "Platform"]),
    ]
)
