"""What games reply obeys their rules: laws of single games, over many instances."""

from __future__ import annotations

import random
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.rl.environments.contingent import Plan, Result
from posttrain.rl.environments.dynamic_adaptation.attendance_check import AttendanceCheck
from posttrain.rl.environments.dynamic_adaptation.find_hidden import FindHidden
from posttrain.rl.environments.dynamic_adaptation.mimic_hunt import MimicHunt
from posttrain.rl.environments.dynamic_adaptation.rpd import taken
from posttrain.rl.environments.dynamic_adaptation.train_pursuit import TrainPursuit
from posttrain.rl.environments.game import DIFFICULTIES, Difficulty
from posttrain.rl.environments.grids import Cell, around, beside, cells, shortest
from posttrain.rl.environments.information_probing.circle_finding import Circle
from posttrain.rl.environments.information_probing.legendary_tree import all_trees
from posttrain.rl.environments.information_probing.median_query import MedianQuery
from posttrain.rl.environments.information_probing.wordle import marks
from posttrain.rl.environments.rounds import Forbidden, numbers, setting
from posttrain.rl.environments.state_operation.cactus_search import CactusSearch
from posttrain.rl.environments.state_operation.chemical_synthesis import ChemicalSynthesis, applied, plan
from posttrain.rl.environments.state_operation.color_magic import SPELLS, Colours, added, changes, solution
from posttrain.rl.environments.state_operation.find_biggest import FindBiggest, direction
from posttrain.rl.environments.state_operation.rainbow_candy import dyed
from posttrain.rl.environments.state_operation.safepath_finder import safe_cells

seeds = st.integers(0, 10_000)
difficulties = st.sampled_from(DIFFICULTIES)
few = settings(max_examples=30)


# --- reading moves


@given(st.lists(st.integers(-99, 99), min_size=1, max_size=6), st.sampled_from([" ", ", ", ","]))
def test_numbers_that_were_written_are_read(written: list[int], between: str) -> None:
    assert numbers(between.join(map(str, written)), len(written), low=-99, high=99) == written


@pytest.mark.parametrize("text", ["", "1 2 x", "1.5", "1 2 3", "0 5", "²", "٣ ٤", "1\x00 2", "9" * 4400])
def test_what_is_not_two_numbers_from_1_to_9_is_forbidden(text: str) -> None:
    with pytest.raises(Forbidden):
        numbers(text, 2, low=1, high=9)


def test_a_setting_is_read_from_rules() -> None:
    assert setting("Find it.\nn = 5; k = 1 2\nmoves = 3, x") == {"n": "5", "k": "1 2", "moves": "3"}


# --- liars


@given(seeds, difficulties)
@few
def test_of_two_answers_in_a_row_one_is_true(seed: int, difficulty: Difficulty) -> None:
    game, rng = FindHidden(seed, difficulty), random.Random(seed)
    lies = []
    for _ in range(30):
        asked = rng.sample(range(1, game.size + 1), rng.randint(1, game.size))
        said = game.move("? " + " ".join(map(str, asked))).text
        lies.append((said == "yes") != (game.hidden in asked))
    assert not any(one and other for one, other in pairwise(lies))
    assert any(lies)


@given(seeds, difficulties)
@few
def test_students_are_never_alike_three_times(seed: int, difficulty: Difficulty) -> None:
    game, rng = AttendanceCheck(seed, difficulty), random.Random(seed)
    honest = []
    for _ in range(30):
        left, right = sorted(rng.choices(range(1, game.size + 1), k=2))
        present = right - left + 1 - (left <= game.hidden <= right)
        said = int(game.move(f"? {left} {right}").text)
        assert said in (right - left, right - left + 1)
        honest.append(said == present)
    assert all(len(set(honest[k : k + 3])) == 2 for k in range(28))


@given(seeds, difficulties)
@few
def test_a_direction_is_wrong_never_twice_in_a_row(seed: int, difficulty: Difficulty) -> None:
    game, rng = FindBiggest(seed, difficulty), random.Random(seed)
    wrong = [False]
    for _ in range(20):
        here = rng.choice(around(game.here, game.size[0]))
        said = game.move("{} {}".format(*here)).text.split()
        if said[0] == "empty" and len(said) == 2:
            wrong.append(said[1] != direction(here, set(game.hidden) - game.found))
            assert not (wrong[-1] and wrong[-2])


