"""Common parts of the two wordings: their shape, contrasts, misheard words.

``wording_train.py`` is what both sets of sentences may use, ``wording_heldout.py``
is kept for the held-out set alone. ``sentences.py`` puts the words together.

``<slot>`` stands for a value from :attr:`Wording.slots`. ``{right}``,
``{wrong}``, ``{said}`` and ``{meant}`` are explained at
:attr:`Wording.clause_repairs` and :attr:`Wording.word_repairs`.
"""

from dataclasses import dataclass

__all__ = ["CONTRASTS", "MISHEARD", "Wording"]


@dataclass(frozen=True)
class Wording:
    """One set of phrasings for all intents.

    Attributes:
        commands: intent -> imperatives, usable after "do not".
        remarks: intent -> indirect wishes, with none of the usual verbs.
        background: sentences about the state of the house, followed by a command.
        clause_repairs: frames around two commands, ``{wrong}`` and ``{right}``.
        word_repairs: frames around one contrast: ``{said}`` and ``{meant}`` are
            the whole sentence with the wrong and the right word in it,
            ``{wrong}`` and ``{right}`` the words alone.
        openers: interjections that fit in front of anything.
        requests: polite openings that need a command after them.
        closers: what may follow anything.
        slots: slot name -> values.
    """

    commands: dict[str, tuple[str, ...]]
    remarks: dict[str, tuple[str, ...]]
    background: tuple[str, ...]
    clause_repairs: tuple[str, ...]
    word_repairs: tuple[str, ...]
    openers: tuple[str, ...]
    requests: tuple[str, ...]
    closers: tuple[str, ...]
    slots: dict[str, tuple[str, ...]]


# Sentence frame -> the words that fit at {w} and the intent that each one makes.
# A repair needs two of them: "turn on the lights no the vacuum".
CONTRASTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("turn the lights in the <room> {w}", {"on": "lights_on", "off": "lights_off"}),
    ("switch {w} the <room> lamp", {"on": "lights_on", "off": "lights_off"}),
    ("turn the volume {w}", {"up": "volume_up", "down": "volume_down"}),
    ("make the music {w}", {"louder": "volume_up", "quieter": "volume_down"}),
    ("{w} the <door> door", {"lock": "door_lock", "unlock": "door_unlock"}),
    ("{w} the <minutes> minute timer", {"start": "timer_set", "cancel": "timer_cancel"}),
    ("{w} the alarm for <time>", {"set": "alarm_set", "delete": "alarm_cancel"}),
    ("{w} the <genre> playlist", {"play": "music_play", "pause": "music_pause"}),
    (
        "turn on {w}",
        {"the lights": "lights_on", "the vacuum": "vacuum_start", "the music": "music_play"},
    ),
    (
        "turn off {w}",
        {
            "the lights": "lights_off",
            "the music": "music_pause",
            "the alarm": "alarm_cancel",
            "the timer": "timer_cancel",
        },
    ),
    (
        "turn down {w} a bit",
        {
            "the music": "volume_down",
            "the lights": "lights_dim",
            "the heating": "temperature_set",
        },
    ),
    ("turn up {w}", {"the volume": "volume_up", "the heating": "temperature_set"}),
    (
        "set {w}",
        {
            "a timer": "timer_set",
            "an alarm": "alarm_set",
            "the thermostat": "temperature_set",
        },
    ),
    (
        "start {w}",
        {
            "the vacuum": "vacuum_start",
            "the timer": "timer_set",
            "the music": "music_play",
        },
    ),
    (
        "give me {w}",
        {
            "the weather": "weather_get",
            "some music": "music_play",
            "some light": "lights_on",
        },
    ),
)

# What a speech recogniser makes of a word.
MISHEARD: dict[str, str] = {
    "alarm": "a larm",
    "dim": "dem",
    "door": "dor",
    "down": "town",
    "for": "four",
    "hear": "here",
    "heating": "heeding",
    "light": "lite",
    "lights": "lites",
    "lock": "log",
    "minutes": "minuets",
    "music": "musik",
    "off": "of",
    "pause": "paws",
    "play": "plate",
    "rain": "reign",
    "timer": "time a",
    "to": "two",
    "too": "to",
    "unlock": "un lock",
    "vacuum": "vacume",
    "volume": "volumn",
    "wake": "weak",
    "weather": "whether",
}
