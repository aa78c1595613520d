"""Training recipes: one config file for each kind of model, with the values that differ from the defaults.

``starfc train --type NAME`` uses the file NAME.py. The files in configs/ inherit these files with ``_base_``.
"""
