"""Parse a model's answers and reject unusable ones.

Answers are requested as JSON with a schema that endpoints and engines can enforce. Where an endpoint refuses a schema,
the same answers are read from plain text. Kinds of unusable answers:

    refusal      the model declined                 language   not English
    empty        no words                           copied     repeats the instructions
    malformed    not in the requested form          equal      equals another region's caption
    cut          truncated by the token limit       marks      mentions outlines or numbers of the views

Source: the authors' pipeline keeps every answer (URECA, arXiv 2504.05305, and its code).
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ureca.labeling.describers.base import AnswerProblem, DescribeRequest, Description, Pass

_PHRASE_WORDS = 8
"""Length of a word sequence that, if shared by instructions and answer, proves copying."""


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CaptionAnswer(_Answer):
    caption: str


class DistractorDifference(_Answer):
    number: int
    difference: str


class UniqueAnswer(_Answer):
    """The answer of pass unique; differences come first, so that the model writes them before the caption."""

    differences: list[DistractorDifference] = Field(default_factory=list)
    caption: str


class ChoiceAnswer(_Answer):
    number: int


class VerdictAnswer(_Answer):
    correct: bool


ANSWERS: dict[Pass, type[_Answer]] = {
    "short": CaptionAnswer,
    "long": CaptionAnswer,
    "unique": UniqueAnswer,
    "choose": ChoiceAnswer,
    "judge": VerdictAnswer,
}
_JSON_FORMS: dict[Pass, str] = {  # no number or verdict that a model could take for a hint
    "short": '{"caption": "..."}',
    "long": '{"caption": "..."}',
    "unique": '{"differences": [{"number": N, "difference": "..."}, ...], "caption": "..."}',
    "choose": '{"number": N}',
    "judge": '{"correct": true or false}',
}
_PLAIN_FORMS: dict[Pass, str] = {
    "short": "Answer with the caption alone, in English.",
    "long": "Answer with the caption alone, in English.",
    "unique": "Answer with the caption alone, in English.",
    "choose": "Answer with the number alone.",
    "judge": "Answer with one word: true or false.",
}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The raw answer of an endpoint or an engine."""

    text: str
    finish_reason: str = "stop"
    """Finish reason as in the OpenAI API: stop, length, content_filter."""
    structured: bool = True
    """True if the schema was enforced."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


def json_schema(pass_name: Pass) -> dict[str, object]:
    """Return the JSON schema of a pass's answer: all fields required, no others allowed (OpenAI's strict mode)."""
    schema = ANSWERS[pass_name].model_json_schema()
    schema["required"] = list(schema["properties"])
    return schema


def answer_form(pass_name: Pass, *, structured: bool) -> str:
    """Return the sentence that ends a prompt and states the answer's form."""
    if structured:
        return f"Answer in English, with JSON of this form and nothing else: {_JSON_FORMS[pass_name]}"
    return _PLAIN_FORMS[pass_name]


def read_answer(
    reply: Reply, request: DescribeRequest, *, marked: tuple[int, ...], phrases: frozenset[str]
) -> Description:
    """Parse the answer to a request; its `problem` is set if it is unusable.

    Args:
        reply: the raw answer.
        request: the request.
        marked: regions numbered in the view: from 0 if the first is the target (pass unique), from 1 in pass choose;
            empty without numbers.
        phrases: word sequences of the instructions (`phrases_of`), which an answer must not repeat.
    """
    reply = replace(reply, text=_THOUGHTS.sub("", reply.text))
    description = Description(reply.text.strip(), reply.prompt_tokens, reply.completion_tokens, seconds=reply.seconds)
    if reply.finish_reason == "content_filter" or _is_refusal(reply.text):
        return replace(description, problem=_problem("refusal"))
    if not reply.text.strip():
        return replace(description, problem=_problem("empty"))
    answer = _parsed(reply, request.pass_name)
    if answer is None:
        kind = "cut" if reply.finish_reason == "length" else "malformed"
        return replace(description, problem=_problem(kind))
    if isinstance(answer, VerdictAnswer):
        return replace(description, verdict=answer.correct)
    if isinstance(answer, ChoiceAnswer):
        if not 0 <= answer.number <= len(marked):
            return replace(description, problem=_problem("malformed"))
        return replace(description, choice=marked[answer.number - 1] if answer.number else None)
    assert isinstance(answer, CaptionAnswer | UniqueAnswer)
    caption = " ".join(answer.caption.split())
    problem = answer_problem(caption, request, phrases)
    if problem is None and reply.finish_reason == "length" and not reply.structured:
        problem = _problem("cut")
    told_apart = {}
    if isinstance(answer, UniqueAnswer):
        told_apart = {
            marked[each.number]: " ".join(each.difference.split())
            for each in answer.differences
            if 0 < each.number < len(marked)
        }
    return replace(description, text=caption, told_apart=told_apart, problem=problem)


