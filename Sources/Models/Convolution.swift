package import Autograd
package import Platform
package import Tensors

/// A convolution in one to three dimensions, computed as a product over the patches its kernel sees:
///
///     y = patches(x) · Wᵀ + b        W [out, in/groups · taps]
///
/// `matrix` is that product, so whatever adapts a linear layer adapts a convolution: hooks see patches (of all input channels,
/// also where groups of outputs see groups of them) and channels.
package final class Convolution: Layer, Sendable {
    package let name: String
    package let index: Int
    package let inputChannels: Int
    package let outputChannels: Int
    package let geometry: PatchGeometry
    package let groups: Int
    /// The product, as a layer of the same name and place.
    package let matrix: Linear

    /// - Parameter weight: `[out, in/groups, taps…]`, plain.
    package init(name: String, index: Int, weight: Tensor, bias: Tensor?, geometry: PatchGeometry, groups: Int) throws(PEFTError) {
        self.name = name
        self.index = index
        self.geometry = geometry
        self.groups = groups
        outputChannels = weight.shape[0]
        inputChannels = weight.shape[1] * groups
        matrix = Linear(name: name, index: index, weight: try weight.reshaped([outputChannels, weight.count / max(outputChannels, 1)]), bias: bias, groups: groups)
    }

    package var kind: String { "Conv\(geometry.kernel.count)d" }

    /// "weight" in its own shape.
    package var weightShape: [Int] { [outputChannels, inputChannels / groups] + geometry.kernel }

    package var tensors: [(name: String, tensor: Tensor)] {
        matrix.tensors.map { ($0.name, $0.name == "weight" ? (try? $0.tensor.reshaped(weightShape)) ?? $0.tensor : $0.tensor) }
    }

    package func setTensor(_ name: String, _ tensor: Tensor) throws(PEFTError) {
        try matrix.setTensor(name, name == "weight" ? try tensor.reshaped([outputChannels, matrix.inputSize / groups]) : tensor)
    }

    /// `x`: `context.batch` pictures of `size`; the result is `[batch·positions, out]`, channels last.
    /// - Throws: `.argument` when the kernel does not fit in the picture.
    package func callAsFunction(_ x: Variable, size: [Int], layout: PictureLayout, _ context: ForwardContext) throws(PEFTError) -> (y: Variable, size: [Int]) {
        guard let out = geometry.outputSize(size) else {
            throw PEFTError(.argument, "'\(name)': a kernel of \(geometry.kernel) with padding \(geometry.padding) does not fit in a picture of \(size)")
        }
        let rows = try context.tape.patches(x, batch: context.batch, channels: inputChannels, size: size, layout: layout, geometry)
        return (try matrix(rows, context), out)
    }
}
