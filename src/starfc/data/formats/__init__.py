"""One module for each format of files: how its features and labels are read, streamed and written.

:mod:`starfc.data.files` chooses one of them by the suffix of a file.
"""
