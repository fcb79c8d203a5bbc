"""Findings as text, as JSON and as figures. Nothing is measured here."""
