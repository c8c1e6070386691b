"""Time networks: make the variants, measure them, and record disturbances."""
