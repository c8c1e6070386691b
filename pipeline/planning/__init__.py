"""What a launch would do: settings, runs and stages, checked before anything starts. No torch."""
