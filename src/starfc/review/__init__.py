"""Looking at a clustering: why two instances are together, which clusters are doubtful, and a page for both."""
