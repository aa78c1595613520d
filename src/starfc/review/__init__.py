"""Review a clustering: explain why two instances share a cluster, rate doubtful clusters, and write a page for both."""
