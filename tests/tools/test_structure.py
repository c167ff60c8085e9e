"""The check of sizes, names and places finds what is planted."""

from __future__ import annotations

import pytest

from tools import structure

LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 61
DOCUMENTED = 'def f():\n    """' + "Words.\n\n" * 50 + '    """\n' + "    x = 1\n" * 60
PLANTED = {
    "tests/core/test_x.py": ("x = 1\n" * 401, "tests/core/test_x.py: 401 lines"),
    "bench/run.py": (LONG_FUNCTION, "bench/run.py: f has 61 lines"),
    "recipes/a/train.py": (LONG_FUNCTION, "recipes/a/train.py: f has 61 lines"),
    "lora_export/core/y.py": (
        'def f():\n    """What it lacks."""\n',
        "lora_export/core/y.py: a docstring begins with a question word: What it lacks.",
    ),
    "tests/core/test_y.py": (
        '"""What is read."""\n',
        "tests/core/test_y.py: a docstring begins with a question word: What is read.",
    ),
    "tests/verify/test_y.py": ("", "tests/verify: no such package or module"),
}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Return a repository in which everything is as it should be."""
    for name, text in {
        "lora_export/core/x.py": "x = 1\n" * 400,
        "tests/core/test_x.py": DOCUMENTED,
        "tests/core/x/test_part.py": "",
        "tests/end_to_end/any/test_z.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    monkeypatch.setattr(structure, "PACKAGE", tmp_path / "lora_export")
    folders = ("lora_export", "tests", "bench", "recipes")
    monkeypatch.setattr(structure, "CHECKED", [tmp_path / name for name in folders])
    return tmp_path


def test_nothing_is_said_of_what_is_as_it_should_be(tree, capsys):
    assert structure.main() == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", PLANTED)
def test_each_fault_is_named(tree, capsys, name):
    text, says = PLANTED[name]
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text(text)
    assert structure.main() == 1
    assert capsys.readouterr().out.startswith(says)


def test_file_names_that_many_packages_share_are_listed(tree, capsys):
    for package in ("adapters", "weights"):
        (tree / "lora_export" / package).mkdir()
        for at in range(13):
            (tree / "lora_export" / package / f"m{at}.py").write_text("")
    assert structure.main() == 1
    out = capsys.readouterr().out
    assert out.startswith("13 file names occur more than once; at most 12")
    assert "m7: adapters, weights" in out
