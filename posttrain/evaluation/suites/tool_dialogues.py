"""The dialogues of ToolUse: requests with the calls that they want, the tools' scripted results, what comes next."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from posttrain.evaluation.suites.suite import Item
from posttrain.tasks.task import derive_seed

EACH = 30  # dialogues of each kind

CITIES = ("Oslo", "Lima", "Cairo", "Hanoi", "Quito", "Turin", "Dakar", "Perth", "Kyoto", "Riga")
PEOPLE = ("Ada", "Bruno", "Chen", "Dilek", "Emeka", "Freya", "Goran", "Hana", "Ines", "Jonas")
CURRENCIES = ("EUR", "USD", "JPY", "CHF", "BRL", "SEK")
UNITS = (("kilometres", "miles"), ("kilograms", "pounds"), ("litres", "gallons"))
SUBJECTS = ("the rehearsal", "the garden", "the rent", "the holiday", "the broken lamp", "the choir")

Tool = dict[str, Any]


DESCRIBED = """\
get_weather The weather of a day in a city. | city string its English name | day string today or tomorrow
convert_currency Converts money. | amount number how much | source string ISO code | target string ISO code
convert_unit Converts a quantity. | amount number how much | source string unit, plural | target string unit, plural
find_contact Looks up an e-mail address. | person string first name
send_email Sends an e-mail. | to string address | subject string its subject
set_alarm Sets an alarm. | hour integer 0 to 23 | minute integer 0 to 59
count_stock How many of an item a shop has. | shop string its city | item string singular
order_item Orders items. | shop string its city | item string singular | count integer how many
"""
"""A function a line: name and purpose, then each parameter, all of them required, with type and meaning."""


def _tool(line: str) -> Tool:
    function, *parameters = (part.strip().split(" ", 2) for part in line.split("|"))
    properties = {name: {"type": kind, "description": about} for name, kind, about in parameters}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    described = {"name": function[0], "description": " ".join(function[1:]), "parameters": schema}
    return {"type": "function", "function": described}


TOOLS = [_tool(line) for line in DESCRIBED.splitlines()]


def _call(function: str, **arguments: Any) -> dict[str, Any]:
    return {"name": function, "arguments": arguments}


def dialogues() -> list[Item]:
    """`EACH` dialogues of every kind, the same every time."""
    found = []
    for kind, make in KINDS.items():
        rng = random.Random(derive_seed("tool-use", kind))
        for number in range(EACH):
            request, steps = make(rng)
            tools = _offered(rng, steps)
            prompt = [{"role": "user", "content": request}]
            found.append(Item(f"{kind}-{number}".replace(" ", "-"), prompt, kind, tools, facts={"steps": steps}))
    return found


def _offered(rng: random.Random, steps: list[dict[str, Any]]) -> list[Tool]:
    """The tools that the dialogue needs among others, in any order."""
    needed = {call["name"] for step in steps for call in step["calls"]}
    here = [tool for tool in TOOLS if tool["function"]["name"] in needed]
    others = [tool for tool in TOOLS if tool not in here]
    tools = [*here, *rng.sample(others, min(3, len(others)))]
    rng.shuffle(tools)
    return tools


Made = tuple[str, list[dict[str, Any]]]
"""A request, and its steps: `calls` that are wanted (none: an answer, which `says` some words), `results` of the calls,
and what the user says `then`."""


def _request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """One request and the call that serves it."""
    city, person, subject = rng.choice(CITIES), rng.choice(PEOPLE), rng.choice(SUBJECTS)
    source, target = rng.sample(CURRENCIES, 2)
    amount, hour, minute = rng.randint(2, 900), rng.randint(0, 23), rng.choice((0, 5, 15, 30, 45))
    unit, other = rng.choice(UNITS)
    address = f"{person.lower()}@example.org"
    money = _call("convert_currency", amount=amount, source=source, target=target)
    measure = _call("convert_unit", amount=amount, source=unit, target=other)
    email = _call("send_email", to=address, subject=subject)
    requests = [
        (f"What will the weather be like tomorrow in {city}?", _call("get_weather", city=city, day="tomorrow")),
        (f"How much is {amount} {source} in {target}?", money),
        (f"Please convert {amount} {unit} to {other}.", measure),
        (f"Set an alarm for {hour}:{minute:02}.", _call("set_alarm", hour=hour, minute=minute)),
        (f'Write an e-mail to {address} with the subject "{subject}".', email),
        (f"Look up {person}'s e-mail address.", _call("find_contact", person=person)),
    ]
    return rng.choice(requests)


def _single(rng: random.Random) -> Made:
    """One request, one call."""
    request, call = _request(rng)
    return request, [{"calls": [call]}]


def _parallel(rng: random.Random) -> Made:
    """Two or three calls at once."""
    cities = rng.sample(CITIES, rng.randint(2, 3))
    day = rng.choice(("today", "tomorrow"))
    calls = [_call("get_weather", city=city, day=day) for city in cities]
    named = f"{', '.join(cities[:-1])} and {cities[-1]}"
    return f"Compare the weather in {named} {day}. Look all of them up at once.", [{"calls": calls}]


def _none(rng: random.Random) -> Made:
    """No tool serves the request."""
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    asked = [
        (f"What is {a} times {b}?", [str(a * b)]),
        (f'What is the first letter of the word "{rng.choice(("garden", "window", "bridge"))}"?', []),
        ("Thank you, that was all.", []),
    ]
    request, says = rng.choice(asked)
    return request, [{"calls": [], "says": says}]


def _multi_turn(rng: random.Random) -> Made:
    """The second request is understood from the first; then the answer has to say what came back."""
    first, second = rng.sample(CITIES, 2)
    day = rng.choice(("today", "tomorrow"))
    degrees = rng.randint(11, 29)
    return f"How is the weather in {first} {day}?", [
        {"calls": [_call("get_weather", city=first, day=day)], "results": [{"sky": "clear", "degrees": degrees - 10}]},
        {"calls": [], "says": [str(degrees - 10)], "then": f"And in {second}?"},
        {"calls": [_call("get_weather", city=second, day=day)], "results": [{"sky": "rain", "degrees": degrees}]},
        {"calls": [], "says": [str(degrees)]},
    ]


def _multi_step(rng: random.Random) -> Made:
    """The second call needs what the first one found."""
    if rng.random() < 0.5:
        person, subject = rng.choice(PEOPLE), rng.choice(SUBJECTS)
        address = f"{person.lower()}.{rng.randint(10, 99)}@example.org"
        return f'Send {person} an e-mail with the subject "{subject}".', [
            {"calls": [_call("find_contact", person=person)], "results": [{"address": address}]},
            {"calls": [_call("send_email", to=address, subject=subject)], "results": [{"sent": True}]},
            {"calls": []},
        ]
    shop, item, count = rng.choice(CITIES), rng.choice(("lamp", "chair", "kettle", "ladder")), rng.randint(3, 40)
    return f"Order every {item} that the shop in {shop} has in stock.", [
        {"calls": [_call("count_stock", shop=shop, item=item)], "results": [{"count": count}]},
        {"calls": [_call("order_item", shop=shop, item=item, count=count)], "results": [{"ordered": count}]},
        {"calls": [], "says": [str(count)]},
    ]


KINDS: dict[str, Callable[[random.Random], Made]] = {
    "single": _single,
    "parallel": _parallel,
    "no tool": _none,
    "many turns": _multi_turn,
    "many steps": _multi_step,
}
