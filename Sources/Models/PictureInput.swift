internal import Glibc
internal import Platform
internal import Tensors

/// Pictures as a model wants them, after transformers' image processors: resized (as Pillow does), cut out of the middle, rescaled,
/// normalised.
struct PictureInput {
    /// nil: pictures stay as large as they are.
    private let size: Size?
    private let filter: Filter
    private let crop: (height: Int, width: Int)?
    /// `value · scale − shift` for each channel.
    private let scales: [Float], means: [Float], deviations: [Float]

    private enum Size {
        case exact(height: Int, width: Int)
        case shortestEdge(Int)
    }

    private static let largest = 1 << 14

    init(_ settings: ModelConfiguration) throws(PEFTError) {
        size = try settings.flag("do_resize", or: true) ? try PictureInput.size(settings) : nil
        // Pillow's numbers.
        switch settings.json["resample"]?.intValue ?? 2 {
        case 2: filter = Filter(support: 1) { abs($0) < 1 ? 1 - abs($0) : 0 }
        case 3:
            filter = Filter(support: 2) { value in
                let (x, a) = (abs(value), -0.5)
                return x < 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0
            }
        default: throw settings.unsupported("resample", "2 (bilinear) and 3 (bicubic)")
        }
        crop = try settings.flag("do_center_crop", or: settings.has("crop_size")) ? try PictureInput.sides(settings, "crop_size") : nil
        let scale = try settings.flag("do_rescale", or: true) ? Float(try settings.number("rescale_factor", or: 1 / 255)) : 1
        scales = [scale, scale, scale]
        let isNormalised = try settings.flag("do_normalize", or: true)
        means = isNormalised ? try PictureInput.channels(settings, "image_mean") : [0, 0, 0]
        deviations = isNormalised ? try PictureInput.channels(settings, "image_std") : [1, 1, 1]
        guard deviations.allSatisfy({ $0 > 0 }) else { throw settings.unsupported("image_std", "numbers above 0") }
    }

    private static func size(_ settings: ModelConfiguration) throws(PEFTError) -> Size {
        if let object = try? settings.object("size"), object.has("shortest_edge") { return .shortestEdge(try object.size("shortest_edge", most: largest)) }
        let (height, width) = try sides(settings, "size")
        return .exact(height: height, width: width)
    }

    /// `{"height", "width"}`, or a number for both.
    private static func sides(_ settings: ModelConfiguration, _ key: String) throws(PEFTError) -> (height: Int, width: Int) {
        if settings.json[key]?.intValue != nil {
            let side = try settings.size(key, most: largest)
            return (side, side)
        }
        guard let object = try settings.object(key) else { return (224, 224) }
        return (try object.size("height", most: largest), try object.size("width", most: largest))
    }

    private static func channels(_ settings: ModelConfiguration, _ key: String) throws(PEFTError) -> [Float] {
        let values = settings.json[key]?.arrayValue?.compactMap(\.doubleValue).map { Float($0) } ?? [0.5, 0.5, 0.5]
        guard values.count == 3, values.allSatisfy(\.isFinite) else { throw settings.unsupported(key, "three numbers") }
        return values
    }

    /// - Parameter pictures: u8 `[height, width, 3]` each.
    /// - Returns: f32 `[pictures, 3, height, width]`
    func features(_ pictures: [(name: String, tensor: Tensor)], _ engine: Engine) throws(PEFTError) -> Tensor {
        var (values, shape): ([Float], [Int]) = ([], [])
        for (name, tensor) in pictures {
            guard tensor.dtype == .u8, tensor.shape.count == 3, tensor.shape[2] == 3, tensor.count > 0, tensor.shape.allSatisfy({ $0 <= PictureInput.largest }) else {
                throw PEFTError(.argument, "'\(name)' is \(tensor.dtype.name) \(tensor.shape); u8 [height, width, 3] is needed, sides up to \(PictureInput.largest)")
            }
            let bytes = unsafe UnsafeRawBufferPointer(start: tensor.pointer, count: tensor.count)
            let picture = try prepared(Picture(height: tensor.shape[0], width: tensor.shape[1], values: unsafe Array(bytes)), name)
            guard shape.isEmpty || shape == [picture.height, picture.width] else {
                throw PEFTError(.argument, "'\(name)' becomes \(picture.height) × \(picture.width), the pictures before it \(shape[0]) × \(shape[1]): they cannot share a batch")
            }
            shape = [picture.height, picture.width]
            let count = picture.height * picture.width
            for channel in 0..<3 {
                for place in 0..<count { values.append((Float(picture.values[3 * place + channel]) * scales[channel] - means[channel]) / deviations[channel]) }
            }
        }
        return try Tensor(engine, values, shape: [pictures.count, 3] + shape, .scratch)
    }

