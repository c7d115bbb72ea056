/// The parsed form of a template. Lines are kept for messages.
struct TemplateExpression: Sendable {
    enum Literal: Sendable { case none, bool(Bool), integer(Int64), number(Double), string(String) }
    enum Binary: String, Sendable {
        case add = "+", subtract = "-", multiply = "*", divide = "/", floorDivide = "//", modulo = "%", power = "**",
            concatenate = "~"
    }
    enum Comparison: String, Sendable {
        case equal = "==", notEqual = "!=", less = "<", lessOrEqual = "<=", greater = ">", greaterOrEqual = ">=", isIn =
            "in", isNotIn = "not in"
    }

    struct Arguments: Sendable {
        var positional: [TemplateExpression] = []
        var named: [(name: String, value: TemplateExpression)] = []
    }

    indirect enum Kind: Sendable {
        case literal(Literal)
        case name(String)
        case list([TemplateExpression])
        case dictionary([(key: TemplateExpression, value: TemplateExpression)])
        case attribute(TemplateExpression, String)
        case item(TemplateExpression, TemplateExpression)
        case slice(TemplateExpression, TemplateExpression?, TemplateExpression?, TemplateExpression?)
        case call(TemplateExpression, Arguments)
        case filter(TemplateExpression, String, Arguments)
        case test(TemplateExpression, String, Arguments)
        case not(TemplateExpression)
        case and(TemplateExpression, TemplateExpression)
        case or(TemplateExpression, TemplateExpression)
        case negate(TemplateExpression)
        case binary(Binary, TemplateExpression, TemplateExpression)
        case compare(TemplateExpression, [(Comparison, TemplateExpression)])
        /// `then if condition else other`
        case conditional(TemplateExpression, condition: TemplateExpression, other: TemplateExpression?)
    }

    let kind: Kind
    let line: Int
}

struct TemplateStatement: Sendable {
    struct Macro: Sendable {
        let name: String
        let parameters: [(name: String, standard: TemplateExpression?)]
        let body: [TemplateStatement]
    }

    struct Loop: Sendable {
        let targets: [String]
        let values: TemplateExpression
        let condition: TemplateExpression?
        let body: [TemplateStatement]
        /// Runs if there was nothing to loop over.
        let otherwise: [TemplateStatement]
    }

    indirect enum Kind: Sendable {
        case text(String)
        case output(TemplateExpression)
        case branch([(condition: TemplateExpression, body: [TemplateStatement])], otherwise: [TemplateStatement])
        case loop(Loop)
        case set([String], TemplateExpression)
        /// `set namespace.name = value`
        case setMember(String, String, TemplateExpression)
        /// `set name` … `endset`, through filters
        case setBlock(String, [TemplateStatement], filters: [(String, TemplateExpression.Arguments)])
        case macro(Macro)
        /// transformers' mark of the assistant's words: `generation` … `endgeneration`
        case generation([TemplateStatement])
        case leaveLoop
        case nextIteration
    }

    let kind: Kind
    let line: Int
}
