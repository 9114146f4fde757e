"""The section's text and exercises as measurements, and pages about runs."""
