package import Autograd
package import Platform
package import Tensors

/// What goes into a model.
package enum ModelInput {
    /// i32 `[batch·length]`
    case ids(Tensor)
    /// `[batch·length, hiddenSize]`: rows that stand in for looked-up embeddings.
    case embeddings(Variable)
    /// Each sample's ids, i32, behind `[count, hiddenSize]` virtual tokens of its own; the lengths of the context count both.
    case prompted(Tensor, by: [Variable])
    /// `[batch, …]` of a network without tokens: vectors, pictures `[batch, channels, height, width]`.
    case features(Variable)
}

/// What a model's logits are for, and so which loss they have.
package enum ModelTask: String, Sendable {
    /// Logits of a row predict the next token.
    case causalLM
    /// Logits of a decoder's row predict the label there: the decoder reads the labels shifted by one.
    case conditionalGeneration
    /// Logits of a sample are of its label, of each of its labels, or a number for each (`problem_type`).
    case classification
    /// Logits of a token are of its label.
    case tokenClassification
    /// Two logits of a token: that the answer begins there, that it ends there.
    case questionAnswering
    /// No head: the states themselves are wanted.
    case features
}

/// Which rows the head shall be applied to.
package enum LogitRows: Sendable {
    case all
    /// The last of each sample: generation.
    case last
}

/// One architecture's forward pass over its layers. An architecture is one file that builds one of these
/// (`Architecture`); everything else is the same for all (`Model`).
package protocol Network: AnyObject, Sendable {
    var task: ModelTask { get }
    /// The last linear layer, when logits are nothing but its output: losses then need no matrix of all logits.
    var head: Linear? { get }
    /// The list of blocks that may run in another order (`BlockRun`): its name in the module tree and how many there are; nil:
    /// they may not.
    var blockList: (name: String, count: Int)? { get }
    /// Blocks one after the other whose activations can be computed again (`ForwardContext.block`); of several stacks: the longest.
    var blockCount: Int { get }
    /// Where bottleneck adapters can stand.
    var joins: [BlockPlace] { get }
    /// The modules that attend over the sequence itself, by layer, where prompts can act beside them (`GatedPrompt`).
    var attentionNames: [String] { get }
    /// What a cache must hold; nil when the network has none.
    var cacheShape: CacheShape? { get }
    /// It is an encoder-decoder: passes have a source beside what the decoder reads.
    var readsSource: Bool { get }
    /// Of one sample: features where others have tokens (pictures), and in its source (recordings); nil: tokens, or what the host likes.
    var featureShape: [Int]? { get }
    var sourceShape: [Int]? { get }
    /// Leaves in the cache of one sample what the decoder looks at of `context.source`.
    func readSource(into cache: KeyValueCache, _ context: ForwardContext) throws(PEFTError)
    /// The states before the head, `[batch·length, hiddenSize]`; of a network without tokens `[batch, hiddenSize]`.
    func hidden(_ input: ModelInput, _ context: ForwardContext) throws(PEFTError) -> Variable
    /// The head's output: `[batch·length, vocabulary]` (`.last`: `[batch, vocabulary]`), `[batch, labels]`, or `[batch·length, labels]`.
    func logits(_ hidden: Variable, of input: ModelInput, rows: LogitRows, _ context: ForwardContext) throws(PEFTError) -> Variable
    /// What a pooler makes of the states, `[batch, hiddenSize]`; nil without one.
    func pooled(_ hidden: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable?
}

extension Network {
    /// A network that does not generate.
    package var cacheShape: CacheShape? { nil }
    package var head: Linear? { nil }
    package var attentionNames: [String] { [] }
    package var joins: [BlockPlace] { [] }
    package var readsSource: Bool { false }
    package var featureShape: [Int]? { nil }
    package var sourceShape: [Int]? { nil }
    package func readSource(into cache: KeyValueCache, _ context: ForwardContext) throws(PEFTError) { throw PEFTError(.unsupported, "this model reads no source") }
    package func pooled(_ hidden: Variable, _ context: ForwardContext) throws(PEFTError) -> Variable? { nil }
}

extension Network {
    package var blockList: (name: String, count: Int)? { nil }
    package var blockCount: Int { blockList?.count ?? 0 }
}

package struct CacheShape: Sendable, Equatable {
    package let layerCount: Int
    package let keyValueHeads: Int
    package let headSize: Int
    /// Positions the model was trained for.
    package let maximumLength: Int
    /// nil: the positions are not in the keys, so a cache cannot be shifted.
    package let rotary: RotaryTable?

    package static func == (a: CacheShape, b: CacheShape) -> Bool {
        a.layerCount == b.layerCount && a.keyValueHeads == b.keyValueHeads && a.headSize == b.headSize
    }
}
