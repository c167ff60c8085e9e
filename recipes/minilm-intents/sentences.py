"""Make spoken commands to an edge device, each with the intent behind it.

Four kinds of sentence, in the shares of :data:`KIND_SHARES`:

1. ``command``: "could you dim the lights in the office".
2. ``remark``: "it is too bright in the office", the wish without its verb.
3. ``clause``: two commands or a state and a command, of which one counts:
   "play some jazz no wait lock the front door".
4. ``word``: one sentence with one word put right: "turn on the lights no the
   vacuum", "turn the volume down not up".

In kinds 3 and 4 the same words in another order mean another intent, so that a
bag of words is not enough. Fillers and recogniser errors are put over all.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from wording import CONTRASTS, MISHEARD, Wording
from wording_heldout import HELDOUT
from wording_train import TRAIN

__all__ = ["LABELS", "Example", "held_out_set", "training_set"]

LABELS: tuple[str, ...] = tuple(TRAIN.commands)
"""The intents; the position is the class id."""

KIND_SHARES = {"command": 0.3, "remark": 0.15, "clause": 0.3, "word": 0.25}
HELDOUT_WORDING_SHARE = 0.3
"""How often a part of a held-out sentence comes from the held-out wording."""

BACKGROUND_SHARE = 0.25
NOISE_SHARE = 0.35
_SLOT = re.compile(r"<(\w+)>")
_DROPPABLE = frozenset({"the", "a", "an", "me", "my", "some", "in"})
_MIN_SWAP_LETTERS = 5


@dataclass(frozen=True)
class Example:
    """A sentence and the name of its intent."""

    text: str
    label: str


@dataclass(frozen=True)
class _Speaker:
    """Draws words: from ``fresh`` with probability ``fresh_share``, else from ``known``."""

    rng: random.Random
    known: Wording
    fresh: Wording
    fresh_share: float

    def wording(self) -> Wording:
        """Choose the wording of the next part of a sentence."""
        return self.fresh if self.rng.random() < self.fresh_share else self.known

    def pick(self, values: Sequence[str]) -> str:
        """Choose one of ``values``."""
        return self.rng.choice(values)

    def fill(self, text: str) -> str:
        """Put a value in for every ``<slot>``."""
        return _SLOT.sub(lambda slot: self.pick(self.wording().slots[slot[1]]), text)

    def command(self, label: str) -> str:
        """Say an imperative for ``label``."""
        return self.fill(self.pick(self.wording().commands[label]))

    def other(self, label: str) -> str:
        """Choose an intent that is not ``label``."""
        return self.pick([name for name in LABELS if name != label])


def training_set(per_label: int, seed: int) -> list[Example]:
    """Make ``per_label`` sentences of every intent, from the training wording only."""
    speaker = _Speaker(random.Random(seed), TRAIN, TRAIN, 0.0)
    return _balanced(speaker, per_label, frozenset())


def held_out_set(per_label: int, seed: int, training: Sequence[Example]) -> list[Example]:
    """Make ``per_label`` sentences of every intent, none of which is in ``training``."""
    speaker = _Speaker(random.Random(seed), TRAIN, HELDOUT, HELDOUT_WORDING_SHARE)
    return _balanced(speaker, per_label, frozenset(example.text for example in training))


def _balanced(speaker: _Speaker, per_label: int, taken: frozenset[str]) -> list[Example]:
    """Draw until every intent has ``per_label`` different sentences; shuffle them."""
    examples: list[Example] = []
    seen = set(taken)
    for label in LABELS:
        wanted = len(examples) + per_label
        while len(examples) < wanted:
            text = _sentence(speaker, label)
            if text not in seen:
                seen.add(text)
                examples.append(Example(text, label))
    speaker.rng.shuffle(examples)
    return examples


def _sentence(speaker: _Speaker, label: str) -> str:
    """Say ``label`` in one of the four kinds, with fillers and noise."""
    kind = speaker.rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))[0]
    if kind == "command":
        text = _command(speaker, label)
    elif kind == "remark":
        text = speaker.fill(speaker.pick(speaker.wording().remarks[label]))
    elif kind == "clause":
        text = _clause(speaker, label)
    else:
        text = _word(speaker, label)
    return _misheard(speaker.rng, _with_fillers(speaker, text))


def _command(speaker: _Speaker, label: str) -> str:
    """Say a plain command, politely half of the time."""
    text = speaker.command(label)
    if speaker.rng.random() < 0.5:
        text = f"{speaker.pick(speaker.wording().requests)} {text}"
    return text


def _clause(speaker: _Speaker, label: str) -> str:
    """Say a command beside another one, or after the state of something else."""
    right = speaker.command(label)
    if speaker.rng.random() < BACKGROUND_SHARE:
        return f"{speaker.fill(speaker.pick(speaker.wording().background))} {right}"
    frame = speaker.pick(speaker.wording().clause_repairs)
    return frame.format(right=right, wrong=speaker.command(speaker.other(label)))


def _word(speaker: _Speaker, label: str) -> str:
    """Say a sentence in which one word is put right."""
    fitting = [(frame, words) for frame, words in CONTRASTS if label in words.values()]
    frame, words = speaker.rng.choice(fitting)
    right = next(word for word, intent in words.items() if intent == label)
    wrong = speaker.pick([word for word, intent in words.items() if intent != label])
    repair = speaker.pick(speaker.wording().word_repairs)
    text = repair.format(
        said=frame.format(w=wrong), meant=frame.format(w=right), wrong=wrong, right=right
    )
    return speaker.fill(text)


def _with_fillers(speaker: _Speaker, text: str) -> str:
    """Put an interjection before and a courtesy after, each now and then."""
    if speaker.rng.random() < 0.3:
        text = f"{speaker.pick(speaker.wording().openers)} {text}"
    if speaker.rng.random() < 0.25:
        text = f"{text} {speaker.pick(speaker.wording().closers)}"
    return text


def _misheard(rng: random.Random, text: str) -> str:
    """Make the errors of a speech recogniser in some of the sentences."""
    if rng.random() >= NOISE_SHARE:
        return text
    words: list[str] = []
    for word in text.split():
        chance = rng.random()
        if word in MISHEARD and chance < 0.3:
            words.append(MISHEARD[word])
        elif word in _DROPPABLE and chance < 0.3:
            continue
        elif len(word) >= _MIN_SWAP_LETTERS and chance < 0.12:
            at = rng.randrange(1, len(word) - 2)
            words.append(word[:at] + word[at + 1] + word[at] + word[at + 2 :])
        else:
            words.append(word)
    return " ".join(words)
