"""Hold the measurements behind the numbers of docs/, in folders by topic; README.md lists them.

`python -m benchmarks.NAME` finds a script without its topic, because the path of this package holds
every topic's folder. So a name occurs once over all topics, and commands in documents, results and
issues stay what they are when a script gets another topic.
"""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
# The branches of the published code. What is compared with it, or has recorded results, has these,
# so that a branch that is added to dyrep.ALL_BRANCHES changes no row and no figure.
PUBLISHED_BRANCHES = ("kxk", "1x1", "1x1_kxk", "1x1_avg", "1xk", "kx1", "identity")
TOPICS = ("cluster", "growing", "gpus", "robustness", "speed")

__path__ += [str(PROJECT / "benchmarks" / topic) for topic in TOPICS]
