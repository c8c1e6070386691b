"""Show text and curves from outside: escaped, masked, thinned, in tables."""
