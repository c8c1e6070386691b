"""Compare runs: which setting is better, is the difference real, what does it cost.

`collect` reads runs from their directories (`online` from W&B), `answer` groups and judges them,
`table` and `page` show the answer.
"""
