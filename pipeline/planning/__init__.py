"""Plan a launch: compose and check settings, runs and stages before anything starts. No torch."""
