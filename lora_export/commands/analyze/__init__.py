"""``analyze``: what an adapter learned (section 7 of the paper), and what one would cost."""
