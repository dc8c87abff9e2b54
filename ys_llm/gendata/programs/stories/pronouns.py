"""Replacing names by pronouns where it is clear who is meant."""

import random
import re
from collections.abc import Iterable

from ys_llm.gendata.programs.grammar import sentences
from ys_llm.gendata.programs.stories.stage import Character

PRONOUN_SHARE = 0.75  # of the places where a pronoun is clear; the rest keep the name, for variety
KIND_SHARE = 0.12  # of the names that stay at the head of a sentence become `the fox`
LEADS = "(?:^|named |called |^It was )"
SPEAKS = "(?:said|asked|cried|whispered|thought|sighed|answered|called|shouted|laughed)"
LONGEST_RUN = 2  # pronouns in a row before the name is repeated


def pronominalise(text: str, cast: Iterable[Character], rng: random.Random) -> str:
    """Replace a name that begins a sentence if the previous one was only about that character."""
    everybody = list(cast)
    return "\n\n".join(
        " ".join(_paragraph(sentences(paragraph), everybody, rng))
        for paragraph in text.split("\n\n")
    )


def _paragraph(parts: list[str], cast: list[Character], rng: random.Random) -> list[str]:
    result: list[str] = []
    topic: Character | None = None
    run = 0
    for sentence in parts:
        hero = next((person for person in cast if _heads(person, sentence)), None)
        clear = hero is not None and hero is topic and not _rivals(hero, sentence, cast)
        if hero and clear and run < LONGEST_RUN and rng.random() < PRONOUN_SHARE:
            sentence = _with_pronoun(sentence, hero)
            run += 1
        elif hero:
            run = 0
            topic = _topic(sentence, cast, topic)
            result.append(_with_kind(sentence, hero) if rng.random() < KIND_SHARE else sentence)
            continue
        topic = _topic(sentence, cast, topic)
        result.append(sentence)
    return result


def _topic(sentence: str, cast: list[Character], before: Character | None) -> Character | None:
    """The character that the sentence is about, if there is no doubt."""
    if sentence.count('"') % 2:
        return None
    named = [person for person in cast if person.name in sentence]
    if before and sentence.startswith(before.pronoun.capitalize() + " "):
        return None if any(person is not before for person in named) else before
    if len(named) != 1:
        return None
    name = named[0].name
    spoken = rf'{SPEAKS} {name}\b[^"]*\.$'
    return named[0] if re.search(rf"{LEADS}{name}\b(?!')|{spoken}", sentence) else None


def _heads(person: Character, sentence: str) -> bool:
    rest = sentence.removeprefix(person.name + " ")
    if rest == sentence or not rest[:1].islower() or rest.startswith(("the ", "and ")):
        return False
    return not re.match(SPEAKS, rest)  # it belongs to the quotation before it


def _rivals(hero: Character, sentence: str, cast: list[Character]) -> bool:
    return any(p is not hero and p.pronoun == hero.pronoun and p.name in sentence for p in cast)


def _with_pronoun(sentence: str, hero: Character) -> str:
    rest = sentence.removeprefix(hero.name + " ")
    if hero.pronoun == "they" and re.search(r"\b(?:and|but) was\b", rest):
        return sentence  # the second verb would not agree
    if hero.pronoun == "they" and rest.startswith("was "):
        rest = "were " + rest.removeprefix("was ")
    return f"{hero.pronoun.capitalize()} {rest}"


def _with_kind(sentence: str, hero: Character) -> str:
    """`The fox` in the place of an animal's name; children of one kind may be two."""
    if hero.is_child or hero.trait == "old" or hero.kind in sentence:
        return sentence
    return f"The {hero.kind} {sentence.removeprefix(hero.name + ' ')}"
