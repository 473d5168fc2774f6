"""Write claims in plain English, the inverse of `claims.parse_claims`, with a minimal set of words.

    a small dark blue striped round part at the top of the red object
    the small dark blue striped round part in the lower left, at the top of the red object, the second from
    the left of two alike

`parse_claims(describe_claims(claims)) == claims` for all valid claims (tests/attributes/test_wording.py).
"""

from collections.abc import Sequence

from ureca.attributes.claims import NUMBERS, RANKS, Claims, Order
from ureca.attributes.measure import MOST
from ureca.attributes.vocabulary import PLACES

_PREPOSITIONS = {name: "in" for row in PLACES for name in row}
_PREPOSITIONS |= {"top": "at", "bottom": "at", "left": "on", "right": "on"}


def describe_claims(claims: Claims, *, article: str = "a", of_the_picture: bool = False) -> str:
    """Return the claims as a noun phrase; `of_the_picture` adds "of the picture" to the place."""
    words = [claims.size, _colors(claims), claims.texture, claims.shape, claims.noun or "part"]
    text = with_article(" ".join(word for word in words if word), article)
    if claims.place:
        text += f" {at_place(claims.place)}" + (" of the picture" if of_the_picture else "")
    if claims.place_in_parent and claims.parent:
        comma = "," if claims.place else ""
        text += f"{comma} {at_place(claims.place_in_parent)} of {describe_claims(claims.parent, article='the')}"
    if claims.order:
        text += f", {_order(claims.order)} of {NUMBERS[claims.order.count - 1]} alike"
    if claims.cell:
        column, row = claims.cell
        text += f", in column {NUMBERS[column - 1]}, row {NUMBERS[row - 1]}"
    return text


def at_place(place: str, owner: str = "the") -> str:
    """Return "at the top", "in its upper left", "making up most"."""
    return "making up most" if place == MOST else f"{_PREPOSITIONS[place]} {owner} {place}"


def with_article(phrase: str, article: str) -> str:
    """Prefix the article; "a" becomes "an" before a vowel."""
    return f"an {phrase}" if article == "a" and phrase[0] in "aeiou" else f"{article} {phrase}"


def join_list(items: Sequence[str]) -> str:
    """Return "x", "x and y", "x, y and z"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _order(order: Order) -> str:
    if order.by == "size":
        return "the largest" if order.rank == 1 else f"the {RANKS[order.rank - 1]} largest"
    return f"the {RANKS[order.rank - 1]} from the {order.by}"


def _colors(claims: Claims) -> str | None:
    return f"{claims.color} and {claims.color2}" if claims.color and claims.color2 else claims.color
