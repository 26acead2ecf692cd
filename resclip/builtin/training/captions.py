"""Captions of scenes: what a person would write who sees an image, or a part of one, for a moment.

A caption names what is visible ("a photo of a red car and a tree on the sand under the night sky"), which is read from
the mask; it says nothing about where a thing is, and the mask goes no further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from resclip.builtin.things import CLASS_NAMES, COLOURS, GROUNDS, SKIES, THINGS

SYNONYMS: dict[str, tuple[str, ...]] = {
    "sky": ("sky", "blue sky", "day sky"),
    "night sky": ("night sky", "starry sky", "night"),
    "grass": ("grass", "meadow", "lawn"),
    "sand": ("sand", "beach", "desert"),
    "water": ("water", "sea", "ocean"),
    "snow": ("snow",),
    "road": ("road", "street", "asphalt"),
    "house": ("house", "cottage", "building"),
    "tree": ("tree",),
    "sun": ("sun",),
    "car": ("car", "automobile", "vehicle"),
    "boat": ("boat", "ship", "sailboat"),
    "fish": ("fish",),
    "flower": ("flower", "blossom"),
    "mushroom": ("mushroom", "toadstool"),
    "balloon": ("balloon", "hot air balloon"),
    "cloud": ("cloud",),
}
TEMPLATES = (  # For captions and class names.
    "a picture of {}.", "a photo of {}.", "a drawing of {}.", "a painting of {}.", "a picture book page with {}.",
    "{}.", "this is {}.", "a small picture of {}.", "part of a picture of {}.", "a close-up of {}.",
)  # fmt: skip
PLAIN_TEMPLATES = TEMPLATES[:6]
PLAIN_NAME_SHARE = 0.6
"""Share of the phrases that use the class's own name; the others use one of its synonyms."""

Phrase = tuple[str, str]
"""A class name and a colour word, "" if no colour is said."""


def visible_names(labels: NDArray[np.uint8], share: float = 0.03) -> tuple[str, ...]:
    """The classes that cover at least `share` of `labels` (any shape), in class order."""
    counts = np.bincount(labels.ravel(), minlength=len(CLASS_NAMES))
    return tuple(
        name
        for name, count in zip(CLASS_NAMES, counts, strict=True)
        if count >= share * labels.size
    )


def phrases_of(
    names: Sequence[str], colours: Mapping[str, str], generator: np.random.Generator
) -> tuple[Phrase, ...]:
    """Name each visible thing, with its colour two times out of three, things in any order."""
    said = []
    for index in generator.permutation(len(names)):
        name = names[int(index)]
        colour = colours.get(name, "") if generator.random() < 2 / 3 else ""
        said.append((name, colour))
    return tuple(said)


def say(phrase: Phrase, generator: np.random.Generator) -> str:
    """A noun phrase: "a red car", "the sea", "trees"; articles and synonyms at random."""
    name, colour = phrase
    synonyms = SYNONYMS[name]
    plain = len(synonyms) == 1 or generator.random() < PLAIN_NAME_SHARE
    word = name if plain else synonyms[1 + int(generator.integers(len(synonyms) - 1))]
    words = f"{colour} {word}" if colour else word
    draw = generator.random()
    if draw < 0.25:
        return words
    if name not in THINGS:
        return f"the {words}"
    return f"the {words}" if draw < 0.4 else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def sentence(phrases: Sequence[Phrase], generator: np.random.Generator) -> str:
    """All phrases as one caption. Half the time as a scene ("X and Y on Z under W"), else as a plain list."""
    if not phrases:
        raise ValueError("a caption needs at least one phrase, got none")
    things = [phrase for phrase in phrases if phrase[0] in THINGS]
    grounds = [phrase for phrase in phrases if phrase[0] in GROUNDS]
    skies = [phrase for phrase in phrases if phrase[0] in SKIES]
    if things and generator.random() < 0.5:
        said = " and ".join(say(phrase, generator) for phrase in things)
        said += "".join(f" on {say(phrase, generator)}" for phrase in grounds)
        said += "".join(f" under {say(phrase, generator)}" for phrase in skies)
    else:
        said = " and ".join(say(phrase, generator) for phrase in phrases)
    return TEMPLATES[int(generator.integers(len(TEMPLATES)))].format(said)


def caption(
    labels: NDArray[np.uint8], colours: Mapping[str, str], generator: np.random.Generator
) -> tuple[str, tuple[Phrase, ...]]:
    """A caption that names everything visible in `labels`, and the phrases it is made of."""
    phrases = phrases_of(visible_names(labels), colours, generator)
    return sentence(phrases, generator), phrases


def describes(said: Phrase, seen: Sequence[Phrase]) -> bool:
    """Whether `said` is true by a caption made of `seen`: "a car" is, where "a red car" was written."""
    return any(said[0] == name and said[1] in ("", colour) for name, colour in seen)


def every_word() -> list[str]:
    """Each word that a caption can contain, sorted: the words that the model can learn."""
    texts = [*TEMPLATES, *COLOURS, "a an the and on under"]
    texts += [word for words in SYNONYMS.values() for word in words]
    return sorted(
        {word for text in texts for word in text.replace("{}", " ").replace(".", " ").split()}
    )
