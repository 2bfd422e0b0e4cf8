"""Who is in the training, the validation and the test list: by person, never by scan."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

SECTIONS = ("training", "validation", "test")


def split_people(
    people: Mapping[str, str | None], validation_fraction: float = 0.1, test_fraction: float = 0.2, seed: int = 0
) -> dict[str, str]:
    """A section for each person.

    A person's place in [0, 1) is a hash of the seed and the name: below `test_fraction` is the test, the next
    `validation_fraction` the validation, the rest the training. So nobody changes sides when people are added, and the
    fractions hold on average. With at least three people no section that is wanted stays empty: the nearest person,
    whose side is not given, moves there (and may move back when people are added). One or two people are the training.

    Args:
        people: name -> one of `SECTIONS` where it is given, else None.
        validation_fraction: 0 to 1; 0 for nobody but those given.
        test_fraction: likewise; the two leave something for the training.
        seed: of the hash.

    Returns:
        name -> one of `SECTIONS`.
    """
    places = {name: _place(name, seed) for name in people}

    def drawn(place: float) -> str:
        if place < test_fraction:
            return "test"
        return "validation" if place < test_fraction + validation_fraction else "training"

    sections = {name: given or drawn(places[name]) for name, given in people.items()}
    wanted = {"training": 1.0, "test": test_fraction, "validation": validation_fraction}
    movable = sorted((name for name, given in people.items() if given is None), key=places.__getitem__)
    if len(people) < 3:
        return {**sections, **dict.fromkeys(movable, "training")}
    _fill_empty(sections, movable, [name for name, fraction in wanted.items() if fraction > 0])
    return sections


def _place(name: str, seed: int) -> float:
    """In [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") / 2**64


def _fill_empty(sections: dict[str, str], movable: list[str], wanted: Iterable[str]) -> None:
    """Move one person into each wanted section without any; `movable` is in order of place."""
    for section in wanted:
        count = Counter(sections.values())
        if count[section]:
            continue
        spare = [name for name in movable if count[sections[name]] > 1]
        # the training is full of high places, the others come from its low end
        spare = spare[::-1] if section == "training" else sorted(spare, key=lambda name: sections[name] != "training")
        if spare:
            sections[spare[0]] = section


def one_person_each(subjects: Mapping[str, tuple[str, Iterable[str]]]) -> dict[str, str]:
    """Who each subject is, where equal data mean the same person whatever the names.

    Args:
        subjects: subject -> (person, digests of its volumes).

    Returns:
        subject -> person; people who share a digest, directly or through others, all have the first name of theirs.
    """
    first_of = {person: person for person, _ in subjects.values()}

    def root(person: str) -> str:
        while first_of[person] != person:
            person = first_of[person]
        return person

    owner: dict[str, str] = {}
    for person, digests in subjects.values():
        for digest in digests:
            pair = sorted((root(person), root(owner.setdefault(digest, person))))
            first_of[pair[1]] = pair[0]
    return {subject: root(person) for subject, (person, _) in subjects.items()}
