"""The constellation: which satellites, sites and links there are, and when the links are open."""
