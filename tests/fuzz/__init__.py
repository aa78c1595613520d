"""Fuzz every reader of files: a damaged input must end in one message.

    python -m tests.fuzz --reader npz --inputs 20000 [--seed 0]

Each reader (:mod:`tests.fuzz.readers`) has small valid files as seeds. An input is a damaged seed
(:mod:`tests.fuzz.mutate`). Child processes read the inputs (:mod:`tests.fuzz.drive`). A fault is an exception other
than InputError, a signal, an allocation of more than 1 GiB, or more than 10 seconds. Inputs with faults are kept.
--guided, which needs atheris (extra ``fuzz``), finds inputs by coverage instead.
"""
