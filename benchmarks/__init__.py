"""How fast the harness is, beside the ways people train such networks and beside the least that the arithmetic takes."""
