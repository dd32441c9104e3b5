"""The monitor between a game and a model: any text survives, turns and invalid moves are counted, games end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import PosttrainError
from posttrain.rl.environments import game_class
from posttrain.rl.environments.monitor import LONGEST_MOVE, NO_MOVE, Monitor, find_move
from tests.nearest import Nearest


def monitor() -> Monitor:
    return Monitor(Nearest(seed=3, difficulty="easy"))


@given(st.lists(st.text(max_size=200), max_size=8))
def test_any_text_survives_and_is_counted(texts: list[str]) -> None:
    played = monitor()
    for text in texts:
        played.step(text, text)
    assert played.outcome.turns == min(len(texts), Nearest.max_turns)
    assert played.done == (len(texts) >= Nearest.max_turns)
    assert played.outcome.score == 0.0


@given(st.text(alphabet="\\boxed{}$text 123crash\n", max_size=60))
def test_text_made_of_boxes_survives(text: str) -> None:
    played = monitor()
    reply = played.step(f"{text}\\boxed{{{text}}}")
    assert played.outcome.turns == 1
    assert isinstance(reply.text, str)


@pytest.mark.parametrize(
    ("content", "move"),
    [
        ("I say \\boxed{1}, no: \\boxed{2}", "2"),
        ("\\boxed{\\text{up}}", "up"),
        ("\\boxed{$3$}", "3"),
        ("\\boxed{ 1 2 }", "1 2"),
        ("\\boxed{}", ""),
        ("\\boxed{1", None),
        ("7", None),
        ("", None),
    ],
)
def test_the_last_box_is_the_move(content: str, move: str | None) -> None:
    assert find_move(content) == move


def test_a_move_in_the_thinking_moves_nothing() -> None:
    played = monitor()
    assert played.step("", "\\boxed{1}").text == NO_MOVE


def test_the_reference_player_wins_through_the_monitor() -> None:
    for seed in range(20):
        played = Monitor(Nearest(seed, "easy"))
        player, told = Nearest.reference(), played.opening()
        while not played.done:
            told = played.step(f"\\boxed{{{player(told)}}}").text
        assert played.outcome.won
        assert played.outcome.ended
        assert played.outcome.invalid == 0


def test_a_game_that_breaks_is_counted_and_goes_on() -> None:
    played = monitor()
    assert not played.step("\\boxed{crash}").valid
    assert not played.step("\\boxed{x}").valid
    assert (played.outcome.faults, played.outcome.invalid, played.done) == (2, 2, False)
    assert not played.step(f"\\boxed{{{'9' * (LONGEST_MOVE + 1)}}}").valid
    assert played.outcome.faults == 2


def test_out_of_turns_is_no_win_and_after_the_end_nothing_is_played() -> None:
    played = Monitor(Nearest(seed=3, difficulty="easy"), max_turns=2)
    played.step("no move")
    assert played.step("no move").done
    assert (played.outcome.ended, played.outcome.score, played.outcome.turns) == (False, 0.0, 2)
    again = played.step("\\boxed{3}")
    assert again.done
    assert played.outcome.turns == 2


def test_patterns_are_turns_in_which_their_words_stand() -> None:
    played = monitor()
    played.step("\\boxed{5}", "My plan is to halve. Let me check: let me check.")
    played.step("\\boxed{6}", "The reply was Higher, so far so good.")
    assert played.outcome.patterns == {"associate": 0, "verify": 1, "plan": 1, "feedback": 1}


def test_an_unknown_game_is_refused() -> None:
    with pytest.raises(PosttrainError, match="no game is called 'Chess'"):
        game_class("Chess")
