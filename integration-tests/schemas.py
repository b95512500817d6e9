"""JSON schemas by the hundred: schema number n is a function of n alone. What they ask for is bounded, so that answers end.

Nested objects, arrays with bounds, enums and constants, references, definitions that contain themselves, formats, patterns,
ranges, alternatives, `allOf`, open and closed objects.
"""

from random import Random
from typing import Any

Schema = dict[str, Any]

FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "ipv6", "email", "hostname", "duration"]
PATTERNS = ["^[A-Z]{2}[0-9]{3}$", "^(red|green|blue)$", r"^\d{1,3}\.\d{2}$", "^[a-f]+$", "^(\\+49)?[0-9]{4,6}$"]
NAMES = ["id", "name", "kind", "size", "tags", "when", "größe", "is ok", "a.b", "unit_price", "ref", 'say "hi"', "back\\slash"]


def schema(number: int) -> Schema:
    chance = Random(number)
    if number % 10 == 0:
        return _recursive(chance)
    if number % 10 == 1:
        return _composed(chance)
    made = _object(chance, depth=chance.randrange(1, 4))
    if number % 10 == 2:
        return {"$defs": {"part": made}, "type": "object", "properties": {"one": _ref(), "two": _ref()}, "required": ["one"]}
    return made


def _ref(name: str = "part") -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _object(chance: Random, depth: int) -> Schema:
    names = chance.sample(NAMES, chance.randrange(1, 5))
    properties = {name: _value(chance, depth - 1) for name in names}
    made: Schema = {"type": "object", "properties": properties}
    if chance.random() < 0.8:
        made["required"] = [name for name in names if chance.random() < 0.7]
    if chance.random() < 0.3:
        made["additionalProperties"] = False
    if chance.random() < 0.2:
        made["title"] = "Thing"
        made["description"] = "A thing; with text that no compiler should mind: {}[]()*+?\\"
    return made


def _value(chance: Random, depth: int) -> Schema:
    kinds = [_enum, _const, _integer, _number, _text, _format, _pattern, _boolean, _nullable]
    if depth > 0:
        kinds += [_object_below, _object_below, _array, _array, _any_of, _tuple]
    return chance.choice(kinds)(chance, depth)


def _enum(chance: Random, depth: int) -> Schema:  # noqa: ARG001
    return {"enum": chance.sample(["red", "green", "", "ü\n", 1, -2.5, None, True, ["a"], {"b": 1}], chance.randrange(1, 5))}


def _const(chance: Random, depth: int) -> Schema:  # noqa: ARG001
    return {"const": chance.choice(["fixed", 0, False, None, {"deep": [1, {"x": "y"}]}])}


def _integer(chance: Random, depth: int) -> Schema:  # noqa: ARG001
    low = chance.randrange(-1000, 1000)
    made: Schema = {"type": "integer", "minimum": low, "maximum": low + chance.randrange(0, 5000)}
    if chance.random() < 0.2:
        made = {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 100}
    if chance.random() < 0.15:
        made = {"type": "integer", "minimum": 0, "maximum": 90, "multipleOf": chance.choice([2, 5, 10])}
    return made


def _number(chance: Random, depth: int) -> Schema:  # noqa: ARG001
    low = chance.choice([-3.5, 0, 0.25, 10])
    return {"type": "number", "minimum": low, "maximum": low + chance.choice([0.5, 1, 7.75])}


def _text(chance: Random, depth: int) -> Schema:  # noqa: ARG001
    shortest = chance.randrange(0, 4)
    return {"type": "string", "minLength": shortest, "maxLength": shortest + chance.randrange(0, 9)}


def _format(chance: Random, depth: int) -> Schema:  # noqa: ARG001
    return {"type": "string", "format": chance.choice(FORMATS)}


def _pattern(chance: Random, depth: int) -> Schema:  # noqa: ARG001
    return {"type": "string", "pattern": chance.choice(PATTERNS), "maxLength": 12}


def _boolean(chance: Random, depth: int) -> Schema:  # noqa: ARG001
    return {"type": "boolean"}


def _nullable(chance: Random, depth: int) -> Schema:  # noqa: ARG001
    return {"type": [chance.choice(["boolean", "null"]), "string"], "maxLength": 5}


def _object_below(chance: Random, depth: int) -> Schema:
    return _object(chance, depth)


def _array(chance: Random, depth: int) -> Schema:
    items = _value(chance, depth - 1)
    fewest = chance.randrange(0, 3)
    return {"type": "array", "items": items, "minItems": fewest, "maxItems": fewest + chance.randrange(0, 3)}


def _tuple(chance: Random, depth: int) -> Schema:
    first = [_value(chance, depth - 1) for _ in range(chance.randrange(1, 3))]
    return {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}


def _any_of(chance: Random, depth: int) -> Schema:
    return {"anyOf": [_value(chance, depth - 1) for _ in range(chance.randrange(2, 4))]}


def _recursive(chance: Random) -> Schema:
    """A tree whose branches may end at once."""
    node = _object(chance, depth=1)
    node["properties"]["next"] = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
    node["properties"]["children"] = {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1}
    return {"$defs": {"node": node}, "$ref": "#/$defs/node"}


def _composed(chance: Random) -> Schema:
    return {
        "type": "object",
        "allOf": [
            {"properties": {"a": _value(chance, 1)}, "required": ["a"]},
            {"properties": {"b": _value(chance, 1)}, "required": ["b"]},
        ],
        "maxProperties": 3,
    }
