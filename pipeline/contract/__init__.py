"""What a stage is: the contract with everything around it, and the five stages as a table."""
