"""Prepare what people see: errors, escaped text from outside, masked secrets, thinned curves."""
