"""What a person is told: errors, and text and curves from outside, escaped, masked, thinned."""