def answer_problem(
    caption: str, request: DescribeRequest, phrases: frozenset[str] = frozenset()
) -> AnswerProblem | None:
    """Return what makes a caption unusable as the answer to a request, or None. `phrases` as in `read_answer`."""
    words = _words(caption)
    if not words:
        return _problem("empty")
    if _is_refusal(caption):
        return _problem("refusal")
    if not is_english(caption):
        return _problem("language")
    if phrases & phrases_of([caption]):
        return _problem("copied")
    if _MARKS.search(caption):
        return _problem("marks")
    others = (
        *request.sibling_captions,
        *request.child_captions,
        *request.distractor_captions,
        *([request.parent_caption] if request.parent_caption else []),
    )
    if _bare(words) in {_bare(_words(other)) for other in others}:
        return _problem("equal")
    return None


def phrases_of(texts: Iterable[str]) -> frozenset[str]:
    """Return all sequences of eight words in the texts."""
    phrases = set()
    for text in texts:
        words = _words(text)
        phrases |= {" ".join(words[at : at + _PHRASE_WORDS]) for at in range(len(words) - _PHRASE_WORDS + 1)}
    return frozenset(phrases)


_THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
"""Reasoning that some models emit before their answer."""

_MESSAGES = {
    "refusal": "it declined to answer. The task is only to describe what is visible, which is always possible",
    "empty": "it was empty",
    "malformed": "it did not have the form that was asked for",
    "cut": "it was too long and was cut off. Be brief",
    "language": "it was not in English",
    "copied": "it repeated the instructions instead of describing the region",
    "equal": "it was the very caption of another region. Say what is different here",
    "marks": "it spoke of outlines, numbers or pictures, which are only there to show which region is meant",
}

_MARKS = re.compile(
    r"\bimage[- ]?\d\b|\b(?:outlined|highlighted|circled) (?:in|with|by) (?:a )?(?:bright )?(?:yellow|blue|contour)"
    r"|\b(?:yellow|blue) (?:outline|contour)|\b(?:index|region) (?:number )?\d+\b"
    r"|\bthe (?:outlined|highlighted) (?:region|area|object)\b",
    re.IGNORECASE,
)

_REFUSAL = re.compile(
    r"^\W*(?:(?:i['’]?m|i am|we are|we['’]re)? ?(?:very |so |really )?sorry\b|i apologi[sz]e\b|unfortunately,? i\b"
    r"|as an? (?:ai|artificial|language model|large language)|i(?:['’]m| am) (?:not able|unable|just an? ai)"
    r"|i (?:can ?not|can['’]t|could not|couldn['’]t|do not|don['’]t|won['’]t|will not)"
    r" (?:see|assist|help|describe|provide|identify|view|comply|fulfill|have|generate|do)\b"
    r"|(?:no|there is no) (?:image|picture)s? (?:was|were|is|are|has|have|provided|attached)"
    r"|(?:it is|it['’]s) not possible to (?:see|describe|identify|tell)"
    r"|(?:the )?(?:image|picture|region)s? (?:can ?not|can['’]t|could not) be)",
    re.IGNORECASE,
)


def _problem(kind: str) -> AnswerProblem:
    return AnswerProblem(kind, _MESSAGES[kind])


def _is_refusal(text: str) -> bool:
    """Detect a refusal, at the start only: a caption may quote "sorry" from a sign."""
    start = re.sub(r'^[\s{}"]*(?:"?caption"?\s*:\s*"?)?', "", text[:200], flags=re.IGNORECASE)
    return bool(_REFUSAL.match(start))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)?", text.lower())


def _bare(words: list[str]) -> str:
    """Drop articles: "A red mug." and "the red mug" are the same caption."""
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _parsed(reply: Reply, pass_name: Pass) -> _Answer | None:
    """Parse the answer as JSON, or as plain text if the schema was not enforced."""
    text = reply.text.strip()
    start, end = text.find("{"), text.rfind("}")
    if start >= 0 and end > start:
        try:
            return ANSWERS[pass_name].model_validate(json.loads(text[start : end + 1]))
        except (json.JSONDecodeError, ValidationError):
            return None
    if reply.structured or start >= 0:
        return None
    if pass_name == "judge":
        word = re.fullmatch(r"\W*(true|false|yes|no)\W*", text, re.IGNORECASE)
        return VerdictAnswer(correct=word[1].lower() in ("true", "yes")) if word else None
    if pass_name == "choose":
        numbers = re.findall(r"\d+", text)
        return ChoiceAnswer(number=int(numbers[0])) if len(numbers) == 1 else None
    caption = re.sub(r"^\W*caption\W+", "", text, flags=re.IGNORECASE).strip("\"'“”` \n")
    return UniqueAnswer(caption=caption) if pass_name == "unique" else CaptionAnswer(caption=caption)


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
"""Without those that are English words too."""

_MOST_FOREIGN_LETTERS = 0.3
"""Maximum share of letters from other scripts: a caption may quote a sign."""


def is_english(text: str) -> bool:
    """Return False if the text is certainly in another language; a few bare words pass."""
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
