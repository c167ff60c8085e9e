"""Every path of every kind of input, spoiled in every way, given to every command that reads it.

``python -m tools.bad_file_matrix`` makes small valid inputs once and gives them to each command
for comparison. Then, one case at a time, a file or folder is replaced by something else (a link
that leads to itself, a pipe, half of its bytes, …) and the command runs again in a process of its
own. `tools.bad_file_matrix.judge` says what a command may do then.
"""
