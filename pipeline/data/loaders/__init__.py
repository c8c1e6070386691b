"""Load the same images in the same order by DALI, by torch or from memory."""
