"""The parts of scripts/make_glyph.py: typefaces, pictures of glyphs, identities, photos and the network."""
