"""Is a caption English? Told by its script and by the small words that every language has.

Captions are a dozen words of plain prose, for which this is enough; a library that knows a hundred languages would
bring a model of its own. Source of the idea: stop-word ratios (Cavnar and Trenkle 1994 compare it with n-grams).
"""

import re
import unicodedata

__all__ = ["is_english"]

_ENGLISH = """
    a an the of with on in at to and or is are it its by for from that this as has have near under over behind
    between against into onto above below beside while there two three one both whose which who his her their
    around across along inside outside top bottom left right front side upper lower small large
"""
_OTHERS = """
    der die das dem den des ein eine einem einen einer eines und mit auf ist sind im vom zum zur unter links rechts
    neben vor hinter oben unten aus steht liegt wird nicht sich von bei
    le la les des du une avec sur dans est sont et au aux qui que deux sous devant derrière gauche droite côté ses
    el los las una unos unas con del en es son y sobre que dos junto lado izquierda derecha arriba abajo por su
    um uma com no na nos nas da dos das ao do e esquerda direita fundo sobre
    il lo gli uno della dello delle degli nella nel sul sulla con di è sono due accanto sinistra destra
    het een van met op aan bij naast voor achter links rechts wordt zijn twee
    en ett och med på är som av till från vid den det två bredvid og er til fra
    na w z ze pod obok jest są przed dwa oraz
    ve bir ile üzerinde bu iki yanında altında
    yang di dan dengan sebuah dari pada adalah kiri kanan
"""
"""German, French, Spanish, Portuguese, Italian, Dutch, Swedish and Danish, Polish, Turkish, Indonesian."""

_BOTH = {"die", "on", "no", "do", "in", "an", "a", "and", "son", "des", "pod", "met", "den", "van", "dan"}
_ENGLISH_WORDS = frozenset(_ENGLISH.split())
_OTHER_WORDS = frozenset(_OTHERS.split()) - _BOTH
"""Less those that are English words too."""

_MOST_FOREIGN_LETTERS = 0.3
"""Share of letters of other scripts: a caption may quote what a sign says."""


def is_english(text: str) -> bool:
    """False where the text is surely in another language; a few bare words pass."""
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return True
    latin = sum(unicodedata.name(character, "").startswith("LATIN") for character in letters)
    if latin < (1 - _MOST_FOREIGN_LETTERS) * len(letters):
        return False
    unquoted = re.sub(r"\"[^\"]*\"|“[^”]*”|'[^']+'(?!\w)", " ", text)
    words = re.findall(r"[^\W\d_]+", unquoted.lower())
    english = sum(word in _ENGLISH_WORDS for word in words)
    foreign = sum(word in _OTHER_WORDS for word in words)
    return foreign <= english or foreign < 2
