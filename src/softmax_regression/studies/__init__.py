"""Measurements for the text and the exercises of the section, each with a page."""
