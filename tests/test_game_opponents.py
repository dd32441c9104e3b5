"""Games against another player: laws of each, perfect play, and an opponent who keeps to the rules."""

from __future__ import annotations

import random
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.rl.environments.game import DIFFICULTIES, Difficulty, Reply
from posttrain.rl.environments.grids import beside, cells
from posttrain.rl.environments.strategic_gaming.assiut_chess import AssiutChess, king_moves, queen_moves
from posttrain.rl.environments.strategic_gaming.geo_game import GeoGame
from posttrain.rl.environments.strategic_gaming.grid_coloring import GridColoring, is_rainbow
from posttrain.rl.environments.strategic_gaming.grid_game import Board
from posttrain.rl.environments.strategic_gaming.knight_battle import KnightBattle
from posttrain.rl.environments.strategic_gaming.paper_number import PaperNumber, is_sorted
from posttrain.rl.environments.strategic_gaming.pizza_slice import Pizza, PizzaSlice
from posttrain.rl.environments.strategic_gaming.xor_breaking import XORBreaking, can_break
from posttrain.rl.environments.strategic_gaming.zigzag_graph import Graph, ZigzagGraph, stable_partners

seeds = st.integers(0, 10_000)
difficulties = st.sampled_from(DIFFICULTIES)
few = settings(max_examples=30)


@given(seeds)
@few
def test_the_grid_game_is_played_perfectly(seed: int) -> None:
    rng = random.Random(seed)
    values = rng.sample(range(1, 7), 6)
    grid = [values[:3], values[3:]]

    def lead(taken: tuple[int, ...]) -> int:
        free = [cell for cell in range(6) if cell not in taken]
        near = [cell for cell in free if not taken or any(beside_each_other(cell, other) for other in taken)]
        return max((-values[cell] - lead((*taken, cell)) for cell in near), default=0)

    def beside_each_other(one: int, other: int) -> bool:
        return (one // 3 + 1, one % 3 + 1) in beside((other // 3 + 1, other % 3 + 1), 3)

    assert Board(grid).lead(0) == lead(())


@given(seeds, difficulties)
@few
def test_slices_of_a_pizza_add_up_to_it(seed: int, difficulty: Difficulty) -> None:
    game, rng = PizzaSlice(seed, difficulty), random.Random(seed)
    twice = abs(
        sum(
            ax * by - bx * ay
            for (ax, ay), (bx, by) in zip(game.points, [*game.points[1:], game.points[0]], strict=True)
        )
    )
    before = sum(game.eaten)
    while not game.move(game.random_move(rng)).done:
        pass
    assert sum(game.eaten) - before == twice


def test_of_a_square_the_first_player_eats_half() -> None:
    assert Pizza([(0, 0), (2, 0), (2, 2), (0, 2)]).lead((1, 2, 3, 4)) == 0


@given(seeds, difficulties)
@few
def test_a_break_that_is_answered_obeys_the_rules(seed: int, difficulty: Difficulty) -> None:
    game, rng = XORBreaking(seed, difficulty), random.Random(seed)
    while True:
        a, b = map(int, (move := game.random_move(rng)).split())
        reply = game.move(move)
        if not game.offered or reply.text.startswith("I cannot"):
            assert not can_break(a) and not can_break(b)
            return
        c, d = map(int, reply.text.split())
        assert c ^ d in (a, b) and max(c, d) < c ^ d and min(c, d) > 0
        if reply.done:
            assert not can_break(c) and not can_break(d)
            return


@given(st.integers(1, 300))
def test_a_number_can_be_broken_if_some_pair_does_it(number: int) -> None:
    assert can_break(number) == any(0 < a < number and 0 < number ^ a < number for a in range(1, number))


@given(seeds, st.integers(2, 6))
@few
def test_partners_are_stable(seed: int, n: int) -> None:
    rng = random.Random(seed)
    values = rng.sample(range(1, n * n + 1), n * n)
    graph = Graph([values[row * n : (row + 1) * n] for row in range(n)])
    partners = stable_partners(graph, rng.randint(1, 2 * n))
    assert sorted([*partners, *partners.values()]) == list(range(1, 2 * n + 1))
    holders = {partner: node for node, partner in partners.items()}
    for node, partner in partners.items():
        for other in graph.across(node):
            node_likes = graph.weight(node, other) < graph.weight(node, partner)
            other_likes = graph.weight(node, other) > graph.weight(holders[other], other)
            assert not (node_likes and other_likes)


@given(seeds)
@few
def test_only_one_first_move_of_the_zigzag_wins_and_it_is_to_the_partner(seed: int) -> None:
    game = ZigzagGraph(seed, "easy")
    partner = stable_partners(game.graph, game.at)[game.at]
    winning = [
        node
        for node in game.graph.across(game.at)
        if game.graph.other_loses(node, game.graph.weight(game.at, node), game.visited | {node})
    ]
    assert winning == [partner]


@given(seeds, difficulties)
@few
def test_the_sum_is_even_if_the_last_point_is_like_the_start(seed: int, difficulty: Difficulty) -> None:
    game, rng = GeoGame(seed, difficulty), random.Random(seed)
    while not (reply := game.move(game.random_move(rng))).done:
        pass
    assert (reply.score == 1.0) == (sum(game.start) % 2 == sum(game.at) % 2) == (game.sum % 2 == 0)


@given(seeds, difficulties)
@few
def test_no_rectangle_is_there_at_first_and_its_corners_differ(seed: int, difficulty: Difficulty) -> None:
    game = GridColoring(seed, difficulty)
    assert not any(is_rainbow(game.colours, *pair) for pair in combinations(cells(game.size), 2))
    assert is_rainbow({(1, 1): 1, (1, 2): 2, (2, 1): 3, (2, 2): 4}, (1, 2), (2, 1))
    assert not is_rainbow({(1, 1): 1, (1, 2): 2, (2, 1): 2, (2, 2): 4}, (1, 2), (2, 1))


@given(seeds, difficulties)
@few
def test_the_king_obeys_and_what_he_tells_is_where_he_went(seed: int, difficulty: Difficulty) -> None:
    game, rng = AssiutChess(seed, difficulty), random.Random(seed)
    king = None
    while not (reply := game.move(game.random_move(rng))).done:
        assert game.queen is not None
        assert king is None or game.hidden == king_moves(king, game.queen, game.n)[reply.text]
        assert game.hidden not in (game.queen, *queen_moves(game.queen, game.n))
        king = game.hidden


@given(seeds, difficulties)
@few
def test_white_needs_as_many_moves_as_was_said(seed: int, difficulty: Difficulty) -> None:
    game = KnightBattle(seed, difficulty)
    player, said, moves = KnightBattle.reference(), game.rules(), 0
    reply = Reply("")
    while not reply.done:
        reply, moves = game.move(player(said)), moves + 1
        said = reply.text
    assert (reply.score, moves) == (1.0, game.size[1])


@given(seeds, difficulties)
@few
def test_papers_are_sorted_when_they_are_won(seed: int, difficulty: Difficulty) -> None:
    game, rng = PaperNumber(seed, difficulty), random.Random(seed)
    while not (reply := game.move(game.random_move(rng))).done:
        assert not is_sorted(game.papers) and 1 <= game.number <= game.greatest
    assert is_sorted(game.papers) == (reply.score == 1.0)
