"""What the demo model is asked for with a tool or a schema, and the values that a sensible answer has. A value is what the
question says, or a test of one that the model makes up. Fixed: a case that fails is a reason to train, never to leave it out.
"""

from typing import Any

Expected = dict[str, Any]


def tool(name: str, description: str, **properties: str | dict[str, Any]) -> dict[str, Any]:
    """A function of which every argument is required; a string is the type of an argument."""
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema(**properties)}}


def schema(**properties: str | dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {key: {"type": kind} if isinstance(kind, str) else kind for key, kind in properties.items()},
        "required": list(properties),
    }


def is_sensible(value: dict[str, Any], expected: Expected) -> bool:
    """Has the expected keys, and each value is the expected one or passes its test. Capitals do not matter."""

    def fits(item: Any, wanted: Any) -> bool:
        if callable(wanted):
            return bool(wanted(item))
        if isinstance(wanted, str):
            return isinstance(item, str) and item.lower() == wanted.lower()
        if isinstance(wanted, int):
            return isinstance(item, int | float) and not isinstance(item, bool) and item == wanted
        return bool(item == wanted)

    return set(value) == set(expected) and all(fits(value[key], wanted) for key, wanted in expected.items())


def a_plausible_age(value: Any) -> bool:
    return isinstance(value, int) and 0 < value < 120


def a_name(value: Any) -> bool:
    return isinstance(value, str) and 2 <= len(value) <= 40 and value[0].isupper() and value.replace(" ", "").isalpha()


WEATHER = tool("get_weather", "Get the current weather in a given location", location="string")
TIMER = tool("set_timer", "Set a timer", minutes="integer")
TIME = tool("get_time", "Get the current time in a city", city="string")
ADD = tool("add", "Add two numbers", a="integer", b="integer")
ALARM = tool("set_alarm", "Set an alarm", time="string")
UNITS: dict[str, Any] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
WEATHER_IN = tool("get_weather", "Get the current weather", location="string", unit=UNITS)

# The question, the tools on offer, the one to be called, its arguments.
TOOL_CASES: list[tuple[str, list[dict[str, Any]], str, Expected]] = [
    ("What is the weather in Paris?", [WEATHER], "get_weather", {"location": "Paris"}),
    ("What is the weather like in Tokyo?", [WEATHER, TIMER], "get_weather", {"location": "Tokyo"}),
    ("How warm is it in Madrid in celsius?", [WEATHER_IN], "get_weather", {"location": "Madrid", "unit": "celsius"}),
    ("Is it warm in Rome?", [TIMER, WEATHER], "get_weather", {"location": "Rome"}),
    ("Set a timer for 10 minutes.", [WEATHER, TIMER], "set_timer", {"minutes": 10}),
    ("Please set a timer for 45 minutes", [TIMER, TIME], "set_timer", {"minutes": 45}),
    ("What time is it in Berlin?", [TIME, WEATHER], "get_time", {"city": "Berlin"}),
    ("Add 12 and 30.", [ADD, WEATHER], "add", {"a": 12, "b": 30}),
    ("What is 17 plus 25?", [ADD], "add", {"a": 17, "b": 25}),
    ("Wake me up at 7:30.", [ALARM, WEATHER], "set_alarm", {"time": "7:30"}),
]

NAMES: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
FEELING: dict[str, Any] = {"type": "string", "enum": ["positive", "negative"]}
PERSON = schema(name="string", age="integer")
RESIDENT = schema(name="string", age="integer", city="string")

# What the user says, the schema of the answer, its values.
SCHEMA_CASES: list[tuple[str, dict[str, Any], Expected]] = [
    ("Anna is 29 years old and lives in Madrid.", RESIDENT, {"name": "Anna", "age": 29, "city": "Madrid"}),
    ("Eva turned 35 this year. Eva lives in Berlin.", RESIDENT, {"name": "Eva", "age": 35, "city": "Berlin"}),
    ("Give me a JSON object for a person with name and age.", PERSON, {"name": a_name, "age": a_plausible_age}),
    ("Give me JSON for a user with name Alice and age 30.", PERSON, {"name": "Alice", "age": 30}),
    (
        "In Oslo it is 12 degrees and rainy.",
        schema(city="string", temperature="integer", condition="string"),
        {"city": "Oslo", "temperature": 12, "condition": "rainy"},
    ),
    (
        "The lamp costs 25 euros and is red.",
        schema(product="string", price="number", color="string"),
        {"product": "lamp", "price": 25, "color": "red"},
    ),
    (
        "Alice and Bob are going to a concert on Friday.",
        schema(participants=NAMES, event="string", day="string"),
        {"participants": ["Alice", "Bob"], "event": "concert", "day": "Friday"},
    ),
    (
        "Tom is a dog. It is 5 years old and brown.",
        schema(name="string", animal="string", age="integer", color="string"),
        {"name": "Tom", "animal": "dog", "age": 5, "color": "brown"},
    ),
    ("I love this phone, it is great!", schema(sentiment=FEELING), {"sentiment": "positive"}),
    ("The book is terrible and boring.", schema(sentiment=FEELING), {"sentiment": "negative"}),
]
