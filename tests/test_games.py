"""Every game of the registry: what is winnable is won by rules and replies alone, chance seldom wins."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from functools import cache
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.rl.environments import ENVIRONMENTS, game_class
from posttrain.rl.environments.game import CATEGORIES, DIFFICULTIES, Difficulty, Game, Player
from posttrain.rl.environments.monitor import Monitor
from posttrain.rl.environments.rounds import Chance
from posttrain.rl.environments.task import monitor_of

NAMES = sorted(ENVIRONMENTS)
SEEDS = range(20)

RANDOM_WINS_AT_MOST = {
    "AssiutChess": (0.3, 0.25, 0.15),
    "AttendanceCheck": (0.45, 0.35, 0.3),
    "BeeChase": (0.4, 0.2, 0.1),
    "BitCompare": (0.25, 0.25, 0.25),
    "BitGuessing": (0.15, 0.1, 0.1),
    "BitQuery": (0.1, 0.02, 0.02),
    "CactusSearch": (0.4, 0.3, 0.2),
    "ChemicalSynthesis": (0.2, 0.05, 0.05),
    "CircleFinding": (0.05, 0.02, 0.02),
    "ColorMagic": (0.25, 0.1, 0.05),
    "DarkMaze": (0.45, 0.1, 0.05),
    "FindBiggest": (0.2, 0.1, 0.05),
    "FindHidden": (0.45, 0.25, 0.2),
    "FindTheImpostors": (0.15, 0.1, 0.1),
    "GeoGame": (0.4, 0.15, 0.05),
    "GridColoring": (0.3, 0.1, 0.05),
    "GridGame": (0.4, 0.3, 0.15),
    "GuessMax": (0.1, 0.02, 0.02),
    "KnightBattle": (0.45, 0.35, 0.2),
    "LegendaryTree": (0.2, 0.1, 0.05),
    "ListQuery": (0.1, 0.1, 0.1),
    "MagneticField": (0.35, 0.2, 0.15),
    "MahjongDetective": (0.15, 0.05, 0.05),
    "MedianQuery": (0.2, 0.1, 0.1),
    "MimicHunt": (0.35, 0.2, 0.15),
    "MinMax": (0.25, 0.1, 0.1),
    "PaperNumber": (0.35, 0.1, 0.05),
    "PermutationDiscovery": (0.3, 0.15, 0.05),
    "PizzaSlice": (0.3, 0.2, 0.1),
    "RPD": (0.45, 0.3, 0.2),
    "RainbowCandy": (0.3, 0.15, 0.05),
    "RotaryLock": (0.3, 0.1, 0.05),
    "SafepathFinder": (0.2, 0.1, 0.1),
    "TrainPursuit": (0.4, 0.2, 0.1),
    "TreasureHunt": (0.25, 0.1, 0.1),
    "VladikMaze": (0.15, 0.05, 0.05),
    "Wordle": (0.0, 0.0, 0.0),
    "XORBreaking": (0.45, 0.25, 0.1),
    "ZeroFinding": (0.2, 0.05, 0.05),
    "ZigzagGraph": (0.5, 0.3, 0.25),
}
"""Easy, medium, hard: what a player without thought wins at most of 60 games."""

REFERENCE_WINS_AT_LEAST: dict[str, float] = {"AssiutChess": 0.9, "TrainPursuit": 0.95}
"""Where luck or a rule of thumb may decide: what the reference wins at least of 20 games. Of all others: every one."""

Transcript = list[tuple[str, str]]


def play(game: Game, player: Player) -> tuple[Transcript, Monitor]:
    monitor = Monitor(game)
    said, transcript = monitor.opening(), []
    while not monitor.done:
        move = player(said)
        said = monitor.step(f"\\boxed{{{move}}}").text
        transcript.append((move, said))
    return transcript, monitor


def thoughtless(game: Game, seed: int) -> Player:
    rng = random.Random(seed)
    return lambda _: game.random_move(rng)


@cache
def reference_games(name: str, difficulty: Difficulty) -> list[tuple[Transcript, Monitor]]:
    kind = game_class(name)
    return [play(kind(seed, difficulty), kind.reference()) for seed in SEEDS]


@cache
def random_games(name: str, difficulty: Difficulty) -> list[tuple[Transcript, Monitor]]:
    games = [game_class(name)(seed % 20, difficulty) for seed in range(60)]
    return [play(game, thoughtless(game, seed)) for seed, game in enumerate(games)]


def win_rate(games: list[tuple[Transcript, Monitor]]) -> float:
    return fmean(monitor.outcome.won for _, monitor in games)


def mean_turns(games: list[tuple[Transcript, Monitor]]) -> float:
    return fmean(monitor.outcome.turns for _, monitor in games)


def state(game: Game) -> str:
    """Everything that a game holds, its random numbers' state included."""

    def shown(value: object) -> object:
        return value.getstate() if isinstance(value, random.Random) else value

    return repr({name: shown(value) for name, value in sorted(vars(game).items())})


