"""Readers given damaged files: nothing but the project's errors may come out.

    python -m tools.reader_fuzz --reader safetensors --count 100000 --seed 1

A seed, a reader and an index make an input: valid files with a few changes. The reader runs in a
process that is watched; an error of another class, more than five seconds of processor time, a
gigabyte of memory or a crash is a finding, whose input is kept in a folder.
"""