@given(seeds, difficulties)
@few
def test_a_mimic_changes_in_time_and_the_others_never(seed: int, difficulty: Difficulty) -> None:
    game = MimicHunt(seed, difficulty)
    others, seen = game.objects[:-1], [game.objects[-1]]
    for _ in range(20):
        shown = game.move("? 0").text.split()
        assert sorted(shown) == sorted(map(str, game.objects)) and game.objects[:-1] == others
        seen.append(game.objects[-1])
    longest = game.size[2]
    assert all(len(set(seen[k : k + longest + 1])) > 1 for k in range(len(seen) - longest))


@given(seeds)
@few
def test_a_train_moves_no_farther_than_it_may(seed: int) -> None:
    game = TrainPursuit(seed, "hard")
    for _ in range(20):
        before = game.hidden
        game.move("1 30")
        assert (game.hidden - before) % game.stations <= game.reach


# --- laws of single games


@given(st.integers(0, 3000), st.integers(0, 3000), st.sampled_from([2, 3, 5]))
def test_a_password_and_the_next_one_add_up_to_the_guess_digit_by_digit(guess: int, password: int, base: int) -> None:
    following = taken(guess, password, base)
    while guess or password or following:
        assert (password + following - guess) % base == 0
        guess, password, following = guess // base, password // base, following // base
    assert base != 2 or taken(5, 3, 2) == 5 ^ 3


@given(st.text("abc", min_size=4, max_size=4), st.text("abc", min_size=4, max_size=4))
def test_marks_of_a_guess(word: str, guess: str) -> None:
    found = marks(word, guess)
    assert [mark == "G" for mark in found] == [a == b for a, b in zip(word, guess, strict=True)]
    for letter in "abc":
        marked = sum(mark != "-" for mark, guessed in zip(found, guess, strict=True) if guessed == letter)
        assert marked == min(word.count(letter), guess.count(letter))


def test_marks_of_a_letter_that_is_guessed_too_often() -> None:
    assert marks("apple", "paper") == "YYGY-"
    assert marks("steel", "geese") == "-YGY-"


@given(st.integers(-40, 40), st.integers(-40, 40), st.integers(1, 30), st.integers(1, 10))
def test_a_ray_at_a_circle_meets_it_and_one_away_keeps_off(x: int, y: int, radius: int, scale: int) -> None:
    circle = Circle(x, y, radius)
    if x * x + y * y > radius * radius:
        assert circle.distance((x * scale, y * scale)) == 0.0
        away = circle.distance((-x, -y))
        assert away == pytest.approx((x * x + y * y) ** 0.5 - radius)
        assert all(circle.distance(ray) <= away + 1e-9 for ray in ((1, 0), (0, 1), (3, -2), (-5, 4)))


@pytest.mark.parametrize(("n", "trees"), [(4, 16), (5, 125), (6, 1296)])
def test_there_are_as_many_trees_as_cayley_says(n: int, trees: int) -> None:
    found = all_trees(n)
    assert len({tree.edges for tree in found}) == len(found) == trees
    for tree in found[:50]:
        paths = [tree.on_path[a][b] for a, b in combinations(range(1, n + 1), 2)]
        assert sum(path.bit_count() == 2 for path in paths) == n - 1  # only edges have no vertex between


