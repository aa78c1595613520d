"""Training recipes, one config file for each kind of model: what the schema's defaults do not already say.

``starfc train --type NAME`` takes the file NAME.py, and the files in configs/ inherit these by ``_base_``.
"""
