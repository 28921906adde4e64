"""Data sets: how images get a catalogue, and queries with their positives."""
