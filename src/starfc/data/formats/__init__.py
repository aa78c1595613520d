"""One module for each file format, with functions that read, stream and write its features and labels.

:mod:`starfc.data.files` chooses the module by the suffix of a file.
"""
