"""Wordle: a hidden English word, guessed letter by letter in six guesses (the New York Times' game)."""

from __future__ import annotations

import random
import string
from collections import Counter
from typing import ClassVar

from posttrain.rl.environments.candidates import most_telling
from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, lost, setting, won

GUESSES = 6
WORDS = {
    4: """ball bird blue boat book cake cold door farm fire fish game gold hand home king lake moon nose rain ship snow
    tree wind word year""",
    5: """apple bacon beach bench berry birth blade blood board brain brand bread brick bride brush cabin cable candy
    chain chair chalk chest child clock cloth cloud coach coast coral cover crane crowd crown dance drama dream dress
    drink earth field flame flesh floor flour fruit ghost giant glass globe grain grape grass green guard heart honey
    horse hotel house judge juice knife knock label laugh lemon light lunch magic maple march metal model money mouse
    mouth music night north nurse ocean onion opera paint panel paper party peace peach pearl phone photo piano pilot
    pizza place plane plant plate point pound power press price pride prize queen quilt radio ranch rifle river robot
    salad scale scarf scene score shape sheep shelf shell shirt shore skirt smile smoke snake solar sound south space
    spice spoon sport stair steam steel stone storm story sugar table teeth thief tiger toast tooth tower track trade
    train treat truck uncle voice wagon watch water whale wheat wheel woman world wrist youth zebra""",
    6: """anchor animal answer artist autumn badger bakery banana barrel basket battle beauty belief border bottle
    branch bridge bronze brother bucket budget butter button camera canyon carbon carpet castle cattle cellar center
    cherry church circle clever cloudy coffee colony copper corner cotton county couple cousin cradle credit cruise
    damage danger desert design dinner doctor dollar donkey dragon drawer driver effort engine escape estate fabric
    family farmer father feather fiddle figure finger flavor flight flower forest fridge friend frozen future galaxy
    garage garden garlic ginger goblet gossip ground guitar hammer handle harbor hazard health helmet hockey honest
    hunger hunter insect island jacket jungle kettle kitten ladder lawyer leader legend lesson letter liquid lizard
    locket marble margin market master meadow melody member middle mirror moment monkey mother motion muscle museum
    napkin nation nature needle notice number object office orange orchid oyster palace parade parent pastry pepper
    person pillow pirate planet pocket poetry police potato powder prince prison profit puzzle rabbit record remedy
    rescue ribbon rocket saddle salmon school season secret shadow shield silver singer sister spider spirit spring
    square statue stream street string studio summer sunset switch symbol system tailor talent target temple tennis
    theory throat ticket timber tomato tongue travel tunnel turkey turtle valley velvet vessel violin vision volume
    walnut weapon weight window winner winter wonder yellow""",
}


class Wordle(Rounds[int]):
    """`sizes`: letters of the word; longer ones come from a longer list."""

    name = "Wordle"
    category: ClassVar[Category] = "information_probing"
    max_turns = GUESSES
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 26}
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 4, "medium": 5, "hard": 6}

    def set_up(self) -> None:
        self.hidden = self.chance.choice(words(self.size))
        self.guesses_left = GUESSES

    def rules(self) -> str:
        return (
            "Wordle. Guess a hidden word, common in English. A guess is any row of as many letters.\n"
            "Each letter of your guess is marked: G is right, Y is in the word elsewhere, - is not in it. A letter is"
            " marked at most as often as the word has it.\n"
            f"letters = {self.size}; guesses = {GUESSES}"
        )

    def play(self, text: str) -> Reply:
        guess = text.strip().lower()
        if len(guess) != self.size or not set(guess) <= set(string.ascii_lowercase):
            raise Forbidden(f"{self.size} letters are expected")
        self.guesses_left -= 1
        if guess == self.hidden:
            return won(marks(self.hidden, guess))
        return Reply(marks(self.hidden, guess)) if self.guesses_left else lost(f"It was {self.hidden}.")

    def random_move(self, rng: random.Random) -> str:
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(self.size))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def words(letters: int) -> list[str]:
    return sorted({word for word in WORDS[letters].split() if len(word) == letters})


def marks(word: str, guess: str) -> str:
    """A guess marked. Letters in their place first: what they use up of the word marks no other."""
    left = Counter(letter for letter, guessed in zip(word, guess, strict=True) if letter != guessed)
    found = ""
    for letter, guessed in zip(word, guess, strict=True):
        elsewhere = letter != guessed and left[guessed] > 0
        left[guessed] -= elsewhere
        found += "G" if letter == guessed else "Y" if elsewhere else "-"
    return found


def _play(rules: str) -> Play:
    """The words that the marks still allow; of these the one whose marks would split them best."""
    left = words(int(setting(rules)["letters"]))
    while True:
        guess = most_telling(left, left[:40], marks)
        said = yield guess
        left = [word for word in left if marks(word, guess) == said and word != guess]
