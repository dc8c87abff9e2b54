"""Whether a story keeps its characters apart: a name for each, and one pronoun for each name.

Only what is plain is judged: how the stories' program introduces somebody, and pronouns that can
mean nobody but the name before them. So a slip said in other words is missed, and none is made up.
"""

import re
from collections.abc import Iterator

from ys_llm.gendata.programs.grammar import sentences
from ys_llm.gendata.programs.words import ANIMALS

_KIND = "|".join([animal.kind for animal in ANIMALS] + ["boy", "girl", "child"])
_NAME = r"(?!(?:It|He|She|This|That|There)\b)[A-Z]\w+"
# How a character is introduced: with its kind, mostly with its trait; or as a neighbour or friend.
_DESCRIBED = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\ban? (?P<trait>\w+ )?(?P<kind>{_KIND}) (?:named|called) (?P<name>{_NAME})\b",
        rf"\b(?P<name>{_NAME})(?:,| was) an? (?P<trait>\w+ )(?P<kind>{_KIND})\b",
        rf"\b(?P<name>{_NAME}) the (?P<trait>)(?P<kind>{_KIND})\b",
    )
)
_AS_FRIEND = re.compile(
    rf"\b(?:[Hh]is|[Hh]er|[Tt]heir) friend ({_NAME})\b|\b({_NAME}) from next door\b"
)
_WITH_ITSELF = re.compile(rf"\b({_NAME}) (?:and|to|with) \1\b")
# What nobody touches but its owner; hands, paws and the like are also given to others.
_FACE = "chin|ears?|eyebrows|eyes|forehead|head|knee|mouth|neck|nose|shoulder"
_SPEAKS = "said|asked|cried|whispered|thought|sighed|answered|called|shouted|laughed"
_OWN = re.compile(
    rf"(?:\b(?:{_SPEAKS}) |^|[.!?\"\n] ?)({_NAME}) (?:(?!with |that )[a-z]+ ){{1,6}}"
    rf"(his|her|their) (?:left |right )?(?:{_FACE})\b"
)
_PRONOUN = {"his": "he", "her": "she", "their": "they"}
_GENDERED = re.compile(
    rf"\b(boy|girl) (?:named|called) ({_NAME})\b|\b({_NAME}), an? \w+ (boy|girl)\b"
)
_OF_GENDER = {"boy": "he", "girl": "she"}
_BEGINS = re.compile(r"(He|She) ")
_BEGINS_WITH_NAME = re.compile(rf"({_NAME}) [a-z]")
_CAPITALISED = re.compile(rf"\b{_NAME}")


def names_apart(text: str, *, hero: str) -> bool:
    """Whether no name is given to two characters, as far as introductions tell.

    Two are `a shy fox named Ada` and `Ada the duck`, or `a brave fox named Ada`; `Ada and Ada`; and
    a hero who is also `her friend Ada` or `Ada from next door`.
    """
    kinds, traits = dict[str, str](), dict[str, str]()
    for found in (one for pattern in _DESCRIBED for one in pattern.finditer(text)):
        name, trait = found["name"], found["trait"]
        if kinds.setdefault(name, found["kind"]) != found["kind"]:
            return False
        if trait and traits.setdefault(name, trait) != trait:
            return False
    friends = {name for found in _AS_FRIEND.findall(text) for name in found if name}
    return hero not in friends and not _WITH_ITSELF.search(text)


def pronouns_kept(text: str) -> bool:
    """Whether no name is followed by pronouns of two genders."""
    found: dict[str, str] = {}
    return all(found.setdefault(name, pronoun) == pronoun for name, pronoun in _pronouns(text))


def _pronouns(text: str) -> Iterator[tuple[str, str]]:
    """Names, each with a pronoun that can mean nobody else."""
    for found in _GENDERED.finditer(text):
        yield found[2] or found[3], _OF_GENDER[found[1] or found[4]]
    for found in _OWN.finditer(text):
        yield found[1], _PRONOUN[found[2]]
    for paragraph in text.split("\n\n"):
        subject = ""
        for sentence in sentences(paragraph):
            begins = _BEGINS.match(sentence)
            if subject and begins:
                yield subject, begins[1].lower()
            subject = _subject(sentence, subject if begins else "")


def _subject(sentence: str, before: str) -> str:
    """Whom alone a sentence is about: the name it begins with, or else `before`; "" in doubt."""
    names = set(_CAPITALISED.findall(sentence))
    if '"' in sentence or len(names) > 1:
        return ""
    begins = _BEGINS_WITH_NAME.match(sentence)
    if begins:
        return begins[1]
    return "" if names else before
