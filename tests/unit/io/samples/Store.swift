import Foundation
#if canImport(Combine)
import Combine
#endif

let limit = 10

/// Where an item is — größer.
public enum Phase: String, CaseIterable {
    case open, shut
    case failed = "f"

    var isOver: Bool {
        switch self {
        case .open: return false
        case .shut, .failed: return true
        }
    }
}

/// Keeps items.
public protocol Keeping: AnyObject {
    associatedtype Item
    var count: Int { get }
    func keep(_ item: Item) throws -> Bool
}

@available(iOS 15, *)
public final class Store<Item: Hashable>: Keeping {
    private var items: Set<Item> = []
    public private(set) var phase = Phase.open {
        didSet { print("now \(phase) 🎉") }
    }

    public var count: Int { items.count }

    public init(_ items: [Item] = []) {
        self.items = Set(items)
    }

    deinit {
        items.removeAll()
    }

    // A comment between members.
    @discardableResult
    public func keep(_ item: Item) throws -> Bool {
        guard !phase.isOver else {
            throw Failure.over(reason: "shut")
        }
        return items.insert(item).inserted
    }

    public func load<S: Sequence>(from other: S) async where S.Element == Item {
        for item in other {
            do {
                try keep(item)
            } catch let error as Failure {
                print(error)
            } catch {
                continue
            }
        }
    }

    subscript(index: Int) -> Item? {
        items.count > index ? Array(items)[index] : nil
    }

    enum Failure: Error {
        case over(reason: String)
    }
}

extension Store where Item == String {
    func longest() -> String? {
        items.max { $0.count < $1.count }
    }

    static func + (left: Store, right: Store) -> Store {
        Store(Array(left.items) + Array(right.items))
    }
}

struct Point: Codable {
    var x = 0.0, y = 0.0
    mutating func move(by other: Point) {
        x += other.x
        y += other.y
    }
}

func greet(_ name: String, times: Int = 1) -> String {
    let text = """
    hello \(name)
    """
    return Array(repeating: text, count: times).joined()
}
