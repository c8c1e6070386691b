"""Timing that refuses to lie: what is timed, how, and who disturbed it."""
