"""The one registry of games that answer back. A further game is one file with one class, and one line here.

The classes of games and their names are MTR-Bench's (arXiv:2505.17123).
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from typing import cast

from posttrain.errors import PosttrainError, Problem
from posttrain.rl.environments.game import Game

__all__ = ["ENVIRONMENTS", "game_class"]

_HERE = "posttrain.rl.environments"

ENVIRONMENTS: dict[str, str] = {
    "BitCompare": f"{_HERE}.information_probing.bit_compare:BitCompare",
    "BitQuery": f"{_HERE}.information_probing.bit_query:BitQuery",
    "CircleFinding": f"{_HERE}.information_probing.circle_finding:CircleFinding",
    "FindTheImpostors": f"{_HERE}.information_probing.find_the_impostors:FindTheImpostors",
    "GuessMax": f"{_HERE}.information_probing.guess_max:GuessMax",
    "LegendaryTree": f"{_HERE}.information_probing.legendary_tree:LegendaryTree",
    "ListQuery": f"{_HERE}.information_probing.list_query:ListQuery",
    "MedianQuery": f"{_HERE}.information_probing.median_query:MedianQuery",
    "MinMax": f"{_HERE}.information_probing.min_max:MinMax",
    "Wordle": f"{_HERE}.information_probing.wordle:Wordle",
    "AttendanceCheck": f"{_HERE}.dynamic_adaptation.attendance_check:AttendanceCheck",
    "BitGuessing": f"{_HERE}.dynamic_adaptation.bit_guessing:BitGuessing",
    "FindHidden": f"{_HERE}.dynamic_adaptation.find_hidden:FindHidden",
    "MahjongDetective": f"{_HERE}.dynamic_adaptation.mahjong_detective:MahjongDetective",
    "MimicHunt": f"{_HERE}.dynamic_adaptation.mimic_hunt:MimicHunt",
    "PermutationDiscovery": f"{_HERE}.dynamic_adaptation.permutation_discovery:PermutationDiscovery",
    "RotaryLock": f"{_HERE}.dynamic_adaptation.rotary_lock:RotaryLock",
    "RPD": f"{_HERE}.dynamic_adaptation.rpd:RPD",
    "TrainPursuit": f"{_HERE}.dynamic_adaptation.train_pursuit:TrainPursuit",
    "ZeroFinding": f"{_HERE}.dynamic_adaptation.zero_finding:ZeroFinding",
    "CactusSearch": f"{_HERE}.state_operation.cactus_search:CactusSearch",
    "ChemicalSynthesis": f"{_HERE}.state_operation.chemical_synthesis:ChemicalSynthesis",
    "ColorMagic": f"{_HERE}.state_operation.color_magic:ColorMagic",
    "DarkMaze": f"{_HERE}.state_operation.dark_maze:DarkMaze",
    "FindBiggest": f"{_HERE}.state_operation.find_biggest:FindBiggest",
    "MagneticField": f"{_HERE}.state_operation.magnetic_field:MagneticField",
    "RainbowCandy": f"{_HERE}.state_operation.rainbow_candy:RainbowCandy",
    "SafepathFinder": f"{_HERE}.state_operation.safepath_finder:SafepathFinder",
    "TreasureHunt": f"{_HERE}.state_operation.treasure_hunt:TreasureHunt",
    "VladikMaze": f"{_HERE}.state_operation.vladik_maze:VladikMaze",
    "AssiutChess": f"{_HERE}.strategic_gaming.assiut_chess:AssiutChess",
    "BeeChase": f"{_HERE}.strategic_gaming.bee_chase:BeeChase",
    "GeoGame": f"{_HERE}.strategic_gaming.geo_game:GeoGame",
    "GridColoring": f"{_HERE}.strategic_gaming.grid_coloring:GridColoring",
    "GridGame": f"{_HERE}.strategic_gaming.grid_game:GridGame",
    "KnightBattle": f"{_HERE}.strategic_gaming.knight_battle:KnightBattle",
    "PaperNumber": f"{_HERE}.strategic_gaming.paper_number:PaperNumber",
    "PizzaSlice": f"{_HERE}.strategic_gaming.pizza_slice:PizzaSlice",
    "XORBreaking": f"{_HERE}.strategic_gaming.xor_breaking:XORBreaking",
    "ZigzagGraph": f"{_HERE}.strategic_gaming.zigzag_graph:ZigzagGraph",
}


@cache
def game_class(name: str) -> type[Game]:
    """The class of the game of that name.

    Raises:
        PosttrainError: there is none of that name (the nearest names are given).
    """
    path = ENVIRONMENTS.get(name)
    if path is None:
        near = difflib.get_close_matches(name, ENVIRONMENTS, n=3, cutoff=0.5)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(ENVIRONMENTS))}"
        raise PosttrainError(Problem(f"no game is called {name!r}", remedy=remedy))
    module, _, attribute = path.partition(":")
    return cast(type[Game], getattr(import_module(module), attribute))
