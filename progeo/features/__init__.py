"""Extracting features: run a network over a catalogue once and keep the rows."""
