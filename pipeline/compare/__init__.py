"""Which setting is better, is it real, and what did it cost: `python -m pipeline.compare`.

`collect` reads runs from their directories (`online` from W&B), `answer` groups and judges them,
`table` and `page` show the answer.
"""
