"""How text and curves from outside are shown: made safe, masked, thinned, set in tables."""
