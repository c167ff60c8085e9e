"""Kinds of data sets: how a line is read, what a model is asked, how the answers are scored."""
