"""Fuzzing of whatever reads files: damaged inputs must end as one message, and nothing else.

    python -m tests.fuzz --reader npz --inputs 20000 [--seed 0]

A reader (:mod:`tests.fuzz.readers`) has small valid files as seeds; an input is a seed that was damaged
(:mod:`tests.fuzz.mutate`). Inputs are read in child processes (:mod:`tests.fuzz.drive`). A fault is an exception that
is no InputError, a signal, an allocation of more than 1 GiB, or more than 10 seconds. Inputs of faults are kept.
With --guided, where atheris is installed (extra ``fuzz``), inputs are found by coverage instead.
"""