@given(seeds, difficulties)
@few
def test_medians_are_those_of_the_places(seed: int, difficulty: Difficulty) -> None:
    game, rng = MedianQuery(seed, difficulty), random.Random(seed)
    places = rng.sample(range(1, game.size + 1), 2 * rng.randint(2, game.size // 2))
    low, high = map(int, game.move("? " + " ".join(map(str, places))).text.split())
    values = [game.hidden[place - 1] for place in places]
    assert sum(value < low for value in values) == sum(value > high for value in values) == len(values) // 2 - 1


@given(seeds, difficulties)
@few
def test_a_told_neighbour_is_nearer(seed: int, difficulty: Difficulty) -> None:
    game = CactusSearch(seed, difficulty)
    for guess in range(1, 4):
        said = game.move(str(guess))
        if said.done:
            break
        nearer = int(said.text.split()[1])
        assert nearer in game.near[guess] and game.away[nearer] == game.away[guess] - 1


def test_operations_of_a_synthesis() -> None:
    assert applied("split", ["ABC"]) == ["A", "BC"] and applied("split", ["A"]) == ["A"]
    assert applied("merge", ["AB", "CD"]) == ["ABCD"] and applied("merge", ["AB"]) == ["ABAB"]
    assert applied("reverse", ["AB", "CD"]) == ["BA", "DC"] and applied("extract", ["ABC"]) == ["C"]
    assert applied("merge", ["ABCDE", "FGHI"]) == []


@given(seeds, difficulties)
@few
def test_a_plan_of_a_synthesis_makes_its_target(seed: int, difficulty: Difficulty) -> None:
    game = ChemicalSynthesis(seed, difficulty)
    made = list(game.made)
    for operation, given_to in plan(game.made, game.target):
        assert set(given_to) <= set(made)
        made += applied(operation, given_to)
    assert game.target in made


@given(st.lists(st.tuples(st.sampled_from(SPELLS), st.integers(0, 8)), max_size=3), st.integers(0, 2))
@few
def test_a_solution_of_spells_makes_one_colour(cast: list[tuple[tuple[int, int], int]], colour: int) -> None:
    colours: Colours = (colour,) * 9
    for spell in cast * 2:  # three times is none at all
        colours = added(colours, changes(3, 3)[spell])
    found = solution(3, 3, colours)
    for spell in found:
        colours = added(colours, changes(3, 3)[spell])
    assert len(set(colours)) == 1 and len(found) <= len(cast)


def test_dyes_mix_as_light_does_and_a_mixed_colour_takes_none() -> None:
    assert [dyed("W", dye) for dye in "RGB"] == ["R", "G", "B"]
    assert dyed("R", "G") == dyed("G", "R") == "Y" and dyed("G", "B") == "C" and dyed("B", "R") == "P"
    assert dyed("Y", "B") == "Y" and dyed("Y", "W") == "W" and dyed("R", "R") == "R" and dyed("P", ".") == "P"


@given(seeds)
@few
def test_a_cell_called_safe_is_no_trap(seed: int) -> None:
    rng, n = random.Random(seed), 5
    traps = set(rng.sample([cell for cell in cells(n) if cell not in ((1, 1), (n, n))], 5))
    entered = [cell for cell in rng.sample(list(cells(n)), 8) if cell not in traps]
    dangers = {cell: len(traps.intersection(around(cell, n))) for cell in entered}
    assert not safe_cells(n, dangers) & traps


# --- what players plan with


def test_a_plan_wins_whichever_hypothesis_holds() -> None:
    def step(hypothesis: str, state: int, move: str) -> Result[int]:
        state += 1 if move == hypothesis else -1
        return state, "won" if state == 2 else "lost" if state == -2 else "goes on"

    plan = Plan(0, ["left", "right"], ["left", "right"], step)
    assert plan.turns[0, frozenset({"left"})] == 2
    assert plan.turns[0, frozenset({"left", "right"})] == 4  # one step to learn it, back, and two on
    assert (-2, frozenset({"left"})) not in plan.turns


def test_a_plan_is_missing_where_a_hypothesis_is_deadly() -> None:
    def step(hypothesis: str, state: int, move: str) -> Result[int]:
        return state, "won" if move == hypothesis else "lost"

    assert Plan(0, ["left", "right"], ["left", "right"], step).turns == {}


@given(st.sets(st.sampled_from([(r, c) for r, c in permutations(range(1, 5), 2)]), max_size=8))
def test_a_shortest_way_is_one(walls: set[Cell]) -> None:
    free = [cell for cell in cells(4) if cell not in walls]
    way = shortest(
        (1, 1), lambda cell: cell == (4, 4), lambda cell: ((near, near) for near in beside(cell, 4) if near in free)
    )
    if way is not None:
        assert len(way) >= 6 and all(cell in free for cell in way) and way[-1] == (4, 4)
        assert all(one in beside(other, 4) for one, other in zip([(1, 1), *way], way, strict=False))
