"""The contract of a stage with everything around it, and the table of the five stages."""
