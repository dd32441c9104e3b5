"""Which scripts and languages a text is written in, without a model.

Scripts come from the Unicode names of the letters. Languages that share the Latin script are told apart by their
function words, window by window; a window without clear evidence counts for none.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

WINDOW = 60  # words looked at together when languages of one script are told apart

# Letters that are notation rather than language: Greek in formulas, letterlike and mathematical signs.
_NOTATION = ("GREEK", "MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "MICRO", "OHM", "MODIFIER", "SUPERSCRIPT", "SUBSCRIPT")
_JAPANESE = ("HIRAGANA", "KATAKANA")

_CODE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[A-Za-z]+|https?://\S+", re.DOTALL
)

_FUNCTION_WORDS = {
    "English": "the of and to in is that for with was are this from which have then so we it be not",
    "German": "der die das und ist nicht ein eine den von zu mit auf für dass wir sind dann aus dem auch",
    "French": "le la les des est une dans que pour qui nous donc avec sur pas du ce au sont alors cette",
    "Spanish": "el los las una que de es por con para del se como más pero entonces son este lo y",
    "Italian": "il lo gli una che di è per con non del della sono quindi come più nel questo si e",
    "Portuguese": "o os as uma que de é por com para não do da em então são como mais este ou e",
    "Dutch": "de het een van en is dat niet op te zijn met voor dus wij ook aan wordt dan deze",
    "Polish": "jest nie to się na że w z do jak więc oraz dla są przez tego mamy czyli ale tak",
    "Turkish": "bir ve bu için ile de da olarak olan daha çok değil ise gibi sonra ancak yani ne o ki",
    "Vietnamese": "là và của có không được một cho trong các với này đó thì ta nên để như khi từ",
    "Indonesian": "yang dan di ini itu dengan untuk adalah dari pada tidak maka jadi akan kita atau juga dalam ke",
}
_LANGUAGES_OF = {
    word: tuple(lang for lang, words in _FUNCTION_WORDS.items() if word in words.split())
    for words in _FUNCTION_WORDS.values()
    for word in words.split()
}


@cache
def script_of(letter: str) -> str | None:
    """The script of a letter ("LATIN", "CJK", "CYRILLIC", ...); None for what is no letter, or notation."""
    if not letter.isalpha():
        return None
    name = unicodedata.name(letter, "")
    if not name or name.startswith(_NOTATION):
        return None
    return name.split(maxsplit=1)[0].split("-")[0]


def prose(text: str) -> str:
    """A text without code, formulas and addresses."""
    return _CODE.sub(" ", text)


def script_shares(text: str) -> dict[str, float]:
    """Share of each script among a text's letters (sums to 1; empty without letters). Japanese is one script here."""
    counts: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        script = script_of(letter)
        if script:
            counts["JAPANESE" if script in _JAPANESE else script] += count
    if counts["JAPANESE"]:
        counts["JAPANESE"] += counts.pop("CJK", 0)
    total = sum(counts.values())
    return {script: count / total for script, count in counts.most_common() if count}


def latin_language(words: list[str]) -> str | None:
    """The language of a window of words by its function words; None without clear evidence."""
    votes: Counter[str] = Counter()
    for word in words:
        for language in _LANGUAGES_OF.get(word, ()):
            votes[language] += 1 if len(_LANGUAGES_OF[word]) > 1 else 2
    ranked = votes.most_common(2)
    if not ranked or ranked[0][1] < 0.2 * len(words):
        return None
    return ranked[0][0] if len(ranked) == 1 or ranked[0][1] >= 1.5 * ranked[1][1] else None


def latin_languages(text: str) -> Counter[str]:
    """How many windows of a text are in each language written in Latin letters."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    windows = (words[i : i + WINDOW] for i in range(0, len(words), WINDOW))
    found = (latin_language(window) for window in windows if len(window) >= WINDOW // 2)
    return Counter(language for language in found if language)
