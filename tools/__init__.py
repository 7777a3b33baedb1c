"""Tools of the project; none is installed."""