    private func prepared(_ picture: Picture, _ name: String) throws(PEFTError) -> Picture {
        var picture = picture
        switch size {
        case .exact(let height, let width): picture = picture.resized(height, width, filter)
        case .shortestEdge(let edge):
            let (short, long) = (min(picture.height, picture.width), max(picture.height, picture.width))
            let other = edge * long / short
            guard other <= PictureInput.largest else { throw PEFTError(.argument, "'\(name)' of \(picture.height) × \(picture.width) becomes \(other) long") }
            picture = picture.height <= picture.width ? picture.resized(edge, other, filter) : picture.resized(other, edge, filter)
        case nil: break
        }
        guard let crop else { return picture }
        guard crop.height <= picture.height, crop.width <= picture.width else {
            throw PEFTError(.argument, "'\(name)' is \(picture.height) × \(picture.width) where \(crop.height) × \(crop.width) are to be cut out of its middle")
        }
        return picture.part((picture.height - crop.height) / 2, (picture.width - crop.width) / 2, crop.height, crop.width)
    }
}

/// A filter of resampling, and how far it reaches.
private struct Filter {
    let support: Double
    let weight: (Double) -> Double
}

/// Bytes `[height, width, 3]`.
private struct Picture {
    var height: Int, width: Int
    var values: [UInt8]

    func part(_ top: Int, _ left: Int, _ height: Int, _ width: Int) -> Picture {
        var part = Picture(height: height, width: width, values: [])
        for row in top..<top + height {
            let start = (row * self.width + left) * 3
            part.values += values[start..<start + width * 3]
        }
        return part
    }

    /// In Pillow's order: along rows, then along columns, bytes in between.
    func resized(_ height: Int, _ width: Int, _ filter: Filter) -> Picture {
        var result = self
        if width != self.width {
            let taps = Picture.taps(self.width, width, filter)
            result = Picture(height: self.height, width: width, values: [])
            result.values.reserveCapacity(self.height * width * 3)
            for row in 0..<self.height {
                for (first, weights) in taps {
                    for channel in 0..<3 { result.values.append(sum(weights, from: (row * self.width + first) * 3 + channel, every: 3)) }
                }
            }
        }
        guard height != self.height else { return result }
        var turned = Picture(height: height, width: width, values: [])
        turned.values.reserveCapacity(height * width * 3)
        for (first, weights) in Picture.taps(self.height, height, filter) {
            for column in 0..<width * 3 { turned.values.append(result.sum(weights, from: first * width * 3 + column, every: width * 3)) }
        }
        return turned
    }

    /// Weights are in units of 2⁻²².
    private func sum(_ weights: [Int], from start: Int, every step: Int) -> UInt8 {
        var (sum, place) = (1 << 21, start)
        for weight in weights {
            sum += Int(values[place]) * weight
            place += step
        }
        return UInt8(max(0, min(255, sum >> 22)))
    }

    /// What each of `new` places takes of the old ones: from which on, with which weights.
    private static func taps(_ old: Int, _ new: Int, _ filter: Filter) -> [(first: Int, weights: [Int])] {
        let scale = Double(old) / Double(new)
        let width = max(scale, 1)
        let reach = filter.support * width
        return (0..<new).map { place in
            let center = (Double(place) + 0.5) * scale
            let (first, end) = (max(0, Int(center - reach + 0.5)), min(old, Int(center + reach + 0.5)))
            let weights = (first..<max(end, first + 1)).map { filter.weight((Double($0) - center + 0.5) / width) }
            let total = weights.reduce(0, +)
            return (first, weights.map { Int(($0 / total * Double(1 << 22)).rounded(.toNearestOrAwayFromZero)) })
        }
    }
}