def test_the_table_of_bounds_is_of_the_games_that_there_are() -> None:
    assert sorted(RANDOM_WINS_AT_MOST) == NAMES
    assert set(REFERENCE_WINS_AT_LEAST) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_game_is_named_and_classed_as_in_the_registry(name: str) -> None:
    kind = game_class(name)
    assert kind.name == kind.__name__ == name
    assert kind.category in CATEGORIES and f".{kind.category}." in ENVIRONMENTS[name]


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("name", NAMES)
def test_the_reference_player_wins_what_is_winnable(name: str, difficulty: Difficulty) -> None:
    games = reference_games(name, difficulty)
    assert win_rate(games) >= REFERENCE_WINS_AT_LEAST.get(name, 1.0)
    assert all(monitor.outcome.invalid == monitor.outcome.faults == 0 for _, monitor in games)


@pytest.mark.parametrize("name", NAMES)
def test_a_player_without_thought_seldom_wins(name: str) -> None:
    for difficulty, bound in zip(DIFFICULTIES, RANDOM_WINS_AT_MOST[name], strict=True):
        games = random_games(name, difficulty)
        assert win_rate(games) <= bound < 0.6
        assert all(monitor.outcome.faults == 0 for _, monitor in games)
        invalid = sum(monitor.outcome.invalid for _, monitor in games)
        assert invalid == 0, "random moves are well formed and allowed"


@pytest.mark.parametrize("name", NAMES)
def test_a_harder_game_is_longer_for_the_reference_and_no_easier_by_chance(name: str) -> None:
    easy, medium, hard = (mean_turns(reference_games(name, difficulty)) for difficulty in DIFFICULTIES)
    assert easy < hard and easy <= medium + 0.5 and medium <= hard + 0.5
    assert win_rate(random_games(name, "hard")) <= win_rate(random_games(name, "easy")) + 0.05


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_is_the_same_game_and_another_seed_another(name: str) -> None:
    kind = game_class(name)
    for difficulty in DIFFICULTIES:
        for seed in range(3):
            once, again = kind(seed, difficulty), kind(seed, difficulty)
            assert once.rules() == again.rules()
            assert play(once, thoughtless(once, 1))[0] == play(again, thoughtless(again, 1))[0]
    instances = {repr((kind(seed, "hard").rules(), reference_games(name, "hard")[seed][0])) for seed in range(10)}
    assert len(instances) >= 8


@pytest.mark.parametrize("name", [name for name in NAMES if game_class(name).costly])
def test_an_instance_that_is_copied_for_every_rollout_is_the_one_drawn_and_nobody_shares_it(name: str) -> None:
    row = {"entry": json.dumps({"game": name, "seed": 3, "difficulty": "easy", "max_turns": None})}
    drawn = game_class(name)(3, "easy")
    expected = play(drawn, thoughtless(drawn, 1))[0]
    for _ in range(3):  # the first is played to its end before the next begins
        game = monitor_of(row).game
        assert play(game, thoughtless(game, 1))[0] == expected


def test_a_copy_of_draws_goes_on_as_they_do_and_leaves_them_alone() -> None:
    draws, plain = Chance("a"), random.Random("a")
    assert draws.random() == plain.random()
    copy = deepcopy(draws)
    ahead = [copy.randrange(100) for _ in range(700)]
    assert ahead == [plain.randrange(100) for _ in range(700)] == [draws.randrange(100) for _ in range(700)]


@pytest.mark.parametrize("name", NAMES)
@given(st.data())
@settings(max_examples=25)
def test_any_text_survives_and_an_invalid_move_changes_nothing(name: str, data: st.DataObject) -> None:
    difficulty = data.draw(st.sampled_from(DIFFICULTIES))
    game = game_class(name)(data.draw(st.integers(0, 5)), difficulty)
    rng = random.Random(data.draw(st.integers(0, 99)))
    pieces = st.sampled_from(
        ["?", "!", "? ", "! ", "0", "1 2", "-1", "999999999", "9" * 5000, "½", "²", "٣", "A", "|", "-", ","]
    )
    texts = st.one_of(st.text(max_size=30), st.lists(pieces, max_size=6).map("".join), st.just(""))
    for text in data.draw(st.lists(texts | st.none(), max_size=8)):
        before = state(game)
        reply = game.move(game.random_move(rng) if text is None else text)
        assert 0.0 <= reply.score <= 1.0 and reply.text and "\\boxed" not in reply.text
        if not reply.valid:
            assert state(game) == before
        if reply.done:
            break


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_game_stays_finished(name: str) -> None:
    kind = game_class(name)
    game = kind(0, "easy")
    player, said = kind.reference(), game.rules()
    moves = []
    while True:
        moves.append(player(said))
        reply = game.move(moves[-1])
        if reply.done:
            break
        said = reply.text
    for move in [*moves, "", "? 1"]:
        after = game.move(move)
        assert (after.done, after.valid, after.score) == (True, False, reply.score)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_game_says_is_short(name: str) -> None:
    for difficulty in DIFFICULTIES:
        for transcript, _ in reference_games(name, difficulty):
            assert all(len(said.splitlines()[0]) <= 200 for _, said in transcript)
        assert len(game_class(name)(0, difficulty).rules()) <= 1500
